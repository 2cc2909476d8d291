"""What a step keeps from one time to the next: found by arithmetic, named by operator and line."""

import gc
import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.memory import leaks
from gradbench.memory.saved_tensors import paths
from gradbench.memory.storage_tracker import Creation
from gradbench.records.measurements import Measurement
from gradbench.runner import memory_pass
from gradbench.workloads.losses import automatic
from gradbench.workloads.models import Model, classification, mlp

FLOAT = 4
BATCH, WIDE, HIDDEN, CLASSES = 8, 16, 32, 10
PLACE = r"([\d,]+) B a step made by (\S+)(?: in (\S+))? \((test_leaks\.py:\d+ in \w+)\)"

pytestmark = pytest.mark.usefixtures("measured_here")


def leaked(build, *, loss=automatic, **axes):
    """Return what the meter says of each mode."""
    model = Model(build, partial(classification, shape=(WIDE,)), loss)
    cells = Matrix(**{"models": ["it"], "workloads": ["training"], "batch_sizes": [BATCH]} | axes)
    messages = memory_pass.memory_block(list(cells), model, Plan(), ["leaked"])
    return {m.cell.grad_mode: m for m in messages if isinstance(m, Measurement)}


def names(measurement):
    """Return bytes, operator, module and line of each place that the note names."""
    return [
        re.fullmatch(PLACE, place).groups() for place in str(measurement.notes["kept"]).split("; ")
    ]


def plain():
    return mlp(WIDE, HIDDEN, CLASSES)


class Wrapped(nn.Module):
    """A network whose forward does something with its output besides."""

    def __init__(self, done):
        super().__init__()
        self.net, self.done = plain(), done

    def forward(self, x):
        y = self.net(x)
        self.done(y)
        return y


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_clean_step_leaves_nothing(optimizer):
    found = leaked(plain, workloads=["training_reenabled"], optimizers=[optimizer])
    assert {(mode, m.values, len(m.notes)) for mode, m in found.items()} == {
        (mode, (0,), 0) for mode in GRAD_MODES
    }


def test_a_list_of_losses_is_found_and_named():
    """The issue everybody meets: ``losses.append(loss)`` instead of ``loss.item()``."""
    losses = []

    def keeping(output, batch):
        loss = functional.cross_entropy(output, batch.target)
        losses.append(loss)
        return loss

    found = leaked(plain, loss=keeping)["global_on"]
    assert found.values == (FLOAT,)  # backward has freed the graph: the scalar is left
    ((nbytes, op, module, line),) = names(found)
    assert (nbytes, op, module) == ("4", "aten::nll_loss_forward", None)
    assert line == f"test_leaks.py:{keeping.__code__.co_firstlineno + 1} in keeping"


@pytest.mark.parametrize(
    ("mode", "features"),
    [("global_on", HIDDEN + CLASSES), *((mode, CLASSES) for mode in GRAD_MODES[1:])],
)
def test_a_kept_output_keeps_its_graph_where_there_is_one(mode, features):
    outputs = []
    build = partial(Wrapped, outputs.append)
    found = leaked(build, workloads=["inference"], grad_modes=[mode])[mode]
    assert found.values == (BATCH * features * FLOAT,)
    line = f"test_leaks.py:{Wrapped.forward.__code__.co_firstlineno + 1} in forward"
    hidden = (f"{BATCH * HIDDEN * FLOAT:,}", "aten::relu", "net.1", line)
    output = (f"{BATCH * CLASSES * FLOAT}", "aten::addmm", "net.2", line)
    assert names(found) == ([hidden, output] if mode == "global_on" else [output])


def test_a_leak_is_charged_to_the_cell_that_leaks_and_not_to_its_neighbour():
    outputs = []

    def keep_under_no_grad(y):
        if not torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
            outputs.append(y)

    found = leaked(
        partial(Wrapped, keep_under_no_grad),
        workloads=["inference"],
        grad_modes=["global_on", "no_grad", "inference_mode"],
    )
    assert {mode: m.values[0] for mode, m in found.items()} == {
        "global_on": 0,
        "no_grad": BATCH * CLASSES * FLOAT,
        "inference_mode": 0,
    }


