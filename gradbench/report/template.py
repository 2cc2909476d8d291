"""What all pages share: templates, colours, style, and how a script is let in."""

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Self

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from .. import output_files
from .._version import __version__
from ..analysis import format_units
from ..plurals import counted
from ..printable import printable, printable_lines
from ..records.measurements import Fact
from .figures import DARK, LIGHT

PAGE: Final = re.compile(rb"<!doctype html>.*?<title>gradbench: ", re.DOTALL)
"""How a page of ours opens."""


@dataclass(frozen=True, slots=True)
class Script:
    """A script of ours and the hash by which the page's content security policy lets it in."""

    text: Markup
    mark: str

    @classmethod
    def packaged(cls, name: str) -> Self:
        """Return the script in the file of that name."""
        text = _text(name)
        digest = hashlib.sha256(text.encode()).digest()
        return cls(Markup(text), base64.b64encode(digest).decode())  # noqa: S704 # our own file


def render(template: str, *, script: Script | None = None, **context: Any) -> str:
    """Return one self-contained HTML page from a template that extends ``shell.html.j2``."""
    return (
        _templates()
        .get_template(template)
        .render(
            version=__version__,
            style=Markup(_text("page.css")),  # noqa: S704 # our own file
            script=script,
            colours=_colours(),
            **context,
        )
    )


def check_place(path: Path) -> None:
    """Raise `StoreError` where `save` would for what is there: before a page is drawn."""
    output_files.check(path, like=PAGE, what="page")


def save(html: str, path: Path) -> Path:
    """Write a page and return its path; raise `StoreError` where that cannot be."""
    content = html.encode("utf-8", "backslashreplace")
    return output_files.write(path, content, like=PAGE, what="page")


def fragment(template: str, **context: Any) -> str:
    """Return a part of a page, in nobody's colours, from a template of its own."""
    return _templates().get_template(template).render(**context)


@cache
def _templates() -> Environment:
    """Return the templates: each is compiled once, which takes a fifth of a page's time."""
    environment = Environment(
        loader=PackageLoader("gradbench.report"),
        autoescape=True,
        finalize=_seen,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "lines": _lines,
        "prose": prose,
        "fact": _fact,
        "size": format_units.size,
        "noise": format_units.noise,
        "count": format_units.count,
        "counted": counted,
    }
    return environment


def _seen(value: Any) -> Any:
    """Return what a template puts into a page: of text of others, what can be seen of it."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _lines(text: str) -> Markup:
    """Return text of several lines, as it is to be seen."""
    return Markup(escape(printable_lines(text)))  # noqa: S704 # escaped here


def _fact(value: Fact, name: str) -> str:
    """Return a fact as people read it."""
    if name.endswith("_bytes") and isinstance(value, int):
        return format_units.size(value)
    return str(value)


def _colours() -> dict[str, tuple[str, str]]:
    """Return every colour of the figures by its name: in the light, in the dark."""
    dark = DARK.names()
    return {name: (colour, dark[name]) for name, colour in LIGHT.names().items()}


def _text(name: str) -> str:
    return files("gradbench.report").joinpath("templates", name).read_text("utf-8")


def prose(sentence: str) -> Markup:
    """Return the sentence escaped, names in backticks as ``<code>``."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(printable(sentence)))))  # noqa: S704 # escaped before
