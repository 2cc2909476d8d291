"""Runs in the formats of other tools: every number arrives, no reason becomes one."""

import csv
import json
import math
import re
from dataclasses import asdict
from io import StringIO

import jsonschema
import pyperf
import pytest
from builders import (
    TORCH_SAYS,
    block,
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
from junitparser import JUnitXml

from gradbench.errors import Impossible, StoreError, UnknownName
from gradbench.exports import annotations, asv, junit, markdown, otava
from gradbench.exports.formats import FORMATS, export, write
from gradbench.exports.github_action_benchmark import BIGGER, SMALLER
from gradbench.exports.source_locations import SourceLocation
from gradbench.exports.verdict_file import Verdicts, read_verdicts
from gradbench.gate.figure_verdicts import FigureVerdict
from gradbench.records.measurements import Measurement
from gradbench.stats.estimates import Estimate, exact
from gradbench.stats.verdicts import Verdict

COMMIT = "0123456789" * 4
HOSTILE = 'a|b<script>"&%\n::error::x,y:z'
AT = SourceLocation("benchmarks/test_it.py", 12)


def measured(*, at=0, name="r1", protocol=1, slower=1.0, outcomes=(), **facts):
    """Return a run with numbers and reasons, of a commit."""
    outcomes = [
        *measured_block(step_ns={"no_grad": int(1500 * slower)}),
        counted(cell("no_grad"), 0, meter="saved_for_backward"),
        *refused_block(),
        *outcomes,
    ]
    meters = ("step_time", "peak_transient", "saved_for_backward")
    opening = started(
        dict.fromkeys(o.cell for o in outcomes),
        meters=meters,
        started_at=f"2026-01-02T03:04:{at:02d}+00:00",
        protocol=protocol,
    )
    known = {"git_commit": COMMIT, "host": "ci", "cpu": "X", "python": "3.11.7"} | facts
    return run_of([opening, environment(**known), *outcomes, ended()], name=name)


def content(name, *runs, file=None):
    """Return the one file of a format, or the one named."""
    files = export(name, runs).files
    if file is None:
        (file,) = files
    return files[file]


NO_NAN = {"parse_constant": lambda name: pytest.fail(f"{name} is not JSON")}


# Every format


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_takes_a_run_with_reasons_and_hostile_names(name):
    named = cell(model=HOSTILE, workload="inference")
    broken = skipped(cell("no_grad", model=HOSTILE), cause="crashed", reason=HOSTILE)
    files = export(name, [measured(outcomes=[timed(named, [5] * 12), broken])]).files
    assert files
    assert all(text.endswith("\n") for text in files.values())
    assert all(re.fullmatch(r"[\w.+/-]+", path) and ".." not in path for path in files)


@pytest.mark.parametrize(
    "name", ["github-action-benchmark", "bencher", "pyperf", "junit", "annotations"]
)
def test_a_format_of_one_run_refuses_two_and_none(name):
    for runs in ([], [measured(), measured(name="r2")]):
        with pytest.raises(StoreError, match=f"one run, not {len(runs)}"):
            export(name, runs)


@pytest.mark.parametrize("name", ["github-action-benchmark", "bencher", "pyperf", "asv", "otava"])
def test_a_run_without_a_number_is_refused_by_what_takes_only_numbers(name):
    facts = environment(git_commit=COMMIT)
    empty = run_of([started(block()), facts, *(skipped(one) for one in block())])
    with pytest.raises(StoreError, match="no number"):
        export(name, [empty])


@pytest.mark.parametrize("name", ["markdown", "junit", "annotations"])
def test_a_run_in_which_everything_broke_is_reported_by_what_takes_reasons(name):
    broken = [skipped(one, cause="crashed", reason="signal 11") for one in block()]
    assert "signal 11" in content(name, run_of([started(block()), environment(), *broken]))


@pytest.mark.parametrize("name", ["github-action-benchmark", "bencher", "pyperf", "asv", "otava"])
def test_what_has_no_number_is_left_out_and_reported(name):
    left_out = export(name, [measured()]).left_out
    assert sum("cannot train" in line for line in left_out) == 8
    assert all("training[" not in text for text in export(name, [measured()]).files.values())


def test_an_unknown_format_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'bencher'"):
        export("benchr", [measured()])


def test_files_are_written_into_a_folder_or_as_the_path(tmp_path):
    exported = export("bencher", [measured()])
    assert write(exported, tmp_path / "a/b.json", folder=False) == [tmp_path / "a/b.json"]
    assert write(exported, tmp_path / "c", folder=True) == [tmp_path / "c/bencher.json"]
    with pytest.raises(StoreError, match="choose another place with -o"):
        write(exported, tmp_path / "a/b.json/c", folder=False)


# github-action-benchmark


@pytest.mark.parametrize(("file", "direction"), [(SMALLER, "smaller"), (BIGGER, "bigger")])
def test_github_action_benchmark_takes_each_file(file, direction):
    entries = json.loads(content("github-action-benchmark", measured(), file=file), **NO_NAN)
    assert entries, "the action refuses an empty file"
    assert len({entry["name"] for entry in entries}) == len(entries)
    for entry in entries:
        assert (
            {"name", "unit", "value"} <= entry.keys() <= {"name", "unit", "value", "range", "extra"}
        )
        assert type(entry["value"]) in (int, float)
        assert math.isfinite(entry["value"])
        assert all(type(entry[key]) is str and entry[key] for key in ("name", "unit"))
        assert ("throughput" in entry["name"]) == (direction == "bigger")
        if "range" in entry:  # the action reads a number behind the sign
            assert float(entry["range"].removeprefix("± ")) >= 0


def test_github_action_benchmark_gets_times_bytes_and_throughput_as_they_are():
    files = export("github-action-benchmark", [measured()]).files
    smaller = {e["name"]: e for e in json.loads(files[SMALLER])}
    bigger = {e["name"]: e for e in json.loads(files[BIGGER])}
    no_grad = str(cell("no_grad"))
    time = smaller[f"{no_grad} step_time"]
    assert (time["value"], time["unit"]) == (pytest.approx(1582.5), "ns")
    assert smaller[f"{no_grad} peak_transient"]["value"] == 1024
    assert "range" not in smaller[f"{no_grad} peak_transient"]
    assert smaller[f"{no_grad} saved_for_backward"]["value"] == 0, "a true 0 is a number"
    rate = bigger[f"{no_grad} throughput"]
    assert rate["value"] == pytest.approx(8 / 1582.5e-9)


def test_without_step_times_there_is_no_file_of_what_should_be_large():
    files = export("github-action-benchmark", [run([counted(cell(), 64)])]).files
    assert list(files) == [SMALLER]


# Bencher


BENCHER = {  # what https://bencher.dev/bmf.json asks for, and the lengths that its docs name
    "type": "object",
    "minProperties": 1,
    "propertyNames": {"maxLength": 1024},
    "additionalProperties": {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"maxLength": 64, "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
        "additionalProperties": {
            "type": "object",
            "required": ["value"],
            "additionalProperties": False,
            "properties": {
                bound: {"type": "number"} for bound in ("value", "lower_value", "upper_value")
            },
        },
    },
}


def test_bencher_s_schema_takes_the_file():
    calls = Measurement(
        cell=cell(),
        meter="latency",
        unit="ns",
        values=tuple(range(1, 200)),
        iterations=1,
        exact=False,
    )
    benches = json.loads(content("bencher", measured(outcomes=[calls])), **NO_NAN)
    jsonschema.validate(benches, BENCHER)
    assert {"latency", "throughput", "latency-p99", "peak-transient"} <= set(benches[str(cell())])


def test_bencher_s_latency_is_the_step_in_ns_within_its_bounds():
    measures = json.loads(content("bencher", measured()))[str(cell("no_grad"))]
    latency = measures["latency"]
    assert latency["lower_value"] <= latency["value"] <= latency["upper_value"]
    assert latency["value"] == pytest.approx(1582.5)
    assert measures["throughput"]["value"] == pytest.approx(8 / 1582.5e-9)
    assert measures["peak-transient"] == {"value": 1024}


def test_the_schema_can_refuse():
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"a": {"b": {"value": None}}}, BENCHER)