@pytest.mark.parametrize("filled_by", [1, 2, 5])
def test_a_cache_that_is_full_one_day_is_no_leak(filled_by):
    """One entry a step, for one step or for some."""
    cache = []

    def fill(y):
        if len(cache) < filled_by:
            cache.append(y.detach().clone())

    found = leaked(partial(Wrapped, fill), workloads=["inference"], grad_modes=["no_grad"])
    assert len(cache) == filled_by
    assert found["no_grad"].values == (0,)


def test_a_ring_that_forgets_its_oldest_is_no_leak():
    ring = []

    def turn(y):
        ring.append(y)
        del ring[:-2]

    found = leaked(partial(Wrapped, turn), workloads=["inference"], grad_modes=["no_grad"])
    assert len(ring) == 2
    assert found["no_grad"].values == (0,)


def test_a_reference_cycle_is_no_leak_for_the_collector_frees_it():
    cycles = 0

    def tie(y):
        nonlocal cycles
        cycles += 1
        knot = [y]
        knot.append(knot)

    gc.disable()  # or it would come by itself, sooner or later
    try:
        found = leaked(partial(Wrapped, tie), workloads=["inference"], grad_modes=["no_grad"])
    finally:
        gc.enable()
    assert found["no_grad"].values == (0,)
    looked_twice = 3 + leaks.STEPS
    unlike, rebuilt = 1, 2 * 3  # the third step's peak had knots in it, a further step's has none
    assert cycles == looked_twice + unlike + rebuilt


@pytest.mark.parametrize(
    ("live", "bytes_a_step"),
    [
        ([], 0),
        ([7], 0),
        ([7, 7, 7], 0),
        ([0, 4, 8, 12], 4),
        ([0, 100, 104, 108], 4),  # a cache besides
        ([0, 4, 4, 8], 0),
        ([8, 4, 0], 0),
    ],
)
def test_growth_is_what_every_step_adds(live, bytes_a_step):
    assert leaks.growth(live) == bytes_a_step


def birth(nbytes, op, *, module="", line=""):
    return Creation(0, nbytes, op, module, line)


def test_places_are_named_most_first_three_at_most():
    births = [
        birth(1000, "aten::mm", module="head", line="nets.py:3 in forward"),
        birth(600, "aten::relu"),
        birth(10, "aten::add", line="loop.py:9 in train"),
        birth(700, "aten::relu"),
        birth(2, "aten::exp"),
        birth(1, "aten::log"),
    ] * leaks.STEPS
    assert leaks.named(births) == (
        "1,300 B a step made by aten::relu; "
        "1,000 B a step made by aten::mm in head (nets.py:3 in forward); "
        "10 B a step made by aten::add (loop.py:9 in train); and 2 more places"
    )
    assert leaks.named([]) == ""


def test_what_a_step_keeps_is_distinguished_from_what_it_lets_go_and_from_its_gradients():
    module, kept = plain(), []
    x = torch.randn(BATCH, WIDE)

    def step():
        output = module(x)
        kept.append(output.detach().exp())
        output.sum().backward()

    births = leaks.kept(step, partial(module.zero_grad, set_to_none=True), paths(module))
    assert [(b.nbytes, b.op) for b in births] == [(BATCH * CLASSES * FLOAT, "aten::exp")] * 3
    assert len(kept) == leaks.STEPS


def test_what_is_joined_anew_in_each_step_is_not_said_to_add_all_of_itself():
    class Joining(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.past = plain(), torch.zeros(0, CLASSES)

        def forward(self, x):
            y = self.net(x)
            self.past = torch.cat([self.past, y.detach()])
            return y

    found = leaked(Joining)["global_on"]
    (added,) = found.values
    assert added == BATCH * CLASSES * FLOAT
    said = str(found.notes["kept"])
    kept = re.match(r"([\d,]+) B that each step makes anew by aten::cat", said)[1]
    assert int(kept.replace(",", "")) > added
