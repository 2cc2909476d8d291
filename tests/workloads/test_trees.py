"""Batches and outputs as trees: what a model is called with, moved, counted, and trained by."""

from collections import OrderedDict, UserDict
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from gradbench.errors import BadModel, Impossible
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.runner import time_pass
from gradbench.workloads.arms import build, make_arm, samples_given, steps
from gradbench.workloads.losses import automatic, mean_square
from gradbench.workloads.models import Model
from gradbench.workloads.trees import Batch, mapped, outlined, tensors


class Pair(NamedTuple):
    left: torch.Tensor
    right: dict


class Boxed(list):
    """A list that is made of other arguments than its entries."""

    def __init__(self, images, *, sizes):
        super().__init__(images)
        self.sizes = sizes


class Span(tuple):
    """A tuple that is made of its two ends."""

    def __new__(cls, low, high):
        span = super().__new__(cls, (low, high))
        span.middle = 3
        return span


@dataclass(frozen=True)
class Held:
    x: torch.Tensor
    name: str = "held"


@pytest.mark.parametrize(
    ("given", "args", "kwargs"),
    [
        (torch.ones(2), 1, []),
        ((torch.ones(2), 3), 2, []),
        ([torch.ones(2)], 1, []),
        ({"x": torch.ones(2), "flag": True}, 0, ["x", "flag"]),
        (Batch((1, 2), {"x": 3}), 2, ["x"]),
        (pack_sequence([torch.ones(2)]), 1, []),
    ],
)
def test_a_batch_is_a_tensor_a_tuple_of_arguments_or_a_dict_of_them_by_name(given, args, kwargs):
    batch = Batch.of(given)
    assert (len(batch.args), list(batch.kwargs)) == (args, kwargs)


def test_a_dict_that_names_no_arguments_is_refused():
    with pytest.raises(BadModel, match="names of arguments: 3"):
        Batch.of({3: torch.ones(1)})


@pytest.mark.parametrize(
    "tree",
    [
        (torch.ones(1), [torch.ones(2)]),
        Pair(torch.ones(1), {"a": torch.ones(2)}),
        OrderedDict(a=torch.ones(1), b=(torch.ones(2),)),
        UserDict(a=torch.ones(1), b=torch.ones(2)),
        Held(torch.ones(3)),
        Batch((torch.ones(1),), {"a": torch.ones(2)}, torch.ones(3)),
        pack_sequence([torch.ones(2)]),
        Boxed([torch.ones(1), torch.ones(2)], sizes=[1, 2]),
        Span(torch.ones(1), torch.ones(2)),
        torch.return_types.max((torch.ones(2), torch.ones(2))),
        (torch.Size([2, 3]), torch.ones(1)),
    ],
    ids=lambda tree: type(tree).__name__,
)
def test_a_tree_keeps_its_kind_and_its_structure_when_its_tensors_change(tree):
    doubled = mapped(tree, lambda tensor: tensor * 2)
    assert type(doubled) is type(tree)
    before, after = dict(tensors(tree)), dict(tensors(doubled))
    assert list(before) == list(after)
    on_host = ["output[1]"] if hasattr(tree, "batch_sizes") else []  # of a packed sequence
    for path, tensor in before.items():
        assert torch.equal(tensor, torch.ones_like(tensor))
        assert torch.equal(after[path], tensor if path in on_host else tensor * 2)


def test_a_container_of_the_users_own_keeps_what_else_it_holds():
    boxed, span = mapped([Boxed([torch.ones(1)], sizes=[1]), Span(torch.ones(1), 2)], torch.clone)
    assert (boxed.sizes, span.middle) == ([1], 3)


def test_a_tensor_that_is_there_twice_stays_one():
    x = torch.ones(1)
    one, (other,) = mapped((x, [x]), torch.clone)
    assert one is other
    assert one is not x


def test_what_is_no_container_is_passed_through():
    thing = object()
    assert mapped({"a": thing, "b": None}, torch.clone) == {"a": thing, "b": None}