# pyperf


def test_pyperf_loads_every_number_above_0_in_its_own_units():
    suite = pyperf.BenchmarkSuite.loads(content("pyperf", measured()))
    benchmarks = {benchmark.get_name(): benchmark for benchmark in suite.get_benchmarks()}
    assert len(benchmarks) == 8
    time = benchmarks[f"{cell('no_grad')} step_time"]
    assert time.get_unit() == "second"
    assert time.median() == pytest.approx(1582.5e-9)
    assert time.get_nvalue() == 12
    memory = benchmarks[f"{cell('no_grad')} peak_transient"]
    assert (memory.get_unit(), memory.get_values()) == ("byte", (1024,))
    assert suite.get_metadata()["hostname"] == "ci"


def test_pyperf_takes_no_0_and_no_energy_so_those_are_reported():
    energy = Measurement(
        cell=cell(), meter="energy", unit="uJ", values=(5, 6), iterations=1, exact=False
    )
    left_out = export("pyperf", [measured(outcomes=[energy])]).left_out
    assert f"{cell('no_grad')} saved_for_backward: pyperf takes no 0 bytes" in left_out
    assert f"{cell()} energy: pyperf has no unit uJ" in left_out


# asv


def test_asv_gets_a_benchmark_a_figure_and_a_parameter_for_the_mode():
    files = export("asv", [measured()]).files
    described = json.loads(files["benchmarks.json"], **NO_NAN)
    time = described["inference.cpu-mlp_tiny-b8.step_time"]
    assert (time["type"], time["unit"], time["param_names"]) == ("time", "seconds", ["grad_mode"])
    assert described["inference.cpu-mlp_tiny-b8.peak_transient"]["type"] == "peakmemory"
    (path,) = (name for name in files if name.count("/") and "machine.json" not in name)
    results = json.loads(files[path], **NO_NAN)
    assert results["commit_hash"] == COMMIT
    columns = dict(
        zip(
            results["result_columns"],
            results["results"]["inference.cpu-mlp_tiny-b8.step_time"],
            strict=True,
        )
    )
    assert columns["params"] == time["params"]
    assert columns["version"] == time["version"]
    values = dict(zip(columns["params"][0], columns["result"], strict=True))
    assert values["'no_grad'"] == pytest.approx(1582.5e-9)
    for low, value, high in zip(
        columns["stats_ci_99_a"], columns["result"], columns["stats_ci_99_b"], strict=True
    ):
        assert low <= value <= high


