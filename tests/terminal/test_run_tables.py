"""A run as the terminal shows it."""

from dataclasses import replace
from io import StringIO
from itertools import pairwise

import pytest
from builders import (
    block,
    cell,
    counted,
    environment,
    measured_block,
    refused_block,
    run,
    run_of,
    sequence,
    skipped,
    started,
    timed,
)
from rich.console import Console

from gradbench.analysis.headline import answer
from gradbench.records.allocations import PeakBreakdown
from gradbench.records.measurements import PARTS
from gradbench.records.predictions import Fit, NoPrediction, Prediction
from gradbench.terminal.prediction_tables import fit_tables, prediction_tables, scaling_tables
from gradbench.terminal.run_tables import BETTER, WIDE, WORSE, run_tables

ON, OFF, NO_GRAD, INFERENCE = block()


def lines(shown_run, *, reference="global_on", width=120):
    """Return the lines of the tables, plain."""
    return printed(run_tables(shown_run, reference=reference, width=width), width=width)


def printed(tables, *, width=120):
    """Return the lines of anything that can be printed, plain and without spaces at their ends."""
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(tables)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def line_of(mode, shown):
    """Return the words of a mode's one line, single-spaced."""
    (line,) = (line for line in shown if line.strip().startswith(mode))
    return " ".join(line.split())


def styles(shown_run, *, reference="global_on"):
    """Return the style of each word that is drawn in one."""
    console = Console(width=120)
    return {
        segment.text.strip(): str(segment.style)
        for segment in console.render(run_tables(shown_run, reference=reference))
        if segment.style and segment.text.strip()
    }


def test_a_block_is_a_title_and_a_line_a_mode():
    shown = lines(run([*measured_block(), *measured_block(batch_size=64)], name="r1"))
    assert shown[0].strip() == "run r1"
    titles = [line for line in shown if line.startswith("inference[")]
    assert [title.split()[0] for title in titles] == [
        "inference[cpu-mlp_tiny-b8]",
        "inference[cpu-mlp_tiny-b64]",
    ]
    assert sum(line.strip().startswith("inference_mode") for line in shown) == 2


def test_times_are_per_step_with_ratio_memory_and_throughput():
    line = line_of("inference_mode", lines(run(measured_block(rounds=1))))
    assert line == "inference_mode 1 µs 0.500 [0.500, 0.500] 1 KiB 0.250 8 M/s"


def test_a_run_of_other_meters_shows_its_own_not_two_columns_without_a_figure():
    meters = ("peak_allocated", "saved_for_backward", "leaked")
    peaks = [counted(ON, 4096, meter=meters[0]), counted(INFERENCE, 1024, meter=meters[0])]
    saved = [counted(ON, 512, meter=meters[1]), counted(INFERENCE, 0, meter=meters[1])]
    measured = run_of([started([ON, INFERENCE], meters=meters), environment(), *peaks, *saved])
    shown = lines(measured)
    assert line_of("global_on", shown) == "global_on 4 KiB 1 512 B 1"
    assert line_of("inference_mode", shown) == "inference_mode 1 KiB 0.250 0 B 0.000"
    assert "peak allocated" in shown[3]
    assert "saved for backward" in shown[3]
    assert shown[-1] == "On the page alone: leaked."
    assert answer(measured) == [
        "Neither step_time nor peak_transient was asked for, which this answer is about."
    ]


def test_the_reference_s_own_ratio_is_one():
    line = line_of("no_grad", lines(run(measured_block(rounds=1)), reference="no_grad"))
    assert line == "no_grad 1.5 µs 1 1 KiB 1 5.33 M/s"


def test_the_title_has_the_control_where_there_is_one():
    with_control, without = measured_block(), measured_block(["global_on", "no_grad"])
    assert "A/A control [1.000, 1.000]" in "".join(lines(run(with_control)))
    assert "A/A control" not in "".join(lines(run(without)))


def test_a_mode_that_could_not_shows_its_cause_instead_of_numbers():
    shown = lines(run(refused_block()))
    for mode in ("global_off", "inference_mode"):
        assert line_of(mode, shown) == f"{mode} cannot train cannot train"


