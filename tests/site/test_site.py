"""The built site, from its files, in a browser: `nox -s site` builds it and runs this.

Every page of the navigation, wide and narrow, light and dark: what is drawn, what is reported, and what is requested.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="nox -s site installs it")

ROOT = Path(__file__).parents[2]
SITE = ROOT / "build" / "site"
NAVIGATION = (ROOT / "docs" / "site" / "mkdocs.yml").read_text(encoding="utf-8").split("\nnav:\n")[1].split("\n\n")[0]
PAGES = [name.removesuffix(".md") for name in re.findall(r"[\w/-]+\.md$", NAVIGATION, re.MULTILINE)]
PAGES = [re.sub(r"README$", "index", name) for name in PAGES]
BROWSER = os.environ.get("BROWSER") or shutil.which("chromium")
# No name is found, so that nothing could leave the machine even if no test saw it.
OPTIONS = [
    "--host-resolver-rules=MAP * ~NOTFOUND",
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# What a reader sees outside code and formulas.
TEXT = """() => {
    const page = document.querySelector("article").cloneNode(true);
    page.querySelectorAll("code, pre, .katex").forEach(element => element.remove());
    return page.textContent;
}"""


class Tab:
    """A page of the browser, with what it requested and what went wrong in it."""

    def __init__(self, page: playwright.Page) -> None:
        self.page, self.requested, self.faults = page, [], []
        page.on("request", lambda request: self.requested.append(request.url))
        page.on("requestfailed", lambda request: self.faults.append(f"{request.url}: {request.failure}"))
        page.on("console", lambda line: self.faults.append(line.text) if line.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def open(self, name: str) -> playwright.Page:
        self.page.goto((SITE / f"{name}.html").as_uri())
        return self.page

    def check(self) -> None:
        assert self.faults == []
        assert [url for url in self.requested if not url.startswith(("file://", "data:", "blob:"))] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    with playwright.sync_playwright() as driver:
        # Each launch has a profile of its own.
        started = driver.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture(params=[(1400, "light"), (390, "dark")], ids=["wide-light", "narrow-dark"])
def tab(browser, request) -> Iterator[Tab]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    yield Tab(context.new_page())
    context.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn(tab, name) -> None:
    page = tab.open(name)
    formulas = page.locator("article .arithmatex")
    assert page.locator("article .arithmatex .katex").count() == formulas.count()
    assert not re.search(r"\$|\\\(|\\\[", page.evaluate(TEXT))
    for picture in page.locator("article img").all():
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, "the page is wider than the screen"
    tab.check()


def test_theory_has_formulas_and_pictures(tab) -> None:
    page = tab.open("theory")
    assert page.locator("article .katex-display").count() >= 6
    assert page.locator("article img").count() >= 6
    # Its fonts lie beside it, too.
    assert page.evaluate("document.fonts.ready.then(() => document.fonts.check('16px KaTeX_Main'))")
    assert any("KaTeX_Main-Regular" in url for url in tab.requested)
    tab.check()


def test_the_navigation_leads_to_every_page(tab) -> None:
    page = tab.open("index")
    entries = page.locator(".md-nav--primary a.md-nav__link:not([href*='#'])")
    found = {entry.evaluate("link => link.href") for entry in entries.all()}
    assert found == {(SITE / f"{name}.html").as_uri() for name in PAGES}


def test_links_lead_to_files_and_headings() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in SITE.rglob("*.html") if "results" not in path.parts}
    for path, text in pages.items():
        if path.name == "404.html":  # its links begin at a server's root
            continue
        for link in re.findall(r'(?:href|src)="(?!\w+:)([^"]*)"', text):
            target, _, heading = link.partition("#")
            there = (path.parent / target).resolve() if target else path
            assert there.exists(), f"{path.name}: {link}"
            if heading and there in pages:
                assert f'id="{heading}"' in pages[there], f"{path.name}: {link}"


def test_search(tab) -> None:
    page = tab.open("losses")
    if page.viewport_size["width"] < 1000:
        page.locator("label.md-header__button[for=__search]").click()
    page.locator(".md-search__input").press_sequentially("ignore_class")
    first = page.locator(".md-search-result__item a").first
    first.wait_for()
    assert first.get_attribute("href").startswith("file://")
    tab.check()


def test_copying_an_example_takes_its_code_alone(browser) -> None:
    page = Tab(browser.new_page()).open("index")
    page.evaluate("addEventListener('copy', () => { window.copied = document.activeElement.value; })")
    page.locator("article .language-pycon button").first.click()
    assert page.evaluate("copied").splitlines()[0] == "import lossbridge as lb"
    assert not re.search(r"^>>>|^1\.17", page.evaluate("copied"), re.MULTILINE)


def test_what_was_measured_needs_no_network(browser) -> None:
    tab = Tab(browser.new_page())
    tab.open("benchmarks/results/cpu")
    tab.check()
