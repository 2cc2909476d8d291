"""The page: runs in, one self-contained HTML file out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..analysis import evaluations, headline, other_axes, run_sentences
from ..analysis.advice import Advice
from ..analysis.diagnosis import possible_interference
from ..analysis.explanation import differences, operator_differences
from ..analysis.run_view import MEMORY, TIME, View
from ..errors import StoreError
from ..experiment.matrix import AXES, GRAD_MODES
from ..gate.rules import Rules
from ..records.explanation import Explanation
from ..records.run import Run
from ..records.selfcheck import CPU, SelfCheck
from ..records.semantics import Behaviour
from ..store.comparability import processor
from . import (
    capacity,
    cell_table,
    charts,
    embedded_data,
    history,
    run_differences,
    template,
)
from .advice import advice_html
from .figures import PAGE
from .figures.difference import difference
from .semantics import section as semantics_section
from .svg import inline


def render(
    runs: Run | Sequence[Run],
    *,
    checks: Mapping[str, SelfCheck] | None = None,
    semantics: Behaviour | None = None,
    commit_url: str = "",
    rules: Rules | None = None,
    advice: Advice | None = None,
    explanation: Explanation | None = None,
) -> str:
    """Return one self-contained HTML page about one or more runs; several show their history.

    Of several, the last is held against the first, by the gate's ``rules``. ``checks`` is what the
    self-checks found, by device (`gradbench.records.selfcheck.load_all`), ``semantics`` what the
    modes were seen to do (`gradbench.records.semantics.load`), ``advice`` and
    ``explanation`` of a model stand above its run, ``commit_url`` is the address of a commit's
    page, with ``{commit}`` in it. Raise `StoreError` without a run.
    """
    runs = [runs] if isinstance(runs, Run) else list(runs)
    if not runs:
        raise StoreError("there is no run to report")
    views = [View(run) for run in runs]
    references = _references(views)
    beside, below = (
        cell_table.read_in(views, columns) for columns in (cell_table.BESIDE, cell_table.BELOW)
    )
    sections = [
        _section(view, f"r{number}", references)
        | {"groups": cell_table.groups(view, references, beside=beside, below=below)}
        for number, view in enumerate(views)
    ]
    return template.render(
        "page.html.j2",
        script=template.Script.packaged("page.js"),
        references=references,
        facets=_facets(views),
        semantics=semantics and semantics_section(semantics, runs, figures=_links(sections[0])),
        total=sum(len(view.cells) for view in views),
        beside=beside,
        below=below,
        runs=sections,
        comparison=run_differences.compare(runs[0], runs[-1], by=rules) if len(runs) > 1 else None,
        environments=run_differences.environments(runs),
        data=embedded_data.embedded(views),
        selfchecks=_selfchecks(views, checks or {}),
        history=history.of_runs(runs, commit_url=commit_url) if len(runs) > 1 else None,
        advice=advice and advice_html(advice),
        explanation=explanation and _explained(explanation),
    )


def _explained(explanation: Explanation) -> dict[str, Markup]:
    """Return a figure for each way of taking a difference apart."""
    ways = {"module": differences(explanation), "operator": operator_differences(explanation)}
    return {
        way: inline(
            difference(panels, theme=PAGE),
            mark=f"explanation-{way}",
            label=f"where the difference comes from, by {way}",
        )
        for way, panels in ways.items()
    }


def write(
    runs: Run | Sequence[Run],
    path: Path,
    *,
    checks: Mapping[str, SelfCheck] | None = None,
    semantics: Behaviour | None = None,
    commit_url: str = "",
    rules: Rules | None = None,
    advice: Advice | None = None,
    explanation: Explanation | None = None,
) -> Path:
    """Write the page; raise `StoreError` where that cannot be."""
    template.check_place(path)
    html = render(
        runs,
        checks=checks,
        semantics=semantics,
        commit_url=commit_url,
        rules=rules,
        advice=advice,
        explanation=explanation,
    )
    return template.save(html, path)


def _facets(views: Sequence[View]) -> dict[str, list[str]]:
    """Return the axes of names in which the cells differ, the grad mode last, and their values.

    Numbers are sorted by instead.
    """
    named = sorted(
        (axis.name for axis in AXES.values() if not axis.number), key=lambda a: a == "grad_mode"
    )
    values = {
        axis: list(dict.fromkeys(getattr(cell, axis) for v in views for cell in v.cells))
        for axis in named
    }
    return {axis: several for axis, several in values.items() if len(several) > 1}


def _references(views: Sequence[View]) -> list[str]:
    """Return the modes that ratios can be taken to: those that any run set out to measure."""
    there = {cell.grad_mode for view in views for cell in view.cells}
    return [mode for mode in GRAD_MODES if mode in there] or [GRAD_MODES[0]]


def _selfchecks(views: Sequence[View], checks: Mapping[str, SelfCheck]) -> list[dict[str, object]]:
    """Return what the self-check of each device found on which the runs have cells, if it ran."""
    sections = []
    for device in dict.fromkeys(cell.device for view in views for cell in view.cells):
        figures, facts = checks.get(device, ((), {}))
        sections.append(
            {
                "device": device,
                "option": "" if device == CPU else f" --device {device}",
                "targets": device == CPU,  # of others, each line must hold
                "checks": figures,
                "facts": facts,
                "processor": processor(facts, device),
            }
        )
    return sections


def _section(view: View, mark: str, references: Sequence[str]) -> dict[str, object]:
    run = view.run
    facts = run.environment.facts
    devices = ("cpu", *(cell.device for cell in view.cells))
    everywhere = [one.facts for one in run.environments.values()] or [facts]
    names = dict.fromkeys(processor(each, d) for each in everywhere for d in devices)
    processors = [str(one) for one in names if one is not None]
    return {
        "mark": mark,
        "name": run.name,
        "started": run.header.started_at,
        "command": " ".join(run.header.command),
        "dropped": run.dropped,
        "unfinished": [str(block) for block in run.unfinished()],
        "machine": processors + ([f"torch {facts['torch']}"] if "torch" in facts else []),
        "cells": len(view.cells),
        "missing": headline.missing(view),
        "answer": headline.answer(view),
        "asides": headline.asides(view),
        "warnings": possible_interference(run),
        "noise": headline.noise(view),
        "strips": {
            reference: [
                (name, strips)
                for name, meter in (("time", TIME), ("memory", MEMORY))
                if (strips := headline.strips(view, meter, reference))
            ]
            for reference in references
        },
        "plates": charts.plates(view, references, mark=mark),
        "capacities": list(capacity.capacities(view)),
        "budgets": capacity.BUDGETS,
        "evaluations": evaluations.evaluations(view),
        "drawers": list(cell_table.drawers(view)),
        "reasons": list(run_sentences.reasons(run)),
        "unreadable": run_sentences.unreadable(run),
        "marks": run_sentences.prediction_marks(run),
        "kept": [*run_sentences.kept(run), *run_sentences.fused_attention(run)],
        "other_axes": other_axes.sentences(view),
        "spent": run_sentences.spent(run),
        "facts": run_differences.facts_of(run),
        "machines": run_differences.machines(run),
    }


def _links(section: Mapping[str, Any]) -> dict[str, str]:
    """Return where the figure of time and memory stands, by meter, if the section has it."""
    if not any(plate.name == "forest" for plate in section["plates"]):
        return {}
    return dict.fromkeys((TIME, MEMORY), f"#{section['mark']}-figure-forest")
