"""What a terminal shows, as somebody new reads it: what to try, few notes, examples a line each."""

import itertools
import re
from dataclasses import replace

import pytest
from builders import (
    block,
    broken_down,
    cell,
    ended,
    environment,
    measured_block,
    run,
    run_of,
    skipped,
    started,
    timed,
    write_run,
)
from typer.testing import CliRunner

from gradbench import advisor
from gradbench.analysis import format_units
from gradbench.cli import app
from gradbench.cli.app import TRY
from gradbench.cli.gate import conclusion
from gradbench.cli.printing import NOTES, PROSE, print_run
from gradbench.exit_status import ExitStatus
from gradbench.gate.result import GateResult, NotCompared
from gradbench.records.advice import Study

COMMANDS = sorted({one.name or one.callback.__name__ for one in app.registered_commands})


def said(*arguments, columns="80"):
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": columns})
    assert result.exit_code == 0, result.output or repr(result.exception)
    return result.output


def test_the_name_of_the_command_alone_is_no_error_and_shows_three_commands_to_try():
    shown = said()
    assert len(TRY) == 3
    for command, _ in TRY:
        assert command in shown
        name, subcommand, *_ = command.split()
        assert name == "gradbench"
        assert subcommand in (*COMMANDS, "--help")


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_in_help_stand_one_a_line_under_a_heading(command):
    lines = [line.strip() for line in said(command, "--help").splitlines()]
    assert not any("|  gradbench" in line or "Example:" in line for line in lines)
    if "Examples" in lines:
        below = [line for line in lines[lines.index("Examples") + 1 :] if line]
        assert below
        assert all(line.startswith(f"gradbench {command}") for line in below if "--" in line[:11])
        assert any(line.startswith("gradbench ") for line in below)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_paragraph_of_help_breaks_only_where_the_screen_ends(command):
    about = said(command, "--help", columns="900").partition("╭")[0]
    lines = [line.strip() for line in about.splitlines()]
    both = [line for line, below in itertools.pairwise(lines) if line and below]
    assert both == []


@pytest.mark.parametrize("command", COMMANDS)
def test_no_name_of_an_option_is_cut_in_help(command):
    assert "…" not in said(command, "--help")


@pytest.mark.parametrize("command", ["run", "advise"])
def test_the_example_of_an_input_is_whole_in_help(command):
    assert "'ids=8,128:int64<30522'" in said(command, "--help")


@pytest.mark.parametrize("command", ["advise", "explain"])
def test_a_command_about_one_model_lists_no_option_that_it_would_refuse(command):
    listed = said(command, "--help")
    assert "--batch-size" in listed
    assert not any(f"{option} " in listed for option in ("--workload", "--grad-mode", "--preset"))
    result = CliRunner().invoke(app, [command, "--model", "mlp_tiny", "--workload", "training"])
    assert result.exit_code == ExitStatus.USAGE


def test_advise_shows_what_the_model_raised_as_run_does_once(monkeypatch, tmp_path):
    theirs = '  File "nets.py", line 3, in forward\n    raise ValueError("no")\nValueError: no'
    lost = [
        replace(skipped(one, cause="failed", reason="ValueError: no"), traceback=theirs)
        for one in block()
    ]
    answer = Study(run=run(lost), cells=tuple(block()))
    monkeypatch.setattr(advisor, "study", lambda *_, **__: answer)
    result = CliRunner().invoke(app, ["advise", "--model", "mlp_tiny", "--results", str(tmp_path)])
    assert result.exit_code == ExitStatus.NOTHING_MEASURED
    assert result.output.count(theirs) == 1


def disturbed_run():
    """Return a run about which there is more to say than a screen should hold."""
    broken = [skipped(one, cause="crashed", reason="by signal 11") for one in block(batch_size=64)]
    refused = [skipped(one, meter="step_time") for one in block(["no_grad"], workload="training")]
    calm = measured_block()
    loud = timed(cell("no_grad", batch_size=2), [100] * 45 + [300] * 45, steal=0.5)
    outcomes = [*refused, *calm, loud, *broken]
    facts = environment(git_dirty=True, load_before=9.0, cpu_governor="powersave")
    header = started(
        dict.fromkeys(o.cell for o in outcomes), meters=("step_time", "peak_transient")
    )
    return run_of([header, facts, *outcomes, ended()])


def notes(shown):
    """Return the notes beneath the sentence that a run ends its tables with, each on one line."""
    lines = re.sub(r"\n  (?! )", " ", shown).splitlines()
    last = max(i for i, line in enumerate(lines) if line.startswith(("On cpu", "Between the two")))
    return lines[last + 1 :]


def test_a_run_ends_with_a_few_notes_the_worst_first_and_where_the_time_went(tmp_path):
    write_run(disturbed_run(), tmp_path)
    shown = said("show", "--results", str(tmp_path))
    few = notes(shown)
    assert len(few) == NOTES
    assert few[0].startswith("crashed: ")
    assert few[-3].endswith("more notes: --verbose, and on the page")
    assert few[-2].startswith("cannot train: training[cpu-mlp_tiny-b8-no_grad]: ")
    assert "gradbench's own overhead" in few[-1]
    everything = notes(said("show", "--verbose", "--results", str(tmp_path)))
    assert len(everything) == NOTES - 1 + int(few[-3].split()[0])
    assert everything[: NOTES - 3] == few[:-3]
    assert everything[-2:] == few[-2:]