def test_asv_shows_a_mode_without_a_number_as_missing():
    partial = run_of(
        [started(block()), environment(git_commit=COMMIT), timed(cell("no_grad"), [5] * 12)]
    )
    files = asv.export([partial]).files
    (path,) = (name for name in files if name.count("/") and "machine.json" not in name)
    row = json.loads(files[path])["results"]["inference.cpu-mlp_tiny-b8.step_time"]
    assert row[0] == [None, None, pytest.approx(5e-9), None]


@pytest.mark.parametrize("name", ["asv", "otava"])
def test_models_whose_names_differ_only_in_what_a_file_name_cannot_hold_stay_apart(name):
    outcomes = [timed(cell(model=model), [5] * 12) for model in ("a:b", "a_b", "a/b")]
    files = export(name, [measured(outcomes=outcomes)]).files
    names = [*files, *json.loads(files.get("benchmarks.json", "{}"))]
    assert len({n for n in names if "a_b" in n and ("step_time" in n or "-times" in n)}) == 3


def test_asv_keeps_machines_apart_by_more_than_their_name():
    other = measured(name="r2", cpu="Y")
    folders = {
        name.partition("/")[0] for name in export("asv", [measured(), other]).files if "/" in name
    }
    assert len(folders) == 2


def test_asv_refuses_a_second_run_of_a_commit_and_one_without_a_commit():
    with pytest.raises(StoreError, match="r2 is the second of commit 01234567 on ci-"):
        asv.export([measured(at=1), measured(at=2, name="r2")])
    with pytest.raises(StoreError, match=r"no commit \(unknown: no git\)"):
        asv.export([measured(git_commit="unknown: no git")])


