"""Possible interference: each symptom is reported when it is there, and only then."""

import html
import random
import re

import pytest
from builders import block, counted, environment, run_of, started, timed as timed_as

from gradbench import Cell, Measurement
from gradbench.analysis.diagnosis import (
    SYMPTOMS,
    before_a_run,
    diagnose,
    drift,
    possible_interference,
    spread,
)
from gradbench.cli.printing import print_run
from gradbench.exports import annotations, markdown
from gradbench.report import render

CELL = Cell(model="m", workload="inference", grad_mode="no_grad")
CALM = {
    "others_busy_cores": 0.1,
    "steal": 0.001,
    "switches_per_batch": 0.01,
    "minor_faults_per_step": 0.0,
}
GOOD_FACTS = {
    "others_busy_cores": 0.1,
    "steal": 0.0,
    "nice": 0,
    "cpu_governor": "performance",
    "torch_debug": False,
    "cores": 2,
}


def timed(values=(100,) * 90, iterations=1, **notes):
    return Measurement(
        cell=CELL,
        meter="step_time",
        unit="ns",
        values=tuple(values),
        iterations=iterations,
        exact=False,
        notes=CALM | notes,
    )


def test_a_calm_measurement_has_no_finding():
    assert diagnose(timed()) == []


@pytest.mark.parametrize(
    ("notes", "name", "words"),
    [
        ({"others_busy_cores": 1.5}, "other work", "1.5 cores busy"),
        ({"measured_beside": "cuda, cuda:2"}, "side by side", "blocks of 2 other devices"),
        ({"steal": 0.07}, "steal", "7%"),
        ({"switches_per_batch": 1.76}, "involuntary switches", "preempted 1.76 times on average"),
        ({"minor_faults_per_step": 480.0}, "page faults", "480 page faults"),
        ({"throttled_share": 0.5}, "throttling", "50%"),
    ],
)
def test_a_note_beyond_its_threshold_is_reported_with_a_remedy(notes, name, words):
    (finding,) = diagnose(timed(**notes))
    assert finding.name == name
    assert words in finding.sentence
    assert finding.remedy


def test_a_slowdown_on_the_way_is_drift_and_not_spread():
    values = [100] * 30 + [105] * 30 + [111] * 30
    (finding,) = diagnose(timed(values))
    assert finding.name == "drift"
    assert "11%" in finding.sentence


def test_no_percentage_exceeds_a_hundred():
    ever_slower = timed([100] * 30 + [200] * 30 + [350] * 30, switches_per_batch=1.76)
    sentences = [finding.sentence for finding in diagnose(ever_slower)]
    assert "times moved by a factor of 3.5 from the first third" in " ".join(sentences)
    percentages = [int(found) for one in sentences for found in re.findall(r"(\d+)%", one)]
    assert all(number <= 100 for number in percentages)


def test_drift_and_spread_are_of_steps_not_of_batches():
    batches = timed([100] * 30 + [300] * 30, iterations=(1,) * 30 + (3,) * 30)
    assert drift(batches) == 0
    assert spread(batches) == 1
    assert diagnose(batches) == []


def test_scattered_rounds_are_spread():
    shuffled = [100] * 80 + [200] * 20
    random.Random(0).shuffle(shuffled)
    assert [finding.name for finding in diagnose(timed(shuffled))] == ["spread"]


def test_a_note_in_words_is_no_number():
    assert diagnose(timed(steal="unknown: no such counter")) == []


def test_memory_is_not_diagnosed():
    exact = Measurement(
        cell=CELL, meter="peak_rss", unit="bytes", values=(1, 900), iterations=1, exact=False
    )
    assert diagnose(exact) == []


def test_every_symptom_has_a_sentence_with_its_value_and_a_remedy():
    for symptom in SYMPTOMS:
        assert symptom.words(symptom.threshold) in symptom.sentence.format(
            value=symptom.words(symptom.threshold)
        )
        assert symptom.remedy


def test_a_good_machine_shows_no_interference():
    assert before_a_run(GOOD_FACTS) == []


@pytest.mark.parametrize(
    ("fact", "value", "name"),
    [
        ("others_busy_cores", 1.2, "other work"),
        ("steal", 0.1, "steal"),
        ("nice", 15, "nice"),
        ("cpu_governor", "powersave", "governor"),
        ("torch_debug", True, "debug build"),
        ("gpu_compute_mode", 3, "compute mode"),
        ("gpu_compute_mode", 2, "compute mode"),
        ("cuda_settings", "CUDA_LAUNCH_BLOCKING=1 CUDA_MODULE_LOADING=LAZY", "launch blocking"),
        ("gpu_persistence", False, "persistence"),
    ],
)
def test_possible_interference_is_reported_before_a_run(fact, value, name):
    (finding,) = before_a_run(GOOD_FACTS | {fact: value})
    assert finding.name == name


def test_facts_that_are_unknown_are_no_interference():
    assert before_a_run({"cpu_governor": "unknown: no such file"}) == []


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"load_before": 1.5, "cores": 2}, "load: it was 1.50 on 2 cores"),
        ({"git_dirty": True}, "dirty tree"),
        ({"torch_debug": True}, "debug build"),
        ({"cpu_governor": "powersave"}, "governor"),
        ({"host": "mixed: a, b"}, "mixed machines: host is mixed: a, b"),
    ],
)
def test_what_the_environment_says_is_possible_interference(facts, words):
    assert possible_interference(run_of([started([]), environment()])) == []
    (line,) = possible_interference(run_of([started([]), environment(**facts)]))
    assert line.startswith(words)


def test_a_symptom_is_reported_once_with_the_blocks_that_show_it():
    cells = [c for size in (1, 2, 3) for c in block(["no_grad"], batch_size=size)]
    run = run_of([started(cells), *(timed_as(c, [100] * 90, steal=0.5) for c in cells)])
    (line,) = possible_interference(run)
    assert " in inference[cpu-mlp_tiny-b1] and 2 more blocks; " in line


def test_page_terminal_markdown_and_annotations_print_one_list(capsys):
    (cell,) = block(["no_grad"])
    leak = counted(cell, 64, meter="leaked")
    records = [
        started([cell], meters=("step_time", "leaked")),
        environment(cpu_governor="powersave", git_dirty=True, load_before=9.0, host="mixed: a, b"),
        timed_as(cell, [100] * 45 + [300] * 45, steal=0.5),
        leak,
    ]
    run = run_of(records)
    lines = possible_interference(run)
    assert len(lines) == 7
    print_run(run, "no_grad", verbose=True)
    terminal = capsys.readouterr().out
    page = html.unescape(render(run))
    written = [each.message for each in annotations.of_run(run)]
    summary = markdown.summary([run])
    for line in lines:
        assert line in page
        assert line in " ".join(terminal.split())
        assert line in written
        assert markdown.escaped(line) in summary