@dataclass
class Branch:
    value: torch.Tensor
    parent: "Branch | None" = None
    later: torch.Tensor = field(init=False)  # none is given


def test_a_child_that_knows_its_parent_is_looked_into_once():
    root = Branch(torch.ones(1))
    child = Branch(torch.ones(2), parent=root)
    tree = {"root": root, "child": child}
    root.parent = child
    assert [path for path, _ in tensors(tree)] == [
        "output['root'].value",
        "output['root'].parent.value",
        "output['child'].value",
        "output['child'].parent.value",
    ]
    assert len(outlined([tree, {"itself": tree}])) < 200


def test_a_tree_may_be_deeper_than_functions_may_call_one_another():
    tree = (torch.ones(3),)
    for _ in range(3000):
        tree = (tree,)
    assert [tensor.numel() for _, tensor in tensors(tree)] == [3]
    assert outlined(tree) == "(((((tuple)))))"


def test_a_field_without_a_value_stays_without_one():
    mapped_to = mapped(Branch(torch.ones(1)), lambda tensor: tensor * 2)
    assert mapped_to.value == 2
    assert not hasattr(mapped_to, "later")


def test_a_batch_is_shown_by_shapes_and_dtypes():
    batch = Batch((torch.ones(4, 3), [1.5, None]), {"mask": torch.ones(4).bool(), "how": "well"})
    assert str(batch) == "float32 [4, 3], [1.5, None], mask=bool [4], how=str"
    assert outlined({"a": (torch.ones(1),) * 6}) == "{a: (" + "float32 [1], " * 4 + "and 2 more)}"


