"""What stays after the first steps: counted by arithmetic, named by attribute or line."""

import gc
from functools import partial

import pytest
import torch
from torch import nn

from gradbench.experiment.matrix import Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.runner import memory_pass
from gradbench.workloads.models import Model, classification, mlp

FLOAT = 4
BATCH, WIDE, HIDDEN, CLASSES = 8, 16, 32, 10

pytestmark = pytest.mark.usefixtures("measured_here")


def figures(build, **axes):
    """Return what the meters of what stays say, by mode."""
    model = Model(build, partial(classification, shape=(WIDE,)))
    cells = Matrix(**{"models": ["it"], "batch_sizes": [BATCH]} | axes)
    meters = ["kept_after_first", "leaked"]
    messages = memory_pass.memory_block(list(cells), model, Plan(), meters)
    found = [m for m in messages if isinstance(m, Measurement)]
    return {(m.cell.grad_mode, m.meter): m for m in found}


def plain():
    return mlp(WIDE, HIDDEN, CLASSES)


class Wrapped(nn.Module):
    """A network whose forward does something with its input besides."""

    def __init__(self, done):
        super().__init__()
        self.net, self.done = plain(), done

    def forward(self, x):
        self.done(x)
        return self.net(x)


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.table = plain(), None

    def forward(self, x):
        if self.table is None:
            self.table = x.detach().exp()
        return self.net(x + self.table)


@pytest.mark.parametrize("optimizer", ["sgd", "sgd_momentum", "adamw"])
def test_gradients_and_optimizer_state_are_left_out(optimizer):
    found = figures(plain, workloads=["training"], grad_modes=["global_on"], optimizers=[optimizer])
    kept = found["global_on", "kept_after_first"]
    assert (kept.values, kept.notes) == ((0,), {})


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_cache_counts_once_and_is_named_by_its_attribute(optimizer):
    found = figures(
        Caching, workloads=["training"], grad_modes=["global_on"], optimizers=[optimizer]
    )
    kept = found["global_on", "kept_after_first"]
    assert kept.values == (BATCH * WIDE * FLOAT,)
    assert kept.notes == {"kept": f"(model) Caching.table ({BATCH * WIDE * FLOAT} B)"}
    assert found["global_on", "leaked"].values == (0,)


def test_what_leaks_counts_twice_and_is_named_by_its_line():
    outputs = []
    build = partial(Wrapped, lambda x: outputs.append(x.exp()))
    found = figures(build, workloads=["inference"], grad_modes=["no_grad"])
    leaked, kept = (found["no_grad", meter] for meter in ("leaked", "kept_after_first"))
    assert leaked.values == (BATCH * WIDE * FLOAT,)
    assert kept.values == (2 * leaked.values[0],)
    assert str(kept.notes["kept"]).startswith("made by aten::exp in (model) at test_kept.py:")
    assert str(kept.notes["kept"]).endswith(f"({kept.values[0]:,} B)")


def test_what_is_made_once_for_the_process_is_counted_and_said_to_be_so():
    tables = {}
    build = partial(Wrapped, lambda x: tables.setdefault("all", torch.ones(1000)))
    found = figures(build, workloads=["inference"], grad_modes=["no_grad"])
    kept = found["no_grad", "kept_after_first"]
    assert kept.values == (1000 * FLOAT,)
    assert kept.notes == {"kept": "4,000 B that are made once for the process"}


def test_what_waits_for_the_collector_is_not_kept():
    def tie(x):
        knot = [x.exp()]
        knot.append(knot)

    gc.disable()  # or it would come by itself, sooner or later
    try:
        found = figures(partial(Wrapped, tie), workloads=["inference"], grad_modes=["no_grad"])
    finally:
        gc.enable()
    assert found["no_grad", "kept_after_first"].values == (0,)
