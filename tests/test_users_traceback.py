"""A traceback begins with the user's first line: ours is cut, and torch's before theirs."""

import sys
import types
from functools import partial

import pytest
import torch
from torch import nn

from gradbench.devices.cpu import CPU
from gradbench.errors import Impossible
from gradbench.experiment.matrix import Cell
from gradbench.runner.attempts import attempt, refusal
from gradbench.users_traceback import MOST_FRAMES, users_traceback
from gradbench.workloads.arms import build, make_arm
from gradbench.workloads.models import Model


class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x, scale):
        return self.inner(x)

    def inner(self, x):
        raise KeyError("no such weight")


def test_frames_are_the_users_from_their_own_first_one_on():
    why = refused(Raising, lambda size: {"x": torch.ones(size, 4), "scale": 2.0})
    assert why.reason == "KeyError: 'no such weight'"
    lines = why.traceback.splitlines()
    assert "test_users_traceback.py" in lines[0]
    assert "in forward" in lines[0]
    assert lines[-1] == "KeyError: 'no such weight'"
    assert "gradbench/" not in why.traceback.replace(sys.path[0], "").replace(__file__, "")
    assert "_call_impl" not in why.traceback


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (lambda size: torch.ones(size, 4), ["missing 1 required positional argument: 'scale'"]),
        (
            lambda size: {"y": torch.ones(size, 4)},
            [
                "unexpected keyword argument",
                "y=float32 [3, 4]; where forward takes the dict itself",
            ],
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_said_with_its_shapes(batch, words):
    why = refused(Raising, batch)
    assert [
        word for word in [*words, "called with", "float32 [3, 4]"] if word not in why.reason
    ] == []


def test_shapes_that_do_not_multiply_are_said_with_the_batch():
    why = refused(lambda: nn.Linear(5, 2), lambda size: torch.ones(size, 4))
    assert why.reason.endswith("(called with float32 [3, 4])")
    assert why.traceback == ""  # no line of it is the user's


def test_an_index_that_no_embedding_has_is_said_with_the_numbers_and_the_rows():
    def tables():
        return nn.ModuleDict({"words": nn.Embedding(7, 2), "places": nn.Embedding(9, 2)})

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.tables = tables()

        def forward(self, ids):
            return self.tables["words"](ids)

    why = refused(Reader, lambda size: {"ids": torch.tensor([[0, 8]] * size)})
    assert why.reason.endswith("(called with ids=int64 [3, 2]; tables.words Embedding has 7 rows)")


class Remembering(nn.Linear):
    """Adds what it returned last, graph and all."""

    last = 0

    def forward(self, x):
        self.last = super().forward(x) + self.last
        return self.last


class Apart(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


@pytest.mark.parametrize(
    ("kind", "cure", "mode"),
    [
        (Remembering, "graph: detach() what", "global_on"),
        (Apart, "its loss is detached, or", "global_on"),
        (Apart, "its loss is detached, or", "no_grad"),
    ],
)
def test_a_loss_that_cannot_go_backward_is_said_with_its_cure(kind, cure, mode):
    why = refused(lambda: kind(4, 2), lambda size: torch.ones(size, 4), "training", mode, steps=2)
    assert cure in why.reason
    assert why.reason.count("RuntimeError") == 1
    assert "retain_graph" not in why.reason
    assert why.reason.count("under global_on, too") == (mode == "no_grad")


def test_a_step_that_trains_itself_without_a_graph_is_not_said_to_have_lost_it():
    class Own(nn.Linear):
        def forward(self, x):
            super().forward(x).sum().backward()

    why = refused(lambda: Own(4, 2), lambda size: torch.ones(size, 4), mode="no_grad")
    assert why.reason.endswith("does not have a grad_fn")


def refused(build_module, batch, workload="inference", mode="global_on", *, steps=1):
    cell = Cell(model="it", workload=workload, grad_mode=mode, batch_size=3)
    model = Model(build_module, batch)
    subject = build(cell, model, seed=0)
    again = partial(build, cell, model, seed=0)
    return attempt(make_arm(cell, subject), CPU(), steps, put_back=again)


def test_a_deep_traceback_is_cut_to_its_end():
    def deeper(depth):
        return deeper(depth - 1) if depth else 1 / 0

    try:
        deeper(40)
    except ZeroDivisionError as error:
        lines = users_traceback(error).splitlines()
    assert lines[0].strip() == f"({42 - MOST_FRAMES} calls before)"
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_a_module_that_cannot_be_parsed_is_shown_where():
    try:
        exec(compile("x = (", "theirs.py", "exec"), types.ModuleType("theirs").__dict__)
    except SyntaxError as error:
        assert 'File "theirs.py", line 1' in users_traceback(error)


def test_an_error_of_ours_has_no_traceback_of_theirs():
    why = refusal(Impossible("give a loss"), CPU())
    assert (why.cause, why.reason, why.traceback) == ("impossible", "give a loss", "")
