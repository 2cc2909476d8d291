"""A run as the terminal shows it."""

from io import StringIO

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
    skipped,
    started,
    timed,
)
from rich.console import Console

from gradbench.terminal import BETTER, WIDE, WORSE, run_tables

ON, OFF, NO_GRAD, INFERENCE = block()


def lines(shown_run, *, reference="global_on", width=120):
    """Return the lines of the tables, plain."""
    console = Console(file=StringIO(), width=width, color_system=None)
    console.print(run_tables(shown_run, reference=reference, width=width))
    return console.file.getvalue().splitlines()


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
    assert line == "inference_mode 1 µs 0.500 [0.500, 0.500] 1 KiB 0.250 not measured 8 M/s"


def test_the_reference_s_own_ratio_is_one():
    line = line_of("no_grad", lines(run(measured_block(rounds=1)), reference="no_grad"))
    assert line == "no_grad 1.5 µs 1 1 KiB 1 not measured 5.33 M/s"


def test_the_title_has_the_control_where_there_is_one():
    with_control, without = measured_block(), measured_block(["global_on", "no_grad"])
    assert "A/A control [1.000, 1.000]" in "".join(lines(run(with_control)))
    assert "A/A control" not in "".join(lines(run(without)))


def test_a_mode_that_could_not_shows_its_cause_instead_of_numbers():
    shown = lines(run(refused_block()))
    for mode in ("global_off", "inference_mode"):
        assert line_of(mode, shown) == f"{mode} cannot train cannot train not measured"


def test_what_a_cut_run_did_not_come_to_is_not_measured():
    cut = run_of([started([ON, NO_GRAD]), environment(), timed(ON, [5])], sealed=False)
    assert line_of("no_grad", lines(cut)).count("not measured") == 3


def test_a_ratio_to_0_bytes_or_to_nothing_is_left_blank():
    shown = lines(run([counted(ON, 0), counted(NO_GRAD, 64), skipped(ON), timed(NO_GRAD, [100])]))
    assert line_of("no_grad", shown) == "no_grad 100 ns 64 B not measured 80 M/s"


def control(ratio):
    """Return the timings of a block's control, off by a factor."""
    return [timed(OFF, [int(1000 * ratio)] * 12), timed(NO_GRAD, [1000] * 12)]


@pytest.mark.parametrize(
    ("on", "off_by", "style"),
    [
        (1200, 1.0, BETTER),
        (900, 1.0, WORSE),
        (1002, 1.0, None),
        (1200, 1.5, None),
        (900, 1.5, None),
    ],
)
def test_a_ratio_is_coloured_only_beyond_the_block_s_noise_floor(on, off_by, style):
    drawn = styles(run([timed(ON, [on] * 12), *control(off_by)]))
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


def test_in_a_wide_terminal_every_column_is_there():
    shown = lines(run(measured_block(step_ns={"no_grad": 123_456_789})), width=WIDE)
    headings = next(line for line in shown if "step time" in line)
    assert headings.split() == ["step", "time", "×", "memory", "×", "saved", "throughput"]
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