def test_a_block_of_which_nothing_can_be_measured_here_has_no_table():
    absent = [
        skipped(one, cause="unavailable", reason="no CUDA")
        for workload in ("inference", "decode")
        for one in block(device="cuda", workload=workload)
    ]
    shown = lines(run([*measured_block(), *absent]))
    assert not any("[cuda" in line for line in shown)
    assert "2 blocks of which nothing can be measured here: no table" in shown
    assert line_of("no_grad", shown)
    assert [line.strip() for line in lines(run(absent, name="r1"))] == [
        "run r1",
        "",
        "2 blocks of which nothing can be measured here: no table",
    ]


def test_what_a_cut_run_did_not_come_to_is_not_measured():
    meters = ("step_time", "peak_transient", "saved_for_backward")
    first = started([ON, NO_GRAD], meters=meters)
    cut = run_of([first, environment(), timed(ON, [5])], sealed=False)
    assert line_of("no_grad", lines(cut)).count("not measured") == 3


def test_a_meter_that_was_not_asked_for_has_no_column():
    shown = lines(run([timed(ON, [5]), timed(NO_GRAD, [5])]))
    assert "not measured" not in "".join(shown)
    assert not any(heading in shown[3] for heading in ("memory", "saved in step"))
    asked = run_of([started([ON], meters=("step_time", "saved_for_backward")), timed(ON, [5])])
    assert "saved in step" in lines(asked)[3]


def test_a_ratio_to_0_bytes_or_to_nothing_is_left_blank():
    shown = lines(run([counted(ON, 0), counted(NO_GRAD, 64), skipped(ON), timed(NO_GRAD, [100])]))
    assert line_of("no_grad", shown) == "no_grad 100 ns 64 B 80 M/s"


def control(ratio):
    """Return the timings of a block's control, apart by a factor."""
    return [timed(OFF, [int(1000 * ratio)] * 12), timed(NO_GRAD, [1000] * 12)]


@pytest.mark.parametrize(
    ("on", "factor", "style"),
    [
        (1200, 1.0, BETTER),
        (900, 1.0, WORSE),
        (1002, 1.0, None),
        (1200, 1.5, None),
        (900, 1.5, None),
    ],
)
def test_a_ratio_is_coloured_only_beyond_the_block_s_noise_floor(on, factor, style):
    drawn = styles(run([timed(ON, [on] * 12), *control(factor)]))
    found = [s for text, s in drawn.items() if text.startswith(f"{1000 / on:.3f} [")]
    assert found == ([style] if style else [])


def test_memory_is_coloured_at_any_difference_for_it_is_exact():
    drawn = styles(
        run([counted(ON, 100_000), counted(NO_GRAD, 99_990), counted(INFERENCE, 200_000)])
    )
    assert drawn["1.000"] == BETTER
    assert drawn["2.000"] == WORSE


@pytest.mark.parametrize("width", [80, 90, WIDE - 1])
def test_in_a_narrow_terminal_every_line_fits_and_two_columns_go(width):
    shown = lines(run(measured_block(step_ns={"no_grad": 123_456_789})), width=width)
    assert max(map(len, shown)) <= width
    assert not any("saved" in line.split() or "throughput" in line for line in shown)
    assert "…" not in "".join(shown)


SAVED = ("saved", "in", "step")


def test_in_a_wide_terminal_every_column_is_there():
    saved = [counted(one, 123_456_789, meter="saved_for_backward") for one in block()]
    measured = run([*measured_block(step_ns={"no_grad": 123_456_789}), *saved])
    shown = lines(measured, width=WIDE)
    headings = next(line for line in shown if "step time" in line)
    assert headings.split() == ["step", "time", "×", "memory", "×", *SAVED, "throughput"]
    assert max(map(len, shown)) <= WIDE
    assert "…" not in "".join(shown)


def test_the_legend_names_the_reference():
    assert "ratio to no_grad" in "".join(lines(run(measured_block()), reference="no_grad"))


def test_a_model_s_name_is_text_not_markup():
    named = "[red]net[/red]:[/nothing]"
    assert f"inference[cpu-{named}-b8]" in "".join(lines(run([timed(cell(model=named), [5])])))


