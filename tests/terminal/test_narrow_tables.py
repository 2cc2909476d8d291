"""Tables in eighty columns: no name and no figure is cut off or folded."""

from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from builders import cell
from rich.console import Console

from gradbench.gate.figure_verdicts import FigureVerdict
from gradbench.gate.result import NotCompared
from gradbench.gate.result_text import not_compared_lines
from gradbench.history.series import Series
from gradbench.records.allocations import PeakBreakdown
from gradbench.records.measurements import PARTS
from gradbench.records.predictions import Prediction
from gradbench.stats.estimates import Estimate
from gradbench.stats.verdicts import Verdict
from gradbench.terminal.prediction_tables import prediction_tables
from gradbench.terminal.run_tables import WIDE
from gradbench.terminal.series_table import table
from gradbench.terminal.verdict_tables import verdict_tables

MEMBER = cell("inference_mode", model="encoder_d2_w64", batch_size=8)
REASON = "worse beyond the noise of both runs, by a test over the whole table, and so on"


def lines(*shown, width=80):
    console = Console(file=StringIO(), width=width, color_system=None)
    for one in shown:
        console.print(one)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [80, 109, 160])
def test_a_verdict_keeps_its_cell_its_figures_and_its_reason_whole(width):
    change = Estimate(point=1.1, low=1.05, high=1.15, confidence=0.95, rounds=9)
    one = FigureVerdict(
        cell=MEMBER,
        meter="step_time",
        verdict=Verdict.WORSE,
        change=change,
        baseline=1e6,
        candidate=1.1e6,
        unit="ns",
        reason=REASON,
    )
    shown = lines(*verdict_tables([one], width=width), width=width)
    assert max(map(len, shown)) <= width
    assert "…" not in "".join(shown)
    assert any(str(MEMBER) in line for line in shown)
    (figures,) = (line for line in shown if "step_time" in line)
    assert "1 ms" in figures
    assert "1.1 ms" in figures
    assert "[+5.0%, +15.0%]" in figures
    assert REASON.rsplit(maxsplit=1)[-1] in shown[-1]


@pytest.mark.parametrize("width", [80, WIDE])
def test_a_prediction_s_last_column_is_there(width):
    parts = dict.fromkeys(PARTS, 123 * 2**18)
    breakdown = PeakBreakdown(parts, "forward", {}, {}, (), ())
    known = Prediction(MEMBER, breakdown, 2**20, (), 0.1)
    shown = lines(
        prediction_tables({MEMBER: known}, reference="inference_mode", width=width), width=width
    )
    assert max(map(len, shown)) <= width
    assert any(line.endswith("other") for line in shown)
    assert "…" not in "".join(shown)


def test_a_series_in_a_narrow_terminal_has_its_cell_on_a_line_of_its_own():
    one = Series(
        cell=MEMBER,
        meter="step_time",
        unit="ns",
        reference="",
        machine="here",
        protocol="2",
        exact=False,
        values=np.array([1000.0, 1010.0]),
        labels=("a", "b"),
        started=("2026-01-01", "2026-01-02"),
        changes=(),
    )
    shown = lines(table([one, replace(one, values=np.array([1000.0]))], width=80))
    assert shown[0] == shown[3] == str(MEMBER)
    assert "step_time on here" in shown[1]
    assert "2 points" in shown[2]
    assert "1 point," in shown[5]


def test_one_cell_more_is_no_plural():
    members = [replace(MEMBER, batch_size=size) for size in range(1, 6)]
    missing = [NotCompared(cell=one, meter="step_time", why="new", reason="new") for one in members]
    assert not_compared_lines(missing[:4])[0].endswith(" and 1 more cell")
    assert not_compared_lines(missing)[0].endswith(" and 2 more cells")
