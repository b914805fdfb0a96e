"""What the site adds to the pages of docs/: those of the repository's other folders, the reference, and the scripts.

Links lead from file to file, as in the repository. To a file that is no part of the site they become its path.
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "build" / "site-scripts" / "node_modules"  # `nox -s site` installs them

# Files outside docs/ that are pages, or lie beside them.
OTHERS = {
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security.md": "SECURITY.md",
    "benchmarks/README.md": "benchmarks/README.md",
    "benchmarks/results/cpu.html": "benchmarks/results/cpu.html",
}
PICTURES = "benchmarks/results/cpu"
README = ROOT / "README.md"  # of which a section is a page, command.md
# The pages of the reference.
MODULES = ["losses", "torch", "keras", "information", "reference"]
MODULES += [f"compat.{library}" for library in ("keras", "torch", "optax", "sklearn", "scipy")]
TOOLS = [
    "lossbridge.diagnose",
    "lossbridge.tools.diagnosis.Diagnosis",
    "lossbridge.tools.diagnosis.diagnosis.Probe",
    "lossbridge.compare",
    "lossbridge.tools.comparison.comparison.Comparison",
    "lossbridge.explain",
    "lossbridge.explanation.Explanation",
]

LINK = re.compile(r"\[([^\]]+)\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^```python\n(?=>>> )", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for uri, path in OTHERS.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    for path in sorted((ROOT / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"{PICTURES}/{path.name}", abs_src_path=str(path)))
    command = README.read_text(encoding="utf-8").split("\n## The command\n")[1].split("\n## ")[0]
    files.append(File.generated(config, "command.md", content=f"# The command\n{command}"))
    for name in MODULES:
        content = f"::: lossbridge.{name}\n    options: {{ heading_level: 1 }}\n"
        files.append(File.generated(config, f"api/{name.replace('.', '-')}.md", content=content))
    tools = [f"::: {name}\n    options: {{ show_root_full_path: false }}\n" for name in TOOLS]
    files.append(File.generated(config, "api/tools.md", content="\n".join(["# diagnose, compare, explain\n", *tools])))
    for uri, path in scripts():
        files.append(File.generated(config, f"site/scripts/{uri}", abs_src_path=str(path)))
    return files


def scripts() -> list[tuple[str, Path]]:
    katex = SCRIPTS / "katex" / "dist"
    if not katex.exists():
        raise PluginError(f"{katex} is missing; run python -m nox -s site, which installs it")
    of_katex = [katex / "katex.min.js", katex / "katex.min.css", *(katex / "fonts").glob("*.woff2")]
    shim = ("iframe-worker.js", SCRIPTS / "iframe-worker" / "shim" / "index.js")
    return [shim, *((f"katex/{path.relative_to(katex).as_posix()}", path) for path in of_katex)]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    here = Path(page.file.abs_src_path or README)
    uris = {os.path.normpath(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    uris[str(README)] = "command.md"

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = os.path.normpath(here.parent / target)
        if path in uris:
            return f"[{text}]({posixpath.relpath(uris[path], posixpath.dirname(page.file.src_uri) or '.')}{anchor})"
        if not os.path.exists(path):
            return found[0]  # mkdocs warns of it
        shown = Path(path).relative_to(ROOT).as_posix()
        return f"`{shown}`" if shown.endswith(text.strip("`")) else f"{text} (`{shown}`)"

    return FENCE.sub("```pycon\n", LINK.sub(link, markdown))