@pytest.mark.parametrize("records", [[started([])], [started(block()), environment()]])
def test_a_run_without_outcomes_is_shown_too(records):
    assert lines(run_of(records, sealed=False))[0].startswith("run ")


# Predictions


def predicted(cell, *, parameters=2048, saved=0, other=1024):
    """Return a prediction of a cell whose parameters and inputs of 512 B are there before."""
    parts = dict.fromkeys(PARTS, 0) | {
        "parameters": parameters,
        "inputs": 512,
        "saved": saved,
        "other": other,
    }
    breakdown = PeakBreakdown(parts, "forward", {"aten::addmm": other}, {}, (), ())
    return Prediction(cell, breakdown, parameters + 512, (), 0.1)


def test_a_predicted_block_is_a_title_and_a_line_a_mode_with_its_parts():
    """2048 + 512 + 2048 + 1024 = 5632 bytes with a graph, 3584 without: 0.636 of them."""
    tables = prediction_tables(
        {ON: predicted(ON, saved=2048), NO_GRAD: predicted(NO_GRAD)}, reference="global_on"
    )
    shown = printed(tables)
    assert "inference[cpu-mlp_tiny-b8]" in shown
    ((above, headings),) = (
        (first.split(), line.split()) for first, line in pairwise(shown) if "before" in line
    )
    assert above == ["saved"]  # at peak: two lines, or the last column has no room
    assert headings == [
        *("peak", "×", "before", "adds", "params", "grads", "optim", "at", "peak", "other"),
    ]
    assert line_of("global_on", shown) == (
        "global_on 5.5 KiB 1.000 2.5 KiB 3 KiB 2 KiB 2 KiB 1 KiB"
    )
    assert line_of("no_grad", shown) == "no_grad 3.5 KiB 0.636 2.5 KiB 1 KiB 2 KiB 1 KiB"
    assert max(map(len, printed(tables, width=WIDE))) <= WIDE
    assert "…" not in "".join(printed(tables, width=WIDE))


def test_ratios_of_predictions_are_taken_within_their_block_to_the_reference():
    small, large = cell("no_grad"), cell("no_grad", batch_size=64)
    shown = printed(
        prediction_tables(
            {
                ON: predicted(ON, other=4608),
                small: predicted(small),
                large: predicted(large, other=7680),
            },
            reference="no_grad",
        )
    )
    assert [line.split()[3] for line in shown if "KiB" in line] == ["2.000", "1.000", "1.000"]


def test_without_the_reference_a_prediction_has_no_ratio():
    shown = printed(prediction_tables({NO_GRAD: predicted(NO_GRAD)}, reference="global_on"))
    assert line_of("no_grad", shown) == "no_grad 3.5 KiB 2.5 KiB 1 KiB 2 KiB 1 KiB"


def test_what_cannot_be_predicted_has_none_in_its_row():
    reason = NoPrediction("compiled [code] allocates by its own plan")
    tables = prediction_tables({ON: predicted(ON), OFF: reason}, reference="global_on")
    assert line_of("global_off", printed(tables)) == "global_off none"


def test_where_the_reference_has_no_prediction_others_have_no_ratio():
    shown = printed(
        prediction_tables(
            {ON: NoPrediction("no"), NO_GRAD: predicted(NO_GRAD)}, reference="global_on"
        )
    )
    assert line_of("no_grad", shown) == "no_grad 3.5 KiB 2.5 KiB 1 KiB 2 KiB 1 KiB"


# Lines


def test_lines_over_batches_say_slope_rest_and_how_much_more_fits():
    peaks = {
        cell(mode, batch_size=batch): 2048 + slope * batch
        for mode, slope in (("global_on", 3072), ("no_grad", 1024))
        for batch in (1, 8)
    }
    shown = printed(scaling_tables(peaks, reference="global_on"))
    title = "inference[cpu-mlp_tiny] over batch size 1 to 8: peak = intercept + slope × size"
    assert title in shown
    (headings,) = (line for line in shown if "intercept" in line and "max error" in line)
    assert headings.split() == [
        "slope",
        "intercept",
        "max",
        "error",
        "exponent",
        "batch",
        "×",
        "global_on",
    ]
    assert line_of("global_on", shown) == "global_on 3 KiB/sample 2 KiB 0.0% 1.000"
    assert line_of("no_grad", shown) == "no_grad 1 KiB/sample 2 KiB 0.0% 3.000"
    other = printed(scaling_tables(peaks, reference="no_grad"))
    assert line_of("global_on", other).endswith("0.0% 0.333")


