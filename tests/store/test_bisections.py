"""Bisections on disk: what is written is read, and what nobody wrote is refused in one line."""

import json
from dataclasses import asdict, replace

import pytest

from gradbench.errors import StoreError
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.records.bisection import (
    Bisection,
    CellCounts,
    Commit,
    CountedCommit,
    CountedInstructions,
    TimedCell,
)
from gradbench.store import bisections

GOOD, FIRST, BAD = "a" * 40, "b" * 40, "c" * 40
CELL = Cell(model="nets.make", workload="inference", grad_mode="no_grad", batch_size=4)


def commit(name: str, *parents: str, subject: str = "a commit") -> Commit:
    return Commit(
        id=name,
        parents=parents,
        author="Ann",
        authored_at="2026-01-02T03:04:05+01:00",
        subject=subject,
    )


RECORD = Bisection(
    started_at="2026-01-02T03:04:05+00:00",
    asked="main~2..main",
    good=GOOD,
    bad=BAD,
    first_parent=False,
    paths=(),
    cells=(CELL,),
    sources={"nets.make": ModelSource(build="nets:make", input=("B,8",))},
    times="silent",
    threshold=0.03,
    processes=5,
    seed=0,
    commits=(commit(FIRST, GOOD, subject="caf\u00e9 \x1b[31m"), commit(BAD, FIRST)),
    border=(commit(GOOD, "d" * 40),),
    facts={"torch": "2.13.0"},
    counted=(
        CountedCommit(
            commit=GOOD,
            cells=(CellCounts(cell=CELL, operators={"aten.mm": 2}, nodes=3, saved_bytes=256),),
        ),
        CountedCommit(commit=FIRST, skipped="ImportError: no"),
    ),
    instructions=True,
    instruction_counts=(
        CountedInstructions(commit=BAD, cell=CELL, counts=(10**6, 2 * 10**6)),
        CountedInstructions(commit=FIRST, cell=CELL, why="killed by SIGSEGV"),
    ),
    timed=(TimedCell(base=GOOD, commit=BAD, cell=CELL, logs=(0.1, -0.2), means=(0.1, 0.0)),),
)


@pytest.fixture
def saved(tmp_path):
    with bisections.create(tmp_path) as file:
        file.save(RECORD)
    return file.path


def test_what_is_saved_is_loaded_and_each_save_takes_the_place_of_the_one_before(saved, tmp_path):
    assert bisections.load(saved) == RECORD
    file, _ = bisections.resume(tmp_path, "latest")
    with file:
        file.save(replace(RECORD, complete=True))
    assert bisections.load(saved).complete
    assert [one.name for one in saved.parent.iterdir()] == [saved.name]


def test_a_bisection_is_found_by_path_name_beginning_and_latest(saved, tmp_path):
    for name in (str(saved), saved.stem, saved.name, saved.stem[:12], "latest"):
        assert bisections.find(tmp_path, name).resolve() == saved.resolve()
    with bisections.create(tmp_path) as other:
        other.save(RECORD)
    assert bisections.find(tmp_path, "latest") == other.path
    with pytest.raises(StoreError, match="fits several bisections"):
        bisections.find(tmp_path, "2")
    for name in ("nowhere", "", "x" * 5000):
        with pytest.raises(StoreError, match="no bisection"):
            bisections.find(tmp_path, name)


def test_one_that_is_being_written_is_not_gone_on_with(tmp_path):
    with bisections.create(tmp_path) as file:
        file.save(RECORD)
        file.save(RECORD)
        with pytest.raises(StoreError, match="being written by another process"):
            bisections.resume(tmp_path, file.path.stem)
    bisections.resume(tmp_path, file.path.stem)