def test_asv_shows_the_latest_protocol_and_no_other():
    runs = [measured(protocol=2, at=5, git_commit="a" * 40), measured(protocol=1, at=1)]
    described = json.loads(asv.export(runs).files["benchmarks.json"])
    assert {d["version"] for n, d in described.items() if n != "version"} == {"protocol-2"}


# Otava


def rows(text):
    return list(csv.DictReader(StringIO(text)))


def test_otava_s_rows_are_runs_in_order_of_time_with_their_commits():
    runs = [measured(at=at, name=f"r{at}", git_commit=str(at) * 40) for at in (3, 1, 2)]
    table = rows(otava.export(runs).files["inference-cpu-mlp_tiny-b8-no_grad-times.csv"])
    assert [row["run"] for row in table] == ["r1", "r2", "r3"]
    assert [row["commit"][0] for row in table] == ["1", "2", "3"]
    assert float(table[0]["step_time"]) == pytest.approx(1582.5)


def test_otava_s_times_never_mix_machines_and_ratios_and_bytes_span_them():
    runs = [measured(at=1, name="r1"), measured(at=2, name="r2", host="other")]
    files = otava.export(runs).files
    times = [n for n in files if "no_grad-times" in n and n.endswith(".csv")]
    assert [len(rows(files[name])) for name in times] == [1, 1]
    spanning = rows(files["inference-cpu-mlp_tiny-b8-no_grad.csv"])
    assert [row["run"] for row in spanning] == ["r1", "r2"]
    assert float(spanning[0]["step_time_to_global_on"]) == pytest.approx(0.75, rel=1e-3)
    assert spanning[0]["peak_transient"] == "1024.0"


def test_otava_finds_no_hole_because_other_runs_are_another_test():
    extra = counted(cell(), 64, meter="saved_for_backward")
    runs = [measured(at=1, name="r1"), measured(at=2, name="r2", outcomes=[extra])]
    files = otava.export(runs).files
    tables = [
        rows(t) for n, t in files.items() if n.startswith("inference-cpu-mlp_tiny-b8-global_on")
    ]
    assert all(value for table in tables for row in table for value in row.values())
    assert sum("saved_for_backward" in table[0] for table in tables) == 1


def test_otava_never_mixes_protocols():
    runs = [measured(at=1, name="r1"), measured(at=2, name="r2", protocol=2)]
    files = otava.export(runs).files
    assert all(len(rows(text)) == 1 for name, text in files.items() if name.endswith(".csv"))


# JUnit


def cases(text):
    """Return the parsed test cases by name; the parser is the one of another project."""
    parsed = JUnitXml.fromstring(text.encode())
    return {f"{case.classname} {case.name}": case for suite in parsed for case in suite}


def test_junit_has_a_case_an_outcome_with_file_and_line():
    text = junit.export([measured()], locate=lambda _cell: AT).files["junit.xml"]
    found = cases(text)
    assert len(found) == len(measured().outcomes)
    case = found["inference[cpu-mlp_tiny-b8] no_grad step_time"]
    assert case.is_passed
    assert "1.58 µs [" in case.system_out
    assert 'file="benchmarks/test_it.py" line="12"' in text
    counts = JUnitXml.fromstring(text.encode())
    assert [(s.tests, s.failures, s.errors, s.skipped) for s in counts] == [
        (9, 0, 0, 0),
        (8, 0, 0, 8),
    ]