def test_lines_over_the_sizes_of_a_model_have_their_units_and_no_batch():
    deep = {cell(model=f"mlp_d{d}_w8"): 1024 + 2048 * d for d in (1, 2, 3)}
    wide = {cell(model=f"mlp_d9_w{w}"): 16 * w * w for w in (32, 64)}
    fine = {cell(model=f"cnn_d1_w1_r{r}"): 1024 * r for r in (8, 16)}
    shown = printed(scaling_tables(deep | wide | fine, reference="global_on"))
    titles = [line.partition(":")[0] for line in shown if " over " in line]
    assert titles == [
        "inference[cpu-mlp_d1_w8-b8] over depth 1 to 3",
        "inference[cpu-mlp_d9_w32-b8] over width 32 to 64",
        "inference[cpu-cnn_d1_w1_r8-b8] over resolution 8 to 16",
    ]
    rows = [" ".join(line.split()) for line in shown if line.startswith("  global_on")]
    assert rows[0] == "global_on 2 KiB/layer 1 KiB 0.0%"
    # 16 to 64 KiB over 32 channels: 1.5 KiB each, and a power of two
    assert rows[1] == "global_on 1.5 KiB/channel -32 KiB 0.0% 2.00"
    assert rows[2].startswith("global_on 1 KiB/pixel of side ")
    assert rows[2].endswith(" 0.0% 1.00")


def test_a_line_that_misses_its_points_says_by_how_much():
    peaks = {cell(batch_size=batch): 100 * batch**2 for batch in (1, 2, 4)}
    (row,) = (line for line in printed(scaling_tables(peaks, reference="no_grad")) if "/" in line)
    off, power = row.split()[-2:]
    assert float(off.removesuffix("%")) > 5
    assert power == "2.00"


@pytest.mark.parametrize("peaks", [{}, {ON: 5}, {ON: 5, NO_GRAD: 6}])
def test_cells_without_a_size_that_varies_make_no_table_of_lines(peaks):
    assert scaling_tables(peaks, reference="global_on") is None


# Batches that fit

BUDGET = 1000
ONE, ONE_NO_GRAD = cell(batch_size=1), cell("no_grad", batch_size=1)


def fits(*found, measured=None, reference="global_on", width=160):
    shown = printed(fit_tables(dict(found), measured or {}, reference=reference), width=width)
    _, title, headings, *rows = (" ".join(line.split()) for line in shown)
    assert title == f"inference[cpu-mlp_tiny]: the largest batch; × is to {reference}"
    return headings, rows


def test_the_largest_batch_is_reported_with_its_peak_and_the_next_ones():
    headings, rows = fits(
        (ONE, Fit(ONE, BUDGET, 1200, 990, 1010)),
        (ONE_NO_GRAD, Fit(ONE_NO_GRAD, BUDGET, 3600, 1000, 1001)),
    )
    assert headings == "batch × its peak one sample more"
    assert rows == [
        "global_on 1,200 1.000 990 B (99.00%) 1,010 B (10 B over)",
        "no_grad 3,600 3.000 1,000 B (100.00%) 1,001 B (1 B over)",
    ]


@pytest.mark.parametrize("mode", ["global_on", "inference_mode"])
def test_the_largest_batches_fit_eighty_columns_and_no_mode_is_folded(mode):
    gib = 2**30
    member = cell(mode, model="a_model_with_a_name_that_is_long", batch_size=1)
    fit = Fit(member, 80 * gib, 16_777_216, 80 * gib - 1, 80 * gib + 250 * 2**20)
    shown = printed(fit_tables({member: fit}, {}, reference=mode), width=80)
    assert max(map(len, shown)) <= 80
    assert "…" not in "".join(shown)
    (row,) = (line for line in shown if "16,777,216" in line)
    assert row.split()[0] == mode
    assert row.rstrip().endswith("over)")


