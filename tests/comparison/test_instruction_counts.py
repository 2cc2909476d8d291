"""Instructions of two versions under valgrind: counted in turns, or a reason in their place."""

import contextlib
import random
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from builders import cell

from gradbench.analysis.operation_changes import LEAST
from gradbench.comparison import (
    checkouts,
    counted_steps,
    instruction_counts,
    interleaved_sides,
)
from gradbench.comparison.budget import Budget
from gradbench.comparison.instruction_counts import InstructionCounter
from gradbench.comparison.process import Failed, Lost
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replicate_results import Results
from gradbench.comparison.replication import Replicator
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.runner import callgrind

CELLS = [cell(batch_size=size) for size in (1, 2, 3)]


class Answers:
    """A process that writes the counts of two sides for each cell, or fails as it is given to."""

    versions = (0, 1)
    name = "both"

    def __init__(self, log, fails):
        self.log, self.fails = log, fails

    def ask(self, *, batch_size, instructions):
        assert instructions
        self.log.append(batch_size)
        if batch_size in self.fails:
            raise self.fails[batch_size]
        return {"dumps_of": batch_size}


@pytest.fixture
def counter(monkeypatch):
    """Return a function that makes a counter of cells whose processes fail as given."""
    monkeypatch.setattr(
        callgrind,
        "read_dumps",
        lambda _, dumps: {
            f"{side} {what}": [1000 + 100 * side if what == "step" else 10] * 11
            for side in (0, 1)
            for what in ("step", "empty")
        },
    )

    def made(*, fails=None, apart=(), seconds=float("inf")):
        log = []
        results = Results(apart=dict.fromkeys(apart, "as asked"))

        @contextlib.contextmanager
        def started(versions, cells, **how):
            log.append(("start", len(versions)))
            yield Answers(log, fails or {})

        replicator = SimpleNamespace(
            results=results,
            processes=SimpleNamespace(
                versions=("base", "candidate"),
                started=started,
                asked=lambda one: {"batch_size": one.batch_size},
            ),
        )
        return InstructionCounter(replicator, budget=Budget(seconds), say=lambda _: None), log

    return made


def found_of(counter_):
    results = counter_._replicator.results
    return (
        {
            one.batch_size: tuple(side["instructions"] for side in sides)
            for one, sides in results.operations.items()
        },
        {one.batch_size: why for one, why in results.uncounted.items()},
    )


def test_each_cell_of_one_process_has_the_counts_of_both_sides(counter):
    made, log = counter()
    made.count(CELLS)
    assert found_of(made) == (dict.fromkeys((1, 2, 3), (990, 1090)), {})
    assert log == [("start", 2), 1, 2, 3]


def test_a_process_that_is_lost_costs_its_cell_and_another_goes_on(counter):
    made, log = counter(fails={2: Lost("both", "killed by SIGSEGV")})
    made.count(CELLS)
    counts, reasons = found_of(made)
    assert (set(counts), reasons) == ({1, 3}, {2: "killed by SIGSEGV"})
    assert log == [("start", 2), 1, 2, ("start", 2), 3]


def test_a_step_that_raises_costs_its_cell_alone(counter):
    made, log = counter(fails={1: Failed("both", "ValueError: no")})
    made.count(CELLS)
    assert found_of(made)[1] == {1: "ValueError: no"}
    assert log == [("start", 2), 1, 2, 3]


def test_nothing_is_begun_that_the_budget_does_not_hold(counter):
    made, log = counter(seconds=20)  # a start is taken to last longer
    made.count(CELLS)
    assert found_of(made) == ({}, dict.fromkeys((1, 2, 3), instruction_counts.OUT_OF_TIME))
    assert log == []


def test_what_does_not_repeat_is_not_counted_and_the_reason_is_the_cell_s(counter):
    made, log = counter()
    made.count([cell(threads=2), cell(compile="default")])
    reasons = list(made._replicator.results.uncounted.values())
    assert "2 threads wait for one another by spinning" in reasons[0]
    assert reasons[1] == "to compile under valgrind takes minutes"
    assert log == []


def test_without_valgrind_there_is_one_line(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert instruction_counts.obstacle() == (
        "valgrind is not on the PATH: install it to count instructions"
    )


def test_sides_are_counted_in_turns_and_draw_the_same_numbers(monkeypatch):
    turns = SimpleNamespace(now=None)
    turns.give = lambda index: setattr(turns, "now", index)
    drawn = [[], []]

    def built(_sides, index, _asked):
        def step():
            assert turns.now == index
            drawn[index].append(torch.rand(1).item())

        arm = SimpleNamespace(step=step, held=torch.no_grad)
        return arm, SimpleNamespace(clear_gradients=lambda: None), None

    entry = SimpleNamespace(
        Counter=SimpleNamespace(of=lambda arm, index, ask: SimpleNamespace(visit=arm.step)),
        Requests=lambda: SimpleNamespace(start=lambda: None),
        ROUNDS=2,
        WARM_UP_STEPS=3,
    )
    sides = SimpleNamespace(entries=[None, entry], trees=[0, 1], turns=turns)
    monkeypatch.setattr(counted_steps.gc, "disable", lambda: None)
    counted_steps.counted(sides, {"share": False}, built, interleaved_sides)
    assert drawn[0] == drawn[1] == drawn[0][:1] * 5


def test_a_gradbench_that_cannot_count_says_so():
    sides = SimpleNamespace(entries=[SimpleNamespace()], trees=[0])
    with pytest.raises(RuntimeError, match="this version of gradbench cannot count"):
        counted_steps.counted(sides, {}, None, None)


NETS = """
from torch import nn

class Net(nn.Sequential):
    def forward(self, x):
        for _ in range({turns}):
            pass
        return super().forward(x)

def make():
    return Net(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))

def equal():
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(instruction_counts.obstacle()), reason=instruction_counts.obstacle())
@pytest.mark.parametrize(
    "one_process",
    [True, pytest.param(False, marks=pytest.mark.thorough)],
    ids=["one process", "pairs"],
)
def test_work_between_operators_shows_in_instructions_and_equal_sides_agree(tmp_path, one_process):
    measuring = tmp_path / "measuring"
    measuring.mkdir()
    (measuring / "gradbench").symlink_to(checkouts.PACKAGE, target_is_directory=True)
    versions = []
    for name, turns in (("base", 0), ("candidate", 2000)):
        tree = tmp_path / name
        tree.mkdir()
        (tree / "nets.py").write_text(NETS.format(turns=turns), "utf-8")
        versions.append(
            checkouts.Version(name=name, python=sys.executable, paths=(tree, measuring), tree=tree)
        )
    cells = [
        Cell(model=name, workload="training", grad_mode="global_on", batch_size=4)
        for name in ("make", "equal")[: 1 + one_process]
    ]
    replicator = Replicator(
        *versions,
        replication=Replication(one_process=one_process),
        sources={
            name: ModelSource(build=f"nets:{name}", input=("B,8",)) for name in ("make", "equal")
        },
        seed=random.randrange(100),
    )
    if not one_process:
        replicator.results.apart.update(dict.fromkeys(cells, "as asked"))
    InstructionCounter(replicator, budget=Budget(), say=lambda _: None).count(cells)
    assert replicator.results.uncounted == {}
    changed, *equal = (
        candidate["instructions"] / base["instructions"] - 1
        for base, candidate in (replicator.results.operations[one] for one in cells)
    )
    assert changed > 10 * LEAST
    assert all(abs(one) <= LEAST for one in equal)
