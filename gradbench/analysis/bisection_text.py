"""A bisection in words and rows: the answer in a sentence, a row a commit, what else to know."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..experiment.matrix import Cell
from ..plurals import counted, plural
from ..records.bisection import Commit
from ..stats.verdicts import Verdict, percent
from .bisected_instructions import FOLLOWED
from .bisection import Findings
from .bisection_changes import (
    INSTRUCTIONS,
    NAMES,
    STEPS,
    TIME,
    UNITS,
    Change,
    Culprit,
    Key,
    Value,
    total,
)

SHORT: Final = 10
"""Characters of a commit's hash that are shown."""
NAMED: Final = 3
"""Cells that are named where more are meant."""

Files = Mapping[str, Sequence[tuple[str, str]]]
"""By commit: each file that it changes, and how much of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure over the commits, and the cells in which it is the same at each."""

    figure: str
    cells: tuple[Cell, ...]
    values: Mapping[str, float]  # by commit; a time as a ratio to the good one's
    changed_at: Mapping[str, str]  # how it changed, by commit, in the order of the history

    @property
    def title(self) -> str:
        """The figure's name."""
        return NAMES[self.figure]

    @property
    def where(self) -> str:
        """The cells, in words."""
        return named(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A commit of the range that was looked at, or that is named in the answer."""

    commit: Commit
    role: str  # good, bad, and what else is to be said of it
    reason: str  # why it was not measured
    values: tuple[float | None, ...]  # by column
    verdict: str  # of what changed there: worse, better, changed or ""


def answer(found: Findings) -> str:
    """Return in a sentence what came of it."""
    ends = f"{found.record.good[:SHORT]} and {found.record.bad[:SHORT]}"
    if not found.is_finished:
        known = f"{_culprits(found)} so far; " if found.culprits else ""
        return f"{known}it is not finished: {_missing(found)}"
    unstepped = found.counts.unstepped
    if not found.verdicts and len(unstepped) == len(found.record.cells):
        return f"nothing measured between {ends}: {next(iter(unstepped.values()))}"
    if not found.verdicts:
        return f"no difference between {ends}: {_compared(found)}"
    verdicts = Counter(found.verdicts.values())
    counts = ", ".join(f"{verdicts[one]} {one}" for one in ("worse", "better", "changed")
                       if verdicts[one])  # fmt: skip
    cells = len({key.cell for key in found.verdicts})
    figures = counted(len(found.verdicts), "figure")
    changed = f"{figures} of {counted(cells, 'cell')} ({counts})"
    untimed = len(found.times.left_out)
    more = f"; step time of {counted(untimed, 'cell')} not compared" if untimed else ""
    return f"{_culprits(found)} changed {changed} between {ends}{more}"


def title(culprit: Culprit, found: Findings) -> str:
    """Return what is known of where the changes come from, in words."""
    last = found.graph.by_id[culprit.suspects[-1]]
    if len(culprit.suspects) > 1:
        return f"one of {len(culprit.suspects)} commits, of which the others cannot be measured"
    if any(one.inherited for one in culprit.changes):
        return f"{last.id[:SHORT]}, a merge with a line that was so already"
    merge = " (a merge)" if len(last.parents) > 1 else ""
    return f"{last.id[:SHORT]}{merge}"


def named(cells: Sequence[Cell]) -> str:
    """Return cells in words: the first ones by name, of the others how many."""
    words = ", ".join(map(str, cells[:NAMED]))
    left = len(cells) - NAMED
    return f"{words} and {counted(left, 'more cell')}" if left > 0 else words


def columns(found: Findings) -> list[Column]:
    """Return every figure that differs between the ends, cells that are alike in one column."""
    times = (Key(cell=cell, figure=TIME) for cell in found.times.differing)
    keys = [*found.counts.differing, *found.instructions.verdicts, *times]
    grouped: dict[tuple[object, ...], list[Key]] = {}
    for key in keys:
        alike = (key.figure, *_series(found, key).items(), *_changed_at(found, key).items())
        grouped.setdefault(alike, []).append(key)
    return [
        Column(
            figure=keys[0].figure,
            cells=tuple(key.cell for key in keys),
            values=_series(found, keys[0]),
            changed_at=_changed_at(found, keys[0]),
        )
        for keys in grouped.values()
    ]


def rows(found: Findings, shown: Sequence[Column]) -> list[Row]:
    """Return the commits that were looked at, in the order of the history, the good one first."""
    culprits = {one.suspects[-1]: one for one in found.culprits}
    others = {one for culprit in found.culprits for one in culprit.suspects[:-1]}
    looked_at = {*found.counts.commits, *culprits, *others}
    border = [one.id for one in found.record.border]
    return [
        Row(
            commit=found.graph.by_id[commit],
            role=_role(found, commit, culprits, others),
            reason=_reason(found, commit),
            values=tuple(column.values.get(commit) for column in shown),
            verdict=culprits[commit].verdict if commit in culprits else "",
        )
        for commit in (*border, *found.graph.ids)
        if commit in looked_at
    ]


def notes(found: Findings) -> list[str]:
    """Return what else there is to know, a sentence each."""
    said = [
        f"{key} goes up and comes down: {_way(key.figure, steps)}"
        for key, steps in found.counts.detours.items()
    ]
    said += [f"inconclusive: {words}" for words in found.unclear]
    said += _with_reasons("not compared", found.counts.unstepped)
    said += _of_instructions(found)
    if found.is_finished and (untimed := found.times.left_out):
        said.append(
            f"step time not compared: {named(untimed)}: other counts at the ends, and what else "
            "became slower does not show in counts (--times all compares the times, too)"
        )
    return said


def _with_reasons(what: str, reasons: Mapping[Cell, str]) -> list[str]:
    """Return a sentence for each reason, with the cells that it holds for."""
    cells: dict[str, list[Cell]] = {}
    for cell, why in reasons.items():
        cells.setdefault(why, []).append(cell)
    return [f"{what}: {named(alike)}: {why}" for why, alike in cells.items()]


def _of_instructions(found: Findings) -> list[str]:
    """Return what is to be said of instructions that no change was found in."""
    equal = [
        f"{cell} {ratio - 1:+.1%}"
        for cell, ratio in found.instructions.ends.items()
        if cell not in {*found.instructions.differing, *found.instructions.unsteady}
    ]
    more = f" and {counted(len(equal) - NAMED, 'more cell')}" if len(equal) > NAMED else ""
    said = f"instructions that differ by {FOLLOWED:.0%} at most: {', '.join(equal[:NAMED])}{more}"
    return [
        *_with_reasons("instructions not counted", found.instructions.uncounted),
        *([said] if equal else []),
    ]


def in_words(figure: str, value: float | None) -> str:
    """Return a figure's value as people read it, a time as a change; nothing for None."""
    if value is None:
        return ""
    if figure == STEPS:
        return "yes" if value else "no"
    if figure == TIME:
        return "1" if value == 1 else percent(value)
    return f"{value:,.0f} B" if UNITS.get(figure) == "bytes" else f"{value:,.0f}"


def after(one: Change) -> str:
    """Return what a figure changed to, a time with its interval."""
    words = in_words(one.key.figure, one.new)
    if one.estimate is None:
        return words
    return f"{words} [{percent(one.estimate.low)}, {percent(one.estimate.high)}]"


def alike(changes: Sequence[Change]) -> list[list[Change]]:
    """Return changes in groups that differ in their cells alone."""
    groups: dict[tuple[object, ...], list[Change]] = {}
    for one in changes:
        kind = (one.key.figure, one.verdict, one.old, one.new, one.words)
        groups.setdefault(kind, []).append(one)
    return list(groups.values())


def _way(figure: str, steps: Sequence[tuple[str, Value]]) -> str:
    start, *others = ((commit, in_words(figure, total(value))) for commit, value in steps)
    return " → ".join([start[1], *(f"{words} ({commit[:SHORT]})" for commit, words in others)])


def _series(found: Findings, key: Key) -> dict[str, float]:
    if key.figure == INSTRUCTIONS:
        return dict(found.instructions.values(key.cell))
    if key.figure != TIME:
        return {commit: total(value) for commit, value in found.counts.values[key].items()}
    ratios = {found.record.good: 1.0}
    for one in found.record.timed:
        if one.base == found.record.good and one.cell == key.cell and one.logs:
            ratios[one.commit] = found.times.change(one).point
    return ratios


def _changed_at(found: Findings, key: Key) -> dict[str, str]:
    own = {one.suspects[-1]: one.verdict for one in found.changes if one.key == key}
    return {commit: own[commit] for commit in found.graph.ids if commit in own}


def _culprits(found: Findings) -> str:
    exact = [one for one in found.culprits if len(one.suspects) == 1]
    ranges = len(found.culprits) - len(exact)
    words = [counted(len(exact), "commit")] if exact or not ranges else []
    if ranges:
        words.append(f"{counted(ranges, 'range')} of commits")
    return " and ".join(words)


def _compared(found: Findings) -> str:
    keys = [key for key in found.counts.values if key not in found.counts.unsteady]
    cells = len({key.cell for key in keys})
    verb = "is" if len(keys) == 1 else "are"
    said = f"{counted(len(keys), 'count')} of {counted(cells, 'cell')} {verb} equal"
    if found.record.times == "none":
        return f"{said}; times were not compared"
    verdicts = Counter(one.verdict for one in found.times.verdicts.values())
    times = ", ".join(f"{verdicts[one]} {one}" for one in Verdict if verdicts[one])
    return f"{said}; {plural(len(found.times.verdicts), 'time')}: {times or 'none'}"


def _missing(found: Findings) -> str:
    figures, cells = len(found.verdicts), len(found.record.cells)
    looked_at = sum(one in found.graph for one in found.counts.commits)
    return (
        f"{looked_at} of {counted(len(found.graph.ids), 'commit')} looked at, "
        f"{counted(figures, 'figure') if figures else counted(cells, 'cell')} in question"
    )


def _role(found: Findings, commit: str, culprits: Mapping[str, Culprit], others: set[str]) -> str:
    roles = []
    if commit == found.record.good:
        roles.append("good")
    elif commit == found.record.bad:
        roles.append("bad")
    elif commit not in found.graph:
        roles.append("before the range")
    if commit in culprits:
        whole = culprits[commit]
        roles.append(whole.verdict if len(whole.suspects) == 1 else f"{whole.verdict}, or before")
    elif commit in others:
        roles.append("perhaps here")
    return ", ".join(roles)


def _reason(found: Findings, commit: str) -> str:
    counts = found.counts.commits.get(commit)
    if counts is None:
        return ""
    if counts.skipped:
        return f"cannot be measured: {counts.skipped}"
    failures = {one.failure or one.skipped for one in counts.cells} - {""}
    broken = sum(bool(one.failure or one.skipped) for one in counts.cells)
    if not failures or broken == len(found.counts.unstepped):
        return ""
    return f"{counted(broken, 'cell')}: {next(iter(sorted(failures)))}"