def test_junit_says_torch_s_words_for_what_cannot_train_and_errs_where_a_step_broke():
    broken = skipped(cell(batch_size=1), cause="crashed", reason="killed by signal 11")
    found = cases(content("junit", measured(outcomes=[broken])))
    (refused,) = found["training[cpu-mlp_tiny-b8] no_grad step_time"].result
    assert (refused.type, refused.message) == ("cannot_train", TORCH_SAYS)
    (error,) = found["inference[cpu-mlp_tiny-b1] global_on step_time"].result
    assert type(error).__name__ == "Error"
    assert error.message == "killed by signal 11"


def test_junit_survives_what_xml_cannot_hold():
    broken = skipped(cell(batch_size=1), cause="failed", reason="a\0b\x1b[31m<&>\ufffe\n'\"")
    (error,) = cases(content("junit", measured(outcomes=[broken])))[
        "inference[cpu-mlp_tiny-b1] global_on step_time"
    ].result
    assert error.message == "a\\x00b\\x1b[31m<&>\\ufffe '\""


# Verdicts


def figure_verdict(verdict, member=None, *, meter="step_time", point=1.1, reason="why", **fields):
    change = Estimate(point=point, low=point - 0.01, high=point + 0.01, confidence=0.95, rounds=9)
    return FigureVerdict(
        **{
            "cell": member or cell("no_grad"),
            "meter": meter,
            "verdict": verdict,
            "change": change,
            "baseline": 1000.0,
            "candidate": 1100.0,
            "unit": "ns",
            "reason": reason,
        }
        | fields
    )


EVERY = [figure_verdict(verdict, meter=f"{verdict.name.lower()}_time") for verdict in Verdict]


def test_junit_of_verdicts_fails_what_is_worse_and_skips_what_is_inconclusive():
    found = cases(junit.judged(EVERY, locate=lambda _cell: AT))
    results = {
        name.split()[-1]: [type(r).__name__ for r in case.result] for name, case in found.items()
    }
    assert results == {
        "better_time": [],
        "same_time": [],
        "worse_time": ["Failure"],
        "within_time": [],
        "inconclusive_time": ["Skipped"],
    }
    (failure,) = found["inference[cpu-mlp_tiny-b8] no_grad worse_time"].result
    assert "1 µs → 1.1 µs, ×1.100 [1.090, 1.110]" in failure.message
    assert "why" in failure.message


def test_annotations_err_at_file_and_line_and_escape_what_github_would_read():
    row = figure_verdict(Verdict.WORSE, cell("no_grad", model="a,b:c"), reason="50% more\r\n::x")
    (line,) = annotations.judged([row], locate=lambda _cell: AT).splitlines()
    head, _, message = line.removeprefix("::error ").partition("::")
    properties = dict(part.split("=", 1) for part in head.split(","))
    assert properties == {
        "file": "benchmarks/test_it.py",
        "line": "12",
        "title": "inference[cpu-a%2Cb%3Ac-b8-no_grad] step_time worse",
    }
    assert message == "1 µs → 1.1 µs, ×1.100 [1.090, 1.110]: 50%25 more ::x"


def test_annotations_without_a_place_have_no_file():
    assert annotations.judged([figure_verdict(Verdict.WORSE)]).startswith("::error title=")


def test_only_worse_and_inconclusive_are_annotated():
    kinds = [line.split()[0] for line in annotations.judged(EVERY).splitlines()]
    assert kinds == ["::error", "::warning"]


@pytest.mark.parametrize(("number", "shown"), [(10, 10), (11, 10), (500, 10)])
def test_at_most_ten_annotations_of_a_kind_and_the_last_counts_the_rest(number, shown):
    table = [figure_verdict(Verdict.WORSE, cell(batch_size=i + 1)) for i in range(number)]
    lines = annotations.judged([*table, figure_verdict(Verdict.INCONCLUSIVE)]).splitlines()
    assert sum(line.startswith("::error") for line in lines) == shown
    assert sum(line.startswith("::warning") for line in lines) == 1
    rest = [line for line in lines if "job summary" in line]
    assert rest == (
        [f"::error title={number - 9} more::the job summary has them all"] if rest else []
    )
    assert bool(rest) == (number > 10)


