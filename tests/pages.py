"""Runs whose pages are tested, and a page taken apart."""

import json
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from builders import (
    block,
    broken_down,
    cell,
    counted,
    ended,
    environment,
    measured_block,
    refused_block,
    run,
    run_of,
    skipped,
    started,
    timed,
)

from gradbench.analysis.bisection import Findings
from gradbench.analysis.commit_graph import Graph
from gradbench.records.bisection import Bisection, CellCounts, Commit, CountedCommit, TimedCell
from gradbench.report import bisection

ON, OFF, NO_GRAD, INFERENCE = block()
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'-->]]>"
LONG = "shop.networks." + "very_deep_" * 18 + "net:build"

CUT = run_of(
    [
        started([*block(), *block(batch_size=64)], meters=("step_time", "peak_transient")),
        environment(),
        *measured_block(),
        timed(cell(batch_size=64), [1, 2]),
    ],
    sealed=False,
    dropped="20260102T030405Z-abcd.jsonl.part: dropped 13 bytes from line 9 on: cut or damaged",
)


def bisected():
    """Return the page of a bisection whose every text of others wants to be markup."""
    ids = [f"{number:040x}" for number in range(1, 6)]
    commits = [
        Commit(
            id=one,
            parents=(before,),
            author=HOSTILE,
            authored_at="2026-01-02T03:04:05+00:00",
            subject=f"{HOSTILE} {number}",
        )
        for number, (before, one) in enumerate(pairwise(["0" * 40, *ids]))
    ]
    known = {
        ids[0]: CellCounts(cell=ON, operators={"aten.mm": 2}, saved_bytes=100),
        ids[3]: CellCounts(cell=ON, operators={"aten.mm": 3}, saved_bytes=900),
        ids[4]: CellCounts(cell=ON, operators={"aten.mm": 3, HOSTILE: 1}, saved_bytes=900),
    }
    record = Bisection(
        started_at="2026-01-02T03:04:05+00:00",
        asked=HOSTILE,
        good=ids[0],
        bad=ids[-1],
        first_parent=False,
        paths=(HOSTILE,),
        cells=(ON, NO_GRAD),
        sources={},
        times="all",
        threshold=0.03,
        processes=3,
        seed=0,
        commits=tuple(commits[1:]),
        border=(commits[0],),
        counted=(
            *(CountedCommit(commit=one, cells=(counts,)) for one, counts in known.items()),
            CountedCommit(commit=ids[0], cells=(known[ids[0]],)),
            *(CountedCommit(commit=one, skipped=HOSTILE) for one in ids[1:3]),
        ),
        timed=(TimedCell(base=ids[0], commit=ids[4], cell=ON, logs=(0.2,) * 6),),
    )
    found = Findings(record, Graph(record.commits, record.border))
    files = {ids[3]: [(HOSTILE, "+1 -1")]}
    link = "https://example.invalid/commit/{}".format
    return bisection.render(found, files, name="20260102T030405Z-abcd", link=link)


def with_breakdowns(*, device="cpu", model="mlp_tiny"):
    """Return a run whose peaks are broken down, reserved and predicted."""
    first = run(measured_block(device=device, model=model))
    members = block(device=device, model=model)
    more = [counted(member, 9000, meter="peak_reserved") for member in members]
    more += [counted(member, 5000, meter="predicted_peak") for member in members]
    more += [
        broken_down(member, parameters=3000, saved=2000 * (member.grad_mode == "global_on"))
        for member in members
    ]
    return run_of([*first.records[:-1], *more, first.records[-1]])


RUNS = {
    "normal": run([*measured_block(), *measured_block(batch_size=64), *refused_block()]),
    "all-skipped": run(refused_block()),
    "one-cell": run([timed(ON, [100] * 12), counted(ON, 64)]),
    "one-mode": run(
        [o for size in (1, 8, 64) for o in measured_block(["no_grad"], batch_size=size)]
    ),
    "cut": CUT,
    "started-only": run_of([started(block())], sealed=False),
    "no-cells": run_of([started([]), environment(), ended()]),
    "no-rounds": run([timed(member, []) for member in block()]),
    "one-round": run([timed(member, [5]) for member in block()]),
    "zero-bytes": run([counted(member, 0) for member in block()]),
    "unreadable": run(
        skipped(member, meter="peak_rss", cause="unreadable", reason="no VmHWM")
        for member in block()
    ),
    "long-name": run([o for size in (1, 8) for o in measured_block(model=LONG, batch_size=size)]),
    "every-axis": run(
        measured_block(
            device="cuda:1",
            dtype="bfloat16",
            threads=2,
            memory_format="channels_last",
            compile="default",
        )
    ),
    "cpu-and-cuda": run([*measured_block(), *measured_block(device="cuda")]),
    "breakdowns": with_breakdowns(),
    "odd-fact": run_of([started([]), environment(load=float("nan"))]),
    "two-runs": [run(measured_block(), name="a"), run(measured_block(), name="b")],
}


class Page(HTMLParser):
    """A parsed page: elements with their attributes, and the text outside style and scripts."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.pieces, self.style, self.scripts = [], [], [], "", []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        elif self.open[-1:] == ["script"]:
            self.scripts.append(data)
        else:
            self.pieces.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    @property
    def data(self):
        return json.loads(self.scripts[0], parse_constant=pytest.fail)

    def every(self, attribute):
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)
