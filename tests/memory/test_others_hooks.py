"""What autograd keeps where a model sets hooks of its own, or keeps tensors past autograd."""

from functools import partial

import pytest
import torch
from batches import unlabelled
from torch import nn
from zoo import modules

from gradbench.devices import Unreadable
from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.leaves import kept_unsaved
from gradbench.memory.saved_tensors import SavedTensors, SavingHooks
from gradbench.memory.usage import memory_usage
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner import memory_pass
from gradbench.workloads.models import Model

FLOAT, HALF = 4, 2  # bytes
X = torch.zeros(8, 64, requires_grad=True)


def chain(x):
    return x.tanh().sin()  # each saves tanh's result


def plain(x):
    return chain(x)


def halved(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.float()):
        return chain(x)


def on_cpu(x):
    with torch.autograd.graph.save_on_cpu():
        return chain(x)


def elsewhere(x):
    with torch.autograd.graph.saved_tensors_hooks(lambda _: "a file", lambda _: x):
        return chain(x)


def checkpointed(x):
    return torch.utils.checkpoint.checkpoint(chain, x, use_reentrant=False)


@pytest.mark.parametrize(
    ("step", "nbytes"),
    [
        (plain, 8 * 64 * FLOAT),
        (halved, 2 * 8 * 64 * HALF),  # a copy for each of the two
        (on_cpu, 8 * 64 * FLOAT),  # it lies there already: no copy
        (elsewhere, 0),
        (checkpointed, 0),
    ],
)
def test_what_a_models_own_hooks_keep_is_counted(step, nbytes):
    saved = SavedTensors(apart=[X])
    with saved:
        output = step(X)
        held = saved.nbytes
    assert held == nbytes
    output.sum().backward()  # what the hooks return is theirs again
    assert X.grad is not None


def test_hooks_are_as_they_were_afterwards():
    before = torch.autograd.graph.saved_tensors_hooks.__enter__
    own = torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t)
    pack, unpack = own.pack_hook, own.unpack_hook
    with SavedTensors(), SavedTensors(), own:
        chain(X)
    assert (own.pack_hook, own.unpack_hook) == (pack, unpack)
    assert torch.autograd.graph.saved_tensors_hooks.__enter__ is before


class Box:
    def __init__(self, tensor):
        self.tensor = tensor


KEEPERS = {
    "tensor": lambda big: big,
    "closure": lambda big: lambda: big,
    "object": Box,
    "list in an object": lambda big: Box([big]),
    "method": lambda big: Box(big).__init__,
    "nothing": lambda _: lambda: 1,
    "module": lambda _: nn.Linear(2, 2),
}


@pytest.mark.parametrize("name", KEEPERS)
def test_a_tensor_that_a_node_leads_to_past_autograd_is_seen(name):
    class Keeps(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.kept = KEEPERS[name](torch.zeros(100))
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * 2

    assert kept_unsaved(Keeps.apply(X)) is (name not in ("nothing", "module"))


def test_what_others_save_is_seen_by_whoever_packs():
    assert SavingHooks(lambda tensor: tensor).unseen(chain(X))  # made before: nobody packed it


def halving(gradient):
    return gradient / 2


class Adds(Box):
    def __call__(self, gradient):
        return gradient + self.tensor


HOOKS = {
    "closure": lambda big: lambda gradient: gradient + big,
    "default": lambda big: lambda gradient, big=big: gradient + big,
    "partial": lambda big: partial(torch.add, big),
    "object": Adds,
    "method": lambda big: Adds(big).__call__,
}


@pytest.mark.parametrize("name", HOOKS)
def test_what_a_tensors_hook_keeps_is_seen_as_long_as_its_graph_is_there(name):
    big = torch.zeros(64)
    with SavedTensors(apart=[X]) as saved:
        y = chain(X)
        y.register_hook(HOOKS[name](big))
        (kept,) = saved.hooks.given.kept()
        assert kept is big
        assert not saved.counts(kept)
        del y
        assert not list(saved.hooks.given.kept())


def test_a_hook_that_keeps_nothing_of_its_own_hides_nothing():
    with SavedTensors(apart=[X]) as saved:
        y = X.tanh()
        module = nn.Linear(2, 2)
        for hook in (halving, lambda gradient: gradient * module.training):
            y.register_hook(hook)
        assert not list(saved.hooks.given.kept())
        for hook in (lambda gradient: gradient * X, lambda gradient: gradient * y.detach()):
            y.register_hook(hook)
        assert all(map(saved.counts, saved.hooks.given.kept()))  # X is there anyway, y is saved


def test_giving_hooks_is_as_it_was_afterwards():
    before = torch.Tensor.register_hook
    with SavedTensors(), SavedTensors():
        assert torch.Tensor.register_hook is not before
    assert torch.Tensor.register_hook is before


def read(build):
    """Return what the memory pass says of a module's inference with grad on, by meter."""
    model = Model(build, partial(unlabelled, shape=(16,)))
    cell = Cell(model="it", workload="inference", grad_mode="global_on", batch_size=4)
    found = memory_pass.memory_block([cell], model, Plan(), ["peak_allocated", SAVED])
    return {one.meter: one for one in found if isinstance(one, Measurement | Skipped)}


SAVED = "saved_for_backward"


@pytest.mark.usefixtures("measured_here")
def test_memory_of_numpys_that_is_saved_is_noted_where_no_peak_counts_it():
    found = read(modules.Borrowing)
    assert {one.notes.get("outside_bytes") for one in found.values()} == {4 * 4 * FLOAT}
    found = read(modules.FromNumpy)  # its weights: they are there anyway, and counted
    assert all("outside_bytes" not in one.notes for one in found.values())


@pytest.mark.usefixtures("measured_here")
def test_what_a_hook_of_a_tensor_keeps_is_a_reason_and_no_number():
    found = read(modules.Holding)
    assert found[SAVED].cause == "unreadable"
    assert found[SAVED].reason == "a graph is built, and a tensor's hook keeps tensors, not saved"
    assert found["peak_allocated"].values[0] > 0
    used = memory_usage(modules.Holding(), torch.randn(4, 16))
    with pytest.raises(Unreadable, match="a tensor's hook keeps tensors of the call, not saved"):
        _ = used.saved_bytes
    assert "; saved for backward: " in str(used)
    assert "a tensor's hook keeps tensors" in str(used)