def test_a_batch_of_none_and_one_without_end_are_reported_as_such():
    _, rows = fits(
        (ONE, Fit(ONE, BUDGET, 0, None, 1500)),
        (ONE_NO_GRAD, Fit(ONE_NO_GRAD, BUDGET, 2**24, 900, None)),
    )
    assert rows == [
        "global_on 0 1.46 KiB (500 B over)",
        "no_grad 16,777,216 or more 900 B (90.00%) no limit found",
    ]


def test_a_cell_that_cannot_be_fitted_is_none_and_nobodys_reference():
    _, rows = fits(
        (ONE, NoPrediction("cannot")), (ONE_NO_GRAD, Fit(ONE_NO_GRAD, BUDGET, 7, 900, 1100))
    )
    assert rows[0] == "global_on none"
    assert rows[1] == "no_grad 7 900 B (90.00%) 1.07 KiB (100 B over)"


def test_what_was_measured_stands_beside_what_was_predicted():
    at, above = (cell(batch_size=batch) for batch in (7, 8))
    measured = {
        at: counted(at, 2048, meter="peak_allocated"),
        above: skipped(above, meter="peak_allocated", cause="out_of_memory"),
    }
    found = (
        (ONE, Fit(ONE, BUDGET, 7, 900, 1100)),
        (ONE_NO_GRAD, Fit(ONE_NO_GRAD, BUDGET, 0, None, 9)),
    )
    headings, rows = fits(*found, measured=measured)
    assert headings.endswith("its peak one sample more measured measured at one more")
    assert rows[0].endswith("1.07 KiB (100 B over) 2 KiB out of memory")
    assert rows[1].endswith("no_grad 0 0.000 9 B (0.90%) not measured")


@pytest.mark.parametrize("width", [80, 120])
def test_where_tokens_are_made_a_table_has_first_token_rate_cache_and_growth(width):
    timed_cells = [
        outcome
        for workload in ("prefill", "decode", "generate")
        for outcome in measured_block(
            workload=workload, new_tokens=4, iterations=1, step_ns={"inference_mode": 1_000_000}
        )
    ]
    members = block(workload="generate", new_tokens=4)
    more = [sequence(one, token=2048, saved=1024 * (one == members[0])) for one in members]
    whole = run(timed_cells)
    shown = lines(run_of([*whole.records, *more], name="r1"), width=width)
    assert max(map(len, shown)) <= width
    (start,) = (place for place, line in enumerate(shown) if line.startswith("tokens["))
    assert shown[start + 1].split() == ["first", "each", "tokens", "a", "token", "left"]
    table = shown[start + 3 : start + 7]
    # 1.055 ms is the median of the rounds, and 8 sequences of 4 tokens are made in that time
    assert line_of("inference_mode", table).split("inference_mode ")[1] == (
        "1.05 ms 1.05 ms 30.3 k/s 6 KiB 2 KiB 0 B"
    )
    assert line_of("global_on", table).endswith("3 KiB 0 B")
    assert any("first token: a prefill" in line for line in shown[start + 7 :])


def test_a_table_of_tokens_says_where_a_cache_lies_twice_and_where_tokens_take_from_it():
    members = block(workload="generate", new_tokens=6)
    grown, slides = (sequence(one, tokens=6, token=1024) for one in members[:2])
    twice = replace(grown, parts={**grown.parts, "cache": 11 * 1024})
    slides = replace(slides, parts={**slides.parts, "cache": 3})
    cut = replace(slides, timeline={**slides.timeline, "cache": (0, 9, 9, 8, 9, 3, 0, 0)})
    shown = lines(run([twice, cut]), width=80)
    assert max(map(len, shown)) <= 80
    said = "global_on: at the peak the old cache and the new one, 11 KiB together"
    assert [line.strip() for line in shown if "old cache" in line] == [said]
    assert any("lets go of more than it adds" in line for line in shown)


def test_where_no_tokens_are_made_there_is_no_table_of_them():
    assert not any("first token" in line for line in lines(run(measured_block())))