def test_a_run_s_annotations_name_what_broke_once_a_cell_and_possible_interference():
    broken = [
        skipped(cell(batch_size=1), meter=meter, cause="out_of_memory", reason="no room")
        for meter in ("step_time", "latency")
    ]
    busy = timed(cell(batch_size=2), [1000] * 12, others_busy_cores=1.5)
    lines = content("annotations", measured(outcomes=[*broken, busy])).splitlines()
    assert lines[0] == (
        "::error title=inference[cpu-mlp_tiny-b1-global_on] out of memory::"
        "no room (step_time, latency)"
    )
    assert [line.partition("::")[0] for line in lines[1:]] == [""] * (len(lines) - 1)
    assert any(line.startswith("::warning") and "1.5 cores busy" in line for line in lines)


# Markdown


def tables_of(text):
    """Return the rows of every Markdown table, each as its cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_markdown_has_each_mode_s_ratio_with_interval_and_verdict():
    found = tables_of(content("markdown", measured()))
    (row,) = (r for r in found if r[0] == "inference[cpu-mlp_tiny-b8]" and "[" in r[2])
    assert row[1] == "2.11 µs"
    assert row[4] == "0.500 [0.500, 0.500] better"
    assert row[5].startswith("[")


def test_markdown_has_memory_to_the_byte_and_why_a_number_is_missing():
    text = content("markdown", measured())
    (row,) = (
        r for r in tables_of(text) if r[:2] == ["inference[cpu-mlp_tiny-b8]", "peak_transient"]
    )
    assert row[2:] == ["4,096 B", "1,024 B", "1,024 B", "1,024 B"]
    assert "### What could not be measured, and why" in text
    assert TORCH_SAYS.replace("_", "_") in text


def test_markdown_names_possible_interference():
    text = content(
        "markdown", measured(cpu_governor="powersave", torch_debug=True, host="mixed: a, b")
    )
    section = text.partition("### Possible interference")[2]
    for words in ("governor is powersave", "debug build", "mixed machines: host"):
        assert words in section


def test_markdown_of_a_run_that_was_cut_short_names_its_blocks():
    cut = run_of([started(block()), environment(), timed(cell(), [5] * 12)], sealed=False)
    text = content("markdown", cut).partition("### What could not be measured, and why")[2]
    assert "- inference[cpu-mlp_tiny-b8]: the run was cut short" in text


def test_every_row_of_a_table_has_its_columns_whatever_the_names_hold():
    broken = skipped(cell("no_grad", model=HOSTILE), cause="crashed", reason=HOSTILE)
    text = content("markdown", measured(outcomes=[timed(cell(model=HOSTILE), [5] * 12), broken]))
    width = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        columns = len(re.findall(r"(?<!\\)\|", line))
        assert columns == (width or columns)
        width = columns
    assert "<script>" not in text


def test_markdown_shows_verdicts_first_worst_first_and_folds_what_is_the_same():
    text = markdown.summary([measured()], verdicts=Verdicts(tuple(EVERY)))
    counts = "1 worse, 1 inconclusive, 1 within tolerance, 1 better, 1 same"
    assert text.startswith(f"## gradbench: {counts}\n")
    words = [row[0] for row in tables_of(text)[:8]]
    assert words[2:6] == ["**worse**", "inconclusive", "within tolerance", "better"]
    assert "<details><summary>1 the same</summary>" in text
    assert "×1.100 [1.090, 1.110]" in text
    assert text.index("same_time") < text.index("## Run r1")


@pytest.mark.parametrize("limit", [2_000, 8_000, 1024 * 1024])
def test_markdown_keeps_to_the_limit_and_says_how_much_had_no_room(limit):
    outcomes = [o for size in range(1, 60) for o in measured_block(batch_size=size + 10)]
    broken = skipped(cell(batch_size=5), cause="crashed", reason="signal 11 äöü")
    verdicts = Verdicts(tuple(EVERY))
    text = markdown.summary(
        [measured(outcomes=[*outcomes, broken])], verdicts=verdicts, limit=limit
    )
    assert len(text.encode()) <= limit
    assert "**worse**" in text
    assert ("have no room here" in text) == (limit < 100_000)
    if limit >= 8_000:
        assert "signal 11" in text, "reasons come before rows"


def test_a_change_of_one_byte_shows():
    row = figure_verdict(
        Verdict.WORSE, meter="saved_for_backward", unit="bytes", change=exact(1.000_000_1)
    )
    text = "".join(markdown.judged(Verdicts((row,))))
    assert "1,000 B → 1,100 B" in text


def test_a_verdict_without_numbers_is_reported_by_its_reason():
    row = figure_verdict(
        Verdict.INCONCLUSIVE, change=None, baseline=None, candidate=None, reason="not comparable"
    )
    assert annotations.judged([row]).endswith("::not comparable\n")
    assert "not comparable" in junit.judged([row])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("inference[cpu-mlp_tiny-b1]", "inference[cpu-mlp_tiny-b1]"),
        ("[0.98, 1.01]", "[0.98, 1.01]"),
        ("__init__ of a_b", r"\_\_init\_\_ of a_b"),
        ("[x](http://e)", r"[x\](http://e)"),
        ("[x]: http://e", r"\[x]: http://e"),
        ("a|b `c` *d* #1 ~e~", r"a\|b \`c\` \*d\* \#1 \~e\~"),
        ("<b>&", "&lt;b&gt;&amp;"),
        ("- a", r"\- a"),
        ("1. a", r"1\. a"),
        ("1.5 ms", "1.5 ms"),
        ("---", r"\---"),
        ("two\n\nlines", "two lines"),
    ],
)
def test_markdown_shows_text_as_it_is(text, shown):
    assert markdown.escaped(text) == shown


# Verdicts from a file


def plain(rows, **more):
    """Return rows as ``gate --json`` prints them."""
    return {
        "status": 1,
        "verdicts": [{**asdict(row), "id": str(row.cell)} for row in rows],
        **more,
    }


def written(tmp_path, content):
    path = tmp_path / "gate.json"
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_verdicts_come_back_from_json_as_they_went(tmp_path):
    rows = [*EVERY, figure_verdict(Verdict.SAME, change=None, baseline=None, candidate=None)]
    skipped_over = [
        {
            "cell": cell(mode).axes(),
            "meter": "step_time",
            "why": "not comparable",
            "reason": "host was a",
        }
        for mode in ("no_grad", "global_on")
    ]
    found = read_verdicts([written(tmp_path, plain(rows, not_compared=skipped_over))])
    assert list(found.rows) == rows
    assert found.not_compared == (
        "not comparable: host was a: inference[cpu-mlp_tiny-b8-no_grad] step_time and 1 more",
    )
    text = markdown.summary([], verdicts=found)
    assert "### What has no verdict, and why\n\n- not comparable: host was a: " in text


@pytest.mark.parametrize(
    "content",
    [[], {}, {"verdicts": [{}]}, {"verdicts": None}, plain(EVERY) | {"not_compared": [1]}],
)
def test_a_file_without_verdicts_is_refused_in_one_line(content, tmp_path):
    with pytest.raises(StoreError, match="holds no verdicts") as refused:
        read_verdicts([written(tmp_path, content)])
    assert "\n" not in str(refused.value)
    with pytest.raises(StoreError, match="cannot read"):
        read_verdicts([tmp_path / "nowhere.json"])


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_tells_verdicts_or_says_that_it_cannot(name):
    verdicts = Verdicts(tuple(EVERY))
    if FORMATS[name].judged is None:
        with pytest.raises(Impossible, match="markdown, annotations, junit have"):
            export(name, [], verdicts=verdicts)
        return
    (text,) = export(name, [], verdicts=verdicts).files.values()
    assert "worse" in text


def test_that_nothing_was_judged_is_reported():
    assert markdown.summary([], verdicts=Verdicts()) == "## gradbench: nothing was judged\n\n"
