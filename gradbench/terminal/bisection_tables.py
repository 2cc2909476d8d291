"""A bisection on the terminal: each commit that changed something, then a row a commit."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..analysis.bisection import Findings
from ..analysis.bisection_changes import NAMES, Change, Culprit
from ..analysis.bisection_text import (
    SHORT,
    Column,
    Files,
    after,
    alike,
    columns,
    in_words,
    named,
    rows,
    title,
)
from ..plurals import counted
from ..printable import printable
from .run_tables import WIDE

STYLES: Final = {"worse": "red", "better": "green", "changed": "cyan", "": "dim"}
MOST_COLUMNS: Final = 5
"""Figures beside the commits, unless all are asked for."""
LEAST_WIDTH: Final = 56
"""Columns of the screen that the commits take without any figure, one of `COLUMN_WIDTH`."""
COLUMN_WIDTH: Final = 11
MOST_FILES: Final = 8
SUBJECT: Final = 40
"""Columns of a subject; a longer one takes more lines."""
LONGEST_SUBJECT: Final = 120
HEADINGS: Final = {
    "steps": "steps",
    "step_time": "time",
    "operators": "operators",
    "instructions": "instructions",
    "saved_bytes": "saved, B",
    "peak_bytes": "peak, B",
    "nodes": "nodes",
}
"""What heads a figure's column, in the order in which there is room for them."""


def bisection_tables(
    found: Findings, files: Files, *, everything: bool = False, width: int = WIDE
) -> list[RenderableType]:
    """Return what came of it: a part for each culprit, then the commits that were looked at.

    There are as many figures beside the commits as ``width`` has room for, or all.
    """
    shown: list[RenderableType] = [
        _culprit(one, found, files, everything=everything) for one in found.culprits
    ]
    room = (width - LEAST_WIDTH) // COLUMN_WIDTH
    shown.append(_commits(found, most=None if everything else max(1, min(room, MOST_COLUMNS))))
    return shown


def _culprit(
    culprit: Culprit, found: Findings, files: Files, *, everything: bool
) -> RenderableType:
    lines: list[RenderableType] = [
        Text(f"{culprit.verdict}: {title(culprit, found)}", style=f"bold {STYLES[culprit.verdict]}")
    ]
    for commit in culprit.suspects:
        known = found.graph.by_id[commit]
        who = f"{printable(known.author)}, {known.authored_at[:10]}"
        head = Text(f"  {commit[:SHORT]} ") if len(culprit.suspects) > 1 else Text("  ")
        lines.append(head.append(printable(known.subject)).append(f"  {who}", style="dim"))
        changed = files.get(commit, ())
        most = len(changed) if everything else MOST_FILES
        lines += [
            Text(f"    {printable(path)}  {much}", style="dim") for path, much in changed[:most]
        ]
        if len(changed) > most:
            lines.append(Text(f"    and {counted(len(changed) - most, 'more file')}", style="dim"))
    lines.append(Padding(_changes(culprit.changes), (0, 0, 1, 2)))
    return Group(*lines)


def _changes(changes: Sequence[Change]) -> RenderableType:
    """Return the changes at a commit; cells in which they are alike stand together."""
    groups = alike(changes)
    names = [NAMES[group[0].key.figure] for group in groups]
    widest = max(map(len, names))
    lines: list[RenderableType] = []
    for name, group in zip(names, groups, strict=True):
        one = group[0]
        old = in_words(one.key.figure, one.old)
        line = Text(f"{name.ljust(widest)}  {old} → ")
        lines.append(line.append(after(one), style=STYLES[one.verdict]))
        about = Text(named([same.key.cell for same in group]), overflow="fold")
        if one.words:
            about.append(f"\n{printable(one.words)}", style="dim")
        lines.append(Padding(about, (0, 0, 0, 4)))
    return Group(*lines)


def _commits(found: Findings, *, most: int | None) -> RenderableType:
    known = _one_of_each_first(columns(found))
    shown = known[:most]
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 1))
    for heading in ("commit", "date"):
        table.add_column(heading, no_wrap=True)
    table.add_column("subject", overflow="fold", max_width=SUBJECT)
    for number, column in enumerate(shown, 1):
        mark = f"\n[{number}]" if len(shown) > 1 else ""
        table.add_column(Text(f"{HEADINGS[column.figure]}{mark}"), justify="right", no_wrap=True)
    table.add_column("", overflow="fold")
    for row in rows(found, shown):
        said = Text(row.role, style=STYLES[row.verdict])
        if row.reason:
            said.append(f"{', ' if row.role else ''}{printable(row.reason)}", style="dim")
        table.add_row(
            row.commit.id[:SHORT],
            row.commit.authored_at[:10],
            _cut(row.commit.subject),
            *(
                in_words(column.figure, value).removesuffix(" B")
                for column, value in zip(shown, row.values, strict=True)
            ),
            said,
        )
    return Group(table, *_legend(known, shown))


def _one_of_each_first(known: Sequence[Column]) -> list[Column]:
    """Return columns so that the first ones are of different figures, as `HEADINGS` has them."""
    by_figure = {name: [one for one in known if one.figure == name] for name in HEADINGS}
    rounds = zip_longest(*by_figure.values())
    return [one for each in rounds for one in each if one is not None]


def _legend(known: Sequence[Column], shown: Sequence[Column]) -> list[RenderableType]:
    lines: list[RenderableType] = [
        Text(
            f"{f'[{number}] ' if len(shown) > 1 else ''}{column.title}: {column.where}", style="dim"
        )
        for number, column in enumerate(shown, 1)
    ]
    if len(known) > len(shown):
        left = counted(len(known) - len(shown), "more figure")
        lines.append(Text(f"{left} (--all shows them)", style="dim"))
    return lines


def _cut(text: str) -> Text:
    text = printable(text)
    return Text(text if len(text) <= LONGEST_SUBJECT else f"{text[: LONGEST_SUBJECT - 1]}…")
