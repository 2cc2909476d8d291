"""A history of any length as linked pages: what changed first, all series by cell behind it.

Plain files and links: a page opens from a folder, a bucket or an artifact, without a server and
without scripts, and the first one stays small however much there is.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from .. import output_files
from ..history.commit_links import Link
from ..history.series import Series
from . import history, template

A_PAGE: Final = history.MANY
NEAR: Final = 2
"""Pages on each side of one that it links to by number, besides the first and the last."""
_NAME: Final = re.compile(r"(changed|all)-\d+\.html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A row of the index: where the series of a model are."""

    name: str
    series: int
    changed: int
    url: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Step:
    """A link of a page to another of its kind; without an address it is where one is."""

    text: str
    url: str


def save(series: Sequence[Series], path: Path, *, link: Link, warnings: Sequence[str] = ()) -> int:
    """Write a history to a page, and what does not fit to pages in a folder beside it.

    Return how many there are. The folder is named after the page, ``history-pages`` for
    ``history.html``. The first page is written last, so that none of its links leads nowhere.
    Then pages of an earlier, longer history are removed from the folder.
    """
    template.check_place(path)
    known = [one for one in series if len(one.values) > 1]
    pages = _Pages(known, path, link)
    written: set[str] = set()
    if len(known) <= A_PAGE:
        template.save(history.render(series, link=link, warnings=warnings), path)
    else:
        for name, html in pages.behind():
            template.save(html, pages.folder / name)
            written.add(name)
        template.save(pages.first(warnings), path)
    _remove_earlier(pages.folder, keep=written)
    return len(written) + 1


class _Pages:
    """The pages of a history: those of what changed, and those of all series by cell."""

    def __init__(self, known: Sequence[Series], path: Path, link: Link) -> None:
        self._known, self._changed = known, history.latest_first(known)
        self._path, self._link = path, link
        self.folder = path.with_name(f"{path.stem}-pages")

    def first(self, warnings: Sequence[str]) -> str:
        """Return the page that is opened: what changed lately, and where the rest is."""
        below = f"{_quoted(self.folder.name)}/"
        shown = self._shown(self._changed[:A_PAGE], "History", self._steps("changed", 1, below))
        return _render(shown, index=[*self._index(below)], warnings=warnings)

    def behind(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of every other page."""
        for number, some in enumerate(_cut(self._changed), 1):
            if number > 1:
                title = f"What changed, page {number} of {_pages(self._changed)}"
                shown = self._shown(some, title, self._steps("changed", number))
                yield _name("changed", number), _render(shown, back=self._back)
        for number, some in enumerate(_cut(self._known), 1):
            title = f"All series by cell, page {number} of {_pages(self._known)}"
            shown = self._shown(some, title, self._steps("all", number), anchors=True)
            yield _name("all", number), _render(shown, back=self._back)

    @property
    def _back(self) -> str:
        return f"../{_quoted(self._path.name)}"

    def _shown(
        self,
        some: Sequence[Series],
        title: str,
        steps: Sequence[Step],
        *,
        anchors: bool = False,
    ) -> dict[str, Any]:
        models = [one.cell.model for one in some]
        return {
            "title": title,
            "lines": [
                history.line(
                    one,
                    self._link,
                    anchor=_anchor(model) if anchors and model not in models[:at] else "",
                )
                for at, (one, model) in enumerate(zip(some, models, strict=True))
            ],
            "changed": len(self._changed),
            "total": len(self._known),
            "left_out": 0,
            "steps": steps,
        }

    def _steps(self, kind: str, number: int, below: str = "") -> list[Step]:
        """Return the links to the pages before, near and behind one."""
        count = _pages(self._changed if kind == "changed" else self._known)
        if count < 2:
            return []

        def url(to: int) -> str:
            if kind == "changed" and to == 1:
                return self._back if not below else ""
            return below + _name(kind, to)

        near = {1, count, *range(max(number - NEAR, 1), min(number + NEAR, count) + 1)}
        steps = [Step("‹ before", url(number - 1))] if number > 1 else []
        last = 0
        for to in sorted(near):
            if to > last + 1:
                steps.append(Step("…", ""))
            steps.append(Step(str(to), url(to) if to != number else ""))
            last = to
        return [*steps, Step("next ›", url(number + 1))] if number < count else steps

    def _index(self, below: str) -> Iterator[Model]:
        """Yield where the series of each model are."""
        places = enumerate(self._known)
        for name, members in groupby(places, key=lambda placed: placed[1].cell.model):
            of_model = list(members)
            first, last = (at // A_PAGE + 1 for at in (of_model[0][0], of_model[-1][0]))
            yield Model(
                name=name,
                series=len(of_model),
                changed=sum(one.latest is not None for _, one in of_model),
                url=f"{below}{_name('all', first)}#{_anchor(name)}",
                first=first,
                last=last,
            )


def _remove_earlier(folder: Path, *, keep: Collection[str]) -> None:
    """Remove our pages from the folder, and the folder if nothing else is in it."""
    if not folder.is_dir():
        return
    for path in [*folder.iterdir()]:
        if _NAME.fullmatch(path.name) and path.name not in keep:
            output_files.remove(path, like=template.PAGE)
    with suppress(OSError):  # it is not empty
        folder.rmdir()


def _render(shown: dict[str, Any], **context: Any) -> str:
    defaults: dict[str, Any] = {"index": (), "warnings": (), "back": ""}
    return template.render("history_page.html.j2", history=shown, **{**defaults, **context})


def _cut(series: Sequence[Series]) -> Iterator[Sequence[Series]]:
    return (series[start : start + A_PAGE] for start in range(0, len(series), A_PAGE))


def _pages(series: Sequence[Series]) -> int:
    return -(-len(series) // A_PAGE)


def _name(kind: str, number: int) -> str:
    return f"{kind}-{number}.html"


def _anchor(model: str) -> str:
    return quote(f"model-{model}", safe="", errors="backslashreplace")


def _quoted(name: str) -> str:
    """Return a file's name for an address; it may have bytes that are no UTF-8."""
    return quote(os.fsencode(name))
