"""The page of a run on a GPU: clocks, reserve and energy are shown, and nothing of the CPU's."""

import re

import pytest
from builders import cell, environment, run_of, started, timed
from pages import Page

from gradbench.analysis.run_view import View
from gradbench.experiment.matrix import GRAD_MODES
from gradbench.records.measurements import PARTS, Breakdown, Measurement
from gradbench.report import render
from gradbench.report.figures.memory import parts_of

MIB = 2**20
WORKSPACE = 32 * MIB
FACTS = {"cpu": "a CPU", "gpu": "a GPU", "cuda": "13.0", "gpu_driver": "580.1"}
EXACT = {
    "peak_allocated": WORKSPACE + 900_000,
    "peak_requested": 880_000,
    "peak_transient": 500_000,
    "saved_for_backward": 300_000,
    "predicted_peak": 880_000,
    "leaked": 0,
}
ABOUT = {
    "peak_reserved": 36 * MIB,
    "fragmentation": 4 * MIB - 900_000,
    "device_process": 700 * MIB,
    "peak_rss": 900 * MIB,
}


def measured(member, meter, value, unit, **notes):
    exact = meter in EXACT
    values = (value,) if unit == "bytes" else tuple(value + i % 3 for i in range(12))
    return Measurement(
        cell=member, meter=meter, unit=unit, values=values, iterations=1, exact=exact, notes=notes
    )


def outcomes(mode, *, bound):
    member = cell(mode, device="cuda")
    yield timed(
        member,
        [400_000 + i % 3 for i in range(12)],
        bound=bound,
        sm_clock_mhz_min=1980,
        throttled_share=0.0,
    )
    yield measured(member, "host_time", 390_000, "ns")
    yield measured(member, "device_time", 34_000, "ns")
    yield measured(member, "energy", 90_000, "uJ")
    for meter, value in EXACT.items():
        yield measured(member, meter, value, "bytes", workspace_bytes=WORKSPACE)
    for meter, value in ABOUT.items():
        yield measured(member, meter, value, "bytes")
    sizes = dict.fromkeys(PARTS, 0) | {"parameters": 400_000, "saved": 300_000}
    sizes["unknown"] = WORKSPACE + 200_000
    yield Breakdown(
        cell=member,
        parts=sizes,
        first_parts=sizes,
        timeline={part: (size, size) for part, size in sizes.items()},
        phases=("forward", "forward"),
        modules={"0": 300_000},
        rounding_bytes=20_000,
    )


@pytest.fixture(scope="module")
def run():
    """A run of one block on a GPU, all meters read; the last mode's bound is not known."""
    found = [
        outcome
        for mode in GRAD_MODES
        for outcome in outcomes(
            mode, bound="unknown: never held" if mode == "inference_mode" else "host"
        )
    ]
    header = started(dict.fromkeys(o.cell for o in found), meters=[o.meter for o in found])
    return run_of([header, environment(**FACTS), *found])


@pytest.fixture(scope="module")
def html(run):
    return render(run)


def headings(html):
    table = html[html.index("Every cell</h2>") :]
    head = table[table.index("<thead>") : table.index("</thead>")]
    return [
        re.sub(r"\s+", " ", re.sub("<[^>]+>", "", one)).strip()
        for one in re.findall(r"<th.*?</th>", head, re.DOTALL)
    ]


def test_the_table_has_three_clocks_what_bounds_them_energy_and_the_reserve(html):
    names = headings(html)
    for name in (
        *("step time", "host time", "device time", "bound by", "energy"),
        *("peak", "reserved", "fragmentation", "device process"),
    ):
        assert name in names, names


def test_no_column_of_the_table_is_empty(html):
    body = html[html.index("Every cell</h2>") :]
    body = body[body.index("<tbody") : body.index("</tbody>")]
    rows = [
        [re.sub("<[^>]+>", "", one).strip() for one in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr.*?</tr>", body, re.DOTALL)
    ]
    assert len(rows) == len(GRAD_MODES)
    assert all(any(column) for column in zip(*rows, strict=True))


def test_the_reason_why_nobody_knows_the_bound_is_beside_it(html):
    assert re.search(r'title="never held"[^>]*>unknown</td>', html)
    assert re.search(r">host</td>", html)


@pytest.mark.parametrize("word", ["page fault", "malloc", "VmHWM", "valgrind", "CPU allocator"])
def test_a_page_about_a_gpu_has_no_words_of_the_cpu(html, word):
    assert word not in Page(html).text


def test_workspaces_are_named_and_no_bar_is_theirs(run, html):
    view = View(run)
    for member in view.cells:
        assert parts_of(view, member)["unknown"] == 200_000
        assert sum(parts_of(view, member).values()) == 900_000
    assert "+ 32 MiB workspaces" in html
