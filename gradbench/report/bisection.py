"""The page of a bisection: which commits changed what, and every commit that was looked at."""

import math
from typing import Any, Final

from markupsafe import Markup

from ..analysis.bisection import Findings
from ..analysis.bisection_changes import NAMES, TIME, Culprit
from ..analysis.bisection_text import (
    SHORT,
    Column,
    Files,
    after,
    alike,
    answer,
    columns,
    in_words,
    named,
    notes,
    rows,
    title,
)
from ..analysis.operation_changes import LEAST
from ..history.commit_links import Link
from ..plurals import counted
from . import template

WIDTH: Final = 260
HEIGHT: Final = 44
EDGE: Final = 5


def render(found: Findings, files: Files, *, name: str, link: Link) -> str:
    """Return one self-contained HTML page."""
    known = columns(found)
    record = found.record
    return template.render(
        "bisection.html.j2",
        answer=answer(found),
        asked=record.asked,
        finished=found.is_finished,
        commits=len(found.graph.ids),
        looked_at=sum(one in found.graph for one in found.counts.commits),
        facts=_facts(found, name),
        culprits=[_culprit(one, found, files, link) for one in found.culprits],
        columns=[
            {
                "title": column.title,
                "where": column.where,
                "cells": list(map(str, column.cells)),
                "good": in_words(column.figure, column.values.get(record.good)),
                "bad": in_words(column.figure, column.values.get(record.bad)),
                "drawing": drawing(column, found),
                "changed_at": [one[:SHORT] for one in column.changed_at],
            }
            for column in known
        ],
        rows=[
            {
                "id": row.commit.id[:SHORT],
                "url": link(row.commit.id),
                "date": row.commit.authored_at[:10],
                "author": row.commit.author,
                "subject": row.commit.subject,
                "role": row.role,
                "verdict": row.verdict,
                "reason": row.reason,
                "figures": [
                    in_words(column.figure, value)
                    for column, value in zip(known, row.values, strict=True)
                ],
            }
            for row in rows(found, known)
        ],
        notes=notes(found),
        least=f"{LEAST:.0%}",
    )


def drawing(column: Column, found: Findings) -> Markup:
    """Return a figure over the range as inline SVG: what was measured, and where it changed.

    Between two commits that were measured nothing is known, but for the search: the line steps at
    the commit that it found.
    """
    order = [found.record.good, *found.graph.ids]
    place = {commit: number for number, commit in enumerate(order)}
    scale = math.log if column.figure == TIME else float
    known = sorted((place[one], scale(v)) for one, v in column.values.items() if one in place)
    low, high = min(value for _, value in known), max(value for _, value in known)

    def x(at: int) -> float:
        return EDGE + (WIDTH - 2 * EDGE) * at / max(len(order) - 1, 1)

    def y(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - EDGE - (HEIGHT - 2 * EDGE) * share

    path, last = [], known[0][1]
    for at, value in known:
        if value != last:
            path.append(f"{x(at):.1f},{y(last):.1f}")
        path.append(f"{x(at):.1f},{y(value):.1f}")
        last = value
    changed = {place[one]: verdict for one, verdict in column.changed_at.items()}
    marks = "".join(
        f'<circle class="{changed.get(at, "seen")}" cx="{x(at):.1f}" cy="{y(value):.1f}" '
        f'r="{4 if at in changed else 2.5}"/>'
        for at, value in known
    )
    label = f"{counted(len(known), 'commit')} measured, {counted(len(changed), 'change')}"
    return Markup(  # noqa: S704 # numbers and words of our own
        f'<svg class="steps" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<polyline points="{" ".join(path)}"/>{marks}</svg>'
    )


def _culprit(culprit: Culprit, found: Findings, files: Files, link: Link) -> dict[str, Any]:
    suspects = [found.graph.by_id[one] for one in culprit.suspects]
    inherited = any(one.inherited for one in culprit.changes)
    return {
        "verdict": culprit.verdict,
        "note": title(culprit, found) if len(suspects) > 1 or inherited else "",
        "suspects": [
            {
                "id": one.id,
                "short": one.id[:SHORT],
                "url": link(one.id),
                "subject": one.subject,
                "author": one.author,
                "date": one.authored_at[:10],
                "files": files.get(one.id, ()),
            }
            for one in suspects
        ],
        "changes": [
            {
                "figure": NAMES[group[0].key.figure],
                "verdict": group[0].verdict,
                "old": in_words(group[0].key.figure, group[0].old),
                "new": after(group[0]),
                "words": group[0].words,
                "cells": named([one.key.cell for one in group]),
            }
            for group in alike(culprit.changes)
        ],
    }


def _facts(found: Findings, name: str) -> dict[str, str]:
    record = found.record
    facts = {
        "range": record.asked,
        "good": record.good,
        "bad": record.bad,
        "history": "first parents" if record.first_parent else "full",
        "begun": record.started_at,
        "record": f"{name}.json",
        **record.facts,
    }
    if record.paths:
        facts["paths"] = " ".join(record.paths)
    return facts
