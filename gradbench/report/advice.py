"""Advice on one model, as a page and a notebook show it."""

from typing import Any

from markupsafe import Markup

from ..analysis.advice import Advice
from .template import fragment


def advice_html(advice: Advice) -> Markup:
    """Return the advice as a part of a page, in the colours of whatever shows it."""
    return Markup(fragment("advice.html.j2", **section(advice)))  # noqa: S704 # our own template


def section(advice: Advice) -> dict[str, Any]:
    """Return what the template lays out."""
    return {
        "title": str(advice.study.cells[0].block),
        "answer": advice.answer(),
        "rows": advice.rows(),
        "outputs": advice.outputs(),
        "sure": advice.when_sure(),
        "timed": advice.timed,
        "ran": bool(advice.modes),
        "floor": advice.floor(),
        "findings": advice.findings(),
        "batches": list(advice.batches()),
        "memory_bytes": advice.study.memory_bytes,
        "memory_of": advice.study.memory_of,
        "gains": advice.gains(),
        "thorough": advice.study.thorough,
    }
