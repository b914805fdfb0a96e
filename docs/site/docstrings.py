"""Docstrings as Markdown: examples become blocks of code, and aligned columns lists of definitions."""

from __future__ import annotations

import re
from typing import Any

import griffe

# From a prompt to the next empty line.
EXAMPLE = re.compile(r"^( *)>>> .*(?:\n(?! *$).*)*", re.MULTILINE)
# "axis            the axis that holds the classes", and the lines below that are indented as far as its text.
COLUMNS = re.compile(r"^(\S(?:.{0,14}\S)?) {2,}(\S.*(?:\n {8,}\S.*)*)", re.MULTILINE)


def fenced(found: re.Match[str]) -> str:
    indent = found[1]
    return f"{indent}```pycon\n{found[0]}\n{indent}```"


def definition(found: re.Match[str]) -> str:
    name = found[1] if " " in found[1] else f"`{found[1]}`"
    text = " ".join(found[2].split())
    return f"{name}\n:   {text}\n"


def markdown(text: str) -> str:
    parts = re.split(r"(```.*?```)", EXAMPLE.sub(fenced, text), flags=re.DOTALL)
    return "".join(part if part.startswith("```") else COLUMNS.sub(definition, part) for part in parts)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        """`Any` says nothing: what arrays an argument takes stands in its text."""
        for parameter in func.parameters:
            if str(parameter.annotation) == "Any":
                parameter.annotation = None