def test_a_run_names_the_command_that_shows_what_it_left_out(capsys):
    print_run(disturbed_run(), "global_on", more="gradbench show --verbose")
    said_of_notes = [one for one in capsys.readouterr().out.splitlines() if "more note" in one]
    assert [one.partition(": ")[2] for one in said_of_notes] == [
        "gradbench show --verbose, and on the page"
    ]


def test_the_headline_of_the_page_stands_under_the_tables(tmp_path):
    write_run(disturbed_run(), tmp_path)
    shown = said("show", "--results", str(tmp_path))
    assert "no_grad and inference_mode cut the memory that an inference step adds" in re.sub(
        r"\n  (?! )", " ", shown
    )


def test_who_saves_most_is_named_by_path_and_class():
    one = broken_down(cell(), saved=64)
    assert one.titled() == {"0": 64}  # as runs do that did not write classes down
    assert replace(one, classes={"0": "Conv2d"}).titled() == {"0 Conv2d": 64}


def test_help_lists_the_commonest_options_first_and_groups_the_others():
    lines = said("run", "--help").splitlines()
    panels = [line.split("─")[1].strip() for line in lines if line.startswith("╭─")]
    assert panels == [
        *("Options", "Your own model", "Further axes", "Measuring", "Records", "Clusters")
    ]
    options = [line.split()[1] for line in lines if line.startswith("│ --")]
    assert options[:5] == ["--model", "--batch-size", "--workload", "--grad-mode", "--device"]


@pytest.mark.parametrize(
    ("floor", "words"), [(0.003, "±0.3%"), (0.126, "±13%"), (8.46, "a factor of 9.5")]
)
def test_a_noise_floor_is_no_percentage_beyond_a_hundred(floor, words):
    assert format_units.noise(floor) == words


def test_reasons_that_nobody_can_mend_are_counted_with_the_commonest_however_many_notes(tmp_path):
    made = disturbed_run()
    refused = [
        *(skipped(one, cause="impossible", reason="no head") for one in block(batch_size=128)),
        skipped(cell("inference_mode", workload="training")),
    ]
    cells = dict.fromkeys(o.cell for o in (*made.outcomes, *refused))
    write_run(
        run_of([replace(made.header, cells=tuple(cells)), *made.records[1:], *refused]), tmp_path
    )
    few = notes(said("show", "--results", str(tmp_path)))
    assert len(few) == NOTES
    assert few[-2] == (
        "6 cells without figures that cannot be had: 4 impossible: no head; 1 other reason"
    )
    everything = notes(said("show", "--verbose", "--results", str(tmp_path)))
    assert few[-2] in everything
    assert not [line for line in few if line.startswith("impossible: ")]
    assert [line for line in everything if line.startswith("impossible: ")]


def test_a_reason_that_is_said_in_short_is_not_said_in_full_beside_it(tmp_path):
    whys = ("no head", "no graph")
    refused = [skipped(cell(model=why), cause="impossible", reason=why) for why in whys]
    write_run(run([*measured_block(), *refused]), tmp_path)
    for arguments, times in ((), 1), (("--verbose",), 2):
        shown = " ".join(notes(said("show", *arguments, "--results", str(tmp_path))))
        assert shown.count(": no head") == times


def test_what_goes_into_a_pipe_is_as_wide_as_is_asked_for_and_no_line_is_broken_twice(tmp_path):
    write_run(disturbed_run(), tmp_path)
    shown = said("show", "--results", str(tmp_path), columns="80").splitlines()
    assert max(map(len, shown)) <= 80
    legend = next(i for i, line in enumerate(shown) if line.startswith("× is the median of"))
    broken = " ".join(shown[legend : legend + 2])
    assert broken.endswith("where they differ, the machine was disturbed: trust ×.")


def test_prose_is_no_wider_than_tables_where_there_is_no_terminal(tmp_path):
    write_run(disturbed_run(), tmp_path)
    shown = said("show", "--verbose", "--results", str(tmp_path), columns=None)
    prose = notes(shown)
    assert (
        max(map(len, prose))
        > PROSE
        >= max(map(len, shown[shown.index("crashed: ") :].splitlines()))
    )


def test_where_nothing_was_measured_the_reason_is_that_of_the_times():
    """What no meter can read on a device is no reason why nothing was measured."""
    whys = [("host_time", "unreadable: on the CPU")] * 3 + [("step_time", "the budget ended")]
    silent = tuple(
        NotCompared(cell=cell(), meter=meter, why="no number", reason=reason)
        for meter, reason in whys
    )
    result = GateResult(figure_verdicts=(), not_compared=silent, measured=0)
    said = conclusion(result, ExitStatus.NOTHING_MEASURED)
    assert said == "nothing measured: the budget ended"