HOSTILE = {
    "a run": {"kind": "started"},
    "newer": {"schema": bisections.SCHEMA + 1},
    "an option": {"good": "--upload-pack=touch x"},
    "a short hash": {"bad": "abc"},
    "a parent from nowhere": {"commits": [commit(BAD, "e" * 40)]},
    "a commit that is an option": {"commits": [commit("-x" + "a" * 38, GOOD), commit(BAD, GOOD)]},
    "a commit twice": {"commits": [commit(BAD, GOOD), commit(BAD, GOOD)]},
    "no commits": {"commits": []},
    "the bad one not last": {"commits": [commit(BAD, GOOD), commit(FIRST, GOOD)]},
    "no border": {"border": []},
    "another time": {"started_at": "yesterday"},
    "cells of another kind": {"cells": [{"model": "x", "colour": "red"}]},
    "no cells": {"cells": []},
    "a count below 0": {
        "counted": [CountedCommit(commit=BAD, cells=(CellCounts(cell=CELL, nodes=-1),))]
    },
    "an operator below 0": {
        "counted": [CountedCommit(commit=BAD, cells=(CellCounts(cell=CELL, operators={"x": -1}),))]
    },
    "a count of elsewhere": {"counted": [CountedCommit(commit="f" * 40)]},
    "a count of another cell": {
        "counted": [
            CountedCommit(commit=BAD, cells=(CellCounts(cell=replace(CELL, batch_size=5)),))
        ]
    },
    "a time of elsewhere": {"timed": [TimedCell(base="f" * 40, commit=BAD, cell=CELL)]},
    "a time of another cell": {
        "timed": [TimedCell(base=GOOD, commit=BAD, cell=replace(CELL, batch_size=5))]
    },
    "a ratio beyond all": {"timed": [TimedCell(base=GOOD, commit=BAD, cell=CELL, logs=(1e3,))]},
    "a mean beyond all": {
        "timed": [TimedCell(base=GOOD, commit=BAD, cell=CELL, logs=(0.1,), means=(1e3,))]
    },
    "means of other replicates": {
        "timed": [TimedCell(base=GOOD, commit=BAD, cell=CELL, logs=(0.1, 0.2), means=(0.1,))]
    },
    "more replicates than are made": {
        "timed": [TimedCell(base=GOOD, commit=BAD, cell=CELL, logs=(0.1,) * 21)]
    },
    "instructions of elsewhere": {
        "instruction_counts": [CountedInstructions(commit="f" * 40, cell=CELL, counts=(1, 1))]
    },
    "instructions of another cell": {
        "instruction_counts": [
            CountedInstructions(commit=BAD, cell=replace(CELL, batch_size=5), counts=(1, 1))
        ]
    },
    "no instructions at all": {
        "instruction_counts": [CountedInstructions(commit=BAD, cell=CELL, counts=(0, 1))]
    },
    "instructions neither counted nor explained": {
        "instruction_counts": [CountedInstructions(commit=BAD, cell=CELL)]
    },
    "instructions of one side": {"instruction_counts": [{"commit": BAD, "counts": [1]}]},
    "more commits than are taken": {
        "commits": [
            {
                "id": f"{number:040x}",
                "parents": [],
                "author": "",
                "subject": "",
                "authored_at": "2026-01-02T03:04:05+01:00",
            }
            for number in range(20_001)
        ]
    },
    "a threshold": {"threshold": 7.0},
    "too few processes": {"processes": 1},
    "too many processes": {"processes": 10**9},
    "times of none known": {"times": "some"},
    "a model's source": {"sources": {"nets.make": {"build": "nets:make", "input": ["B,x"]}}},
}


@pytest.mark.parametrize("changed", HOSTILE.values(), ids=HOSTILE)
def test_what_no_bisection_can_hold_is_refused_in_one_line(saved, changed):
    row = json.loads(saved.read_text("utf-8"))
    saved.write_text(json.dumps(row | changed, default=asdict), "utf-8")
    with pytest.raises(StoreError) as caught:
        bisections.load(saved)
    assert "\n" not in str(caught.value)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"kind": NaN}'])
def test_what_is_no_json_object_is_refused_in_one_line(saved, content):
    saved.write_bytes(content)
    with pytest.raises(StoreError) as caught:
        bisections.load(saved)
    assert "\n" not in str(caught.value)


def test_a_date_that_git_has_and_python_has_not_is_read_again(tmp_path):
    dates = ("2005-04-07T22:13:13+51:30", "10000-01-01T00:01:40Z", "")
    for authored_at in dates:
        old = replace(commit(GOOD), authored_at=authored_at)
        with bisections.create(tmp_path) as file:
            file.save(replace(RECORD, border=(old,)))
        assert bisections.load(file.path).border == (old,)