class Branching(nn.Module):
    """Takes ids, a mask and a scale by name; returns a dataclass of two tensors and a list."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids, *, mask, scale=1.0):
        features = self.table(ids) * mask[..., None] * scale
        return {"logits": self.head(features), "ids": ids, "more": [features]}


def branching(size):
    ids = torch.randint(10, (size, 3))
    return Batch((ids,), {"mask": torch.ones(size, 3).bool(), "scale": 0.5})


def cell_of(workload="training", mode="global_on", **axes):
    return Cell(model="it", workload=workload, grad_mode=mode, batch_size=4, **axes)


@pytest.mark.parametrize("workload", ["inference", "training_reenabled", "frozen_backbone"])
@pytest.mark.parametrize("mode", GRAD_MODES)
def test_a_model_of_trees_steps_in_every_workload_and_mode(workload, mode):
    model = Model(Branching, branching, head="head")
    subject = build(cell_of(workload, mode), model, seed=0)
    steps(make_arm(cell_of(workload, mode), subject), 2)
    if workload == "frozen_backbone":
        assert all(p.grad is not None for p in subject.head.parameters())
        assert subject.cut.calls == []
    elif workload != "inference":
        assert all(p.grad is not None for p in subject.module.parameters())


def test_a_head_in_the_middle_is_trained_on_what_it_would_have_been_called_with():
    model = Model(Branching, branching, head="head")
    cell = cell_of("frozen_backbone", "no_grad")
    subject = build(cell, model, seed=0)
    make_arm(cell, subject).step()
    whole = build(cell_of("inference"), model, seed=0)
    with torch.no_grad():
        features = whole.call()()["more"][0]
    loss = whole.module.head(features).square().mean()
    loss.backward()
    assert torch.equal(subject.head.weight.grad, whole.module.head.weight.grad)


def test_floating_inputs_get_the_dtype_and_the_rest_of_the_batch_does_not():
    labelled = Model(Branching, lambda size: replace(branching(size), target=torch.ones(size)))
    subject = build(cell_of(dtype="bfloat16"), labelled, seed=0)
    assert subject.batch.args[0].dtype == torch.int64
    assert subject.batch.kwargs["mask"].dtype == torch.bool
    assert subject.given.target.dtype == torch.float32
    floats = build(cell_of(dtype="bfloat16"), Model(partial(nn.Linear, 3, 2), torch_ones), seed=0)
    assert floats.batch.args[0].dtype == torch.bfloat16


def torch_ones(size):
    return torch.ones(size, 3)


def test_a_models_own_dtype_stands_for_as_is():
    model = Model(partial(nn.Linear, 3, 2), torch_ones, dtype="bfloat16")
    assert build(cell_of(), model, seed=0).module.weight.dtype == torch.bfloat16
    assert build(cell_of(dtype="float32"), model, seed=0).module.weight.dtype == torch.float32


def test_every_tensor_of_a_batch_is_resident_and_what_is_saved_of_it_is_no_activation():
    labelled = Model(Branching, lambda size: replace(branching(size), target=torch.ones(size)))
    subject = build(cell_of(), labelled, seed=0)
    owned = {id(tensor) for tensor in subject.resident()}
    in_batch = [subject.batch.args[0], subject.batch.kwargs["mask"], subject.given.target]
    assert {id(tensor) for tensor in in_batch} <= owned


def test_the_loss_is_the_outputs_own_or_of_labels_or_the_mean_square():
    x = torch.ones(2, 3, requires_grad=True)
    own = torch.tensor(7.0)
    assert automatic({"loss": own, "logits": x}, None) is own
    assert automatic(Held(x), None) == 1
    labels = Batch((x,), target=torch.tensor([0, 1]))
    assert automatic(x, labels) == nn.functional.cross_entropy(x, labels.target)
    assert automatic({"loss": None, "logits": x}, None) == 1
    assert mean_square((x, torch.arange(3), {"z": 1j * torch.ones(2)}), None) == 2


def test_an_output_without_a_floating_tensor_has_nothing_to_train_by():
    with pytest.raises(Impossible, match=r"no floating-point tensor .* \(\{ids: int64 \[3\]\}\)"):
        automatic({"ids": torch.arange(3)}, None)


def test_an_output_into_which_nobody_looks_is_named_with_what_is_looked_into():
    with pytest.raises(Impossible, match=r"in tuples, lists, dicts or dataclasses .*Namespace"):
        automatic(SimpleNamespace(logits=torch.ones(2)), None)


def test_numbers_of_an_output_are_in_no_reason_for_they_differ_from_call_to_call():
    with pytest.raises(Impossible, match=r"\(\{loss: float, ids: \[int, None\]\}\)"):
        automatic({"loss": 0.25, "ids": [3, None]}, None)


def of_one_size(size):
    if size != 4:
        raise SystemExit("the shard is over")
    return torch.zeros(6, 3)


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        (lambda size: torch.randn(size, 3), None),
        (lambda size: torch.randn(6, size, 3), None),
        (lambda size: [torch.zeros(3, 5)] * size, None),
        (lambda size: {"scale": torch.tensor(1.0)}, None),
        (of_one_size, None),
        (lambda size: torch.randn(32, 3), 32),
        (lambda size: {"ids": torch.zeros(32, 3), "scale": torch.tensor(1.0)}, 32),
        (lambda size: (torch.zeros(6, 3), torch.zeros(5, 3)), 4),
    ],
)
def test_a_batch_that_does_not_have_the_size_that_was_asked_for_is_counted_as_it_is(batch, samples):
    given, before = batch(4), torch.get_rng_state()
    assert samples_given(cell_of(), Model(nn.Identity, batch), given) == samples
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("measured_here")
@pytest.mark.parametrize(("batch", "samples"), [(torch_ones, 4), (lambda _: torch.ones(32, 3), 32)])
def test_throughput_counts_the_samples_of_the_batch_that_was_timed(batch, samples):
    model, plan = Model(partial(nn.Linear, 3, 2), batch), Plan(budget_s=0.02, warmup_s=0.01)
    messages = time_pass.time_block([cell_of("inference")], model, plan, ["step_time"])
    (timed,) = (one for one in messages if isinstance(one, Measurement))
    assert timed.samples == samples
