"""Series as the page shows them: small drawings with their changes marked, and a sentence each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from ..history.commit_links import Link, linker
from ..history.series import Series, history, of
from ..history.series_text import amount, sentence, short, span, thinned
from ..plurals import counted
from ..records.run import Run
from . import template

MANY: Final = 80  # series drawn; those that changed come first
WIDTH: Final = 220
HEIGHT: Final = 36
EDGE: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeText:
    """A change as the page tells it; ``url`` is empty where no commit's page is known."""

    verdict: str
    text: str
    commit: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A series as the page shows it."""

    cell: str
    figure: str
    where: str
    points: int
    first: str
    last: str
    drawing: Markup
    changes: tuple[ChangeText, ...]
    anchor: str = ""  # what a link to it names


def of_runs(runs: Sequence[Run], *, commit_url: str = "") -> dict[str, Any] | None:
    """Return what ``history.html.j2`` needs of several runs; None where there is no series yet."""
    series, _ = history(of(runs))
    return context(series, link=linker(commit_url))


def context(series: Sequence[Series], *, link: Link) -> dict[str, Any] | None:
    """Return what ``history.html.j2`` needs; None where no series has two points."""
    known = [one for one in series if len(one.values) > 1]
    if not known:
        return None
    changed = latest_first(known)
    shown = [*changed, *(one for one in known if not one.latest)][:MANY]
    return {
        "title": "History",
        "lines": [line(one, link) for one in shown],
        "changed": len(changed),
        "total": len(known),
        "left_out": len(known) - len(shown),
        "steps": (),
    }


def latest_first(series: Sequence[Series]) -> list[Series]:
    """Return the series that changed their level, the latest change first."""
    return sorted((one for one in series if one.latest), key=_when, reverse=True)


def render(series: Sequence[Series], *, link: Link, warnings: Sequence[str] = ()) -> str:
    """Return one self-contained HTML page with nothing but the history."""
    return template.render(
        "history_page.html.j2",
        history=context(series, link=link),
        index=(),
        back="",
        warnings=warnings,
    )


def drawing(series: Series) -> Markup:
    """Return a series as inline SVG in the page's own colours: its values, its levels, its changes.

    Drawn by hand: a line through at most as many points as there are pixels takes no library, a
    fifth of the bytes, and a page may hold a hundred.
    """
    values = thinned(series.values, most=WIDTH)
    low, high = span(values)
    levels = [edge for change in series.changes for edge in (change.before, change.after)]
    low, high = min([low, *levels]), max([high, *levels])

    def x(at: float, count: int) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * at / max(count - 1, 1)

    def y(value: float) -> float:
        share = min(max((value - low) / (high - low), 0.0), 1.0)
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * share

    line = " ".join(f"{x(at, len(values)):.1f},{y(v):.1f}" for at, v in enumerate(values))
    parts = [f'<polyline class="line" points="{line}"/>']
    for change in series.changes:
        at = x(change.at, len(series.values))
        parts.append(
            f'<g class="{change.verdict}"><line x1="{at:.1f}" x2="{at:.1f}" y1="0" y2="{HEIGHT}"/>'
            f'<circle cx="{at:.1f}" cy="{y(change.after):.1f}" r="3"/></g>'
        )
    points, changes = len(series.values), len(series.changes)
    label = f"{counted(points, 'point')}, {counted(changes, 'change')}"
    return Markup(  # noqa: S704 # numbers and words of our own
        f'<svg class="spark" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f"{''.join(parts)}</svg>"
    )


def line(series: Series, link: Link, *, anchor: str = "") -> Line:
    """Return a series as the page shows it."""
    return Line(
        cell=str(series.cell),
        figure=series.figure,
        where=series.where,
        points=len(series.values),
        first=amount(series, float(series.values[0])),
        last=amount(series, float(series.values[-1])),
        drawing=drawing(series),
        changes=tuple(
            ChangeText(
                verdict=str(change.verdict),
                text=sentence(series, change),
                commit=short(change.commit),
                url=link(change.commit),
            )
            for change in reversed(series.changes)
        ),
        anchor=anchor,
    )


def _when(series: Series) -> str:
    return series.latest.started if series.latest else ""
