"""What operators are asked by being run: never what takes as long as the model does."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from gradbench.devices.cpu import CPU
from gradbench.experiment.matrix import Cell
from gradbench.memory import predict, probe
from gradbench.memory.predict import Predictor
from gradbench.memory.probe import MULTIPLIES, PROBE_S, Call, Meta, Prober
from gradbench.workloads.models import MODELS

WIDE = "decoder_d1_w4096"
"""A layer as wide as those of a decoder of seven billion parameters."""


class Calls(TorchDispatchMode):
    """Keeps the operators that are called, in outline."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.seen.append(Call.of(func, args, kwargs or {}, result))
        return result


def multiplications(call):
    """Count by torch's own formulas, which take two operations for one; 0 where it has none."""
    if call.func.overloadpacket not in flop_registry:
        return 0
    args, kwargs = tree_map_only(
        Meta,
        lambda one: torch.empty_strided(one.shape, one.stride, dtype=one.dtype, device="meta"),
        (call.args, call.kwargs),
    )
    with FlopCounterMode(display=False) as counter:
        call.func(*args, **kwargs)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(
    "axes",
    [
        {"workload": "training", "dtype": "bfloat16", "optimizer": "adamw", "batch_size": 1},
        {"workload": "training", "dtype": "float16", "batch_size": 8},
        {"workload": "inference", "batch_size": 64},
        {"workload": "generate", "dtype": "bfloat16", "batch_size": 8, "new_tokens": 2},
    ],
    ids=lambda axes: f"{axes['workload']}-{axes.get('dtype', 'as_is')}",
)
def test_no_probe_computes_at_the_size_of_the_model(axes, monkeypatch):
    """Of each step's products those are run that a slow core does in seconds, one after another."""
    asked = []
    monkeypatch.setattr(probe, "_run", lambda calls, *_: asked.append(calls) or {})
    predictor, device = Predictor("cpu"), CPU()
    predictor.predict(Cell(model=WIDE, grad_mode="global_on", **axes), MODELS[WIDE])
    assert asked
    for calls in asked:
        seconds = [
            multiplications(call) / device.multiplications_a_second(call.dtype) for call in calls
        ]
        assert sum(seconds) <= PROBE_S
        assert all(call.nbytes <= device.probe_bytes for call in calls)
    known = [entry for outline in predictor._outlines.values() for entry in outline.calls()]
    assert any(multiplications(c) > 2**30 for c in set(known))  # there was something to leave out


def made(function):
    with Calls() as calls:
        function()
    return max(calls.seen, key=lambda call: call.multiplications)


@pytest.mark.parametrize(
    ("function", "within"),
    [
        (lambda: torch.ones(30, 50) @ torch.ones(50, 70), 1.01),
        (lambda: functional.linear(torch.ones(30, 50), torch.ones(70, 50), torch.ones(70)), 1.01),
        (lambda: torch.ones(4, 30, 50) @ torch.ones(4, 50, 70), 2.1),
        (lambda: functional.conv2d(torch.ones(2, 8, 16, 16), torch.ones(4, 8, 3, 3)), 1.3),
        (lambda: functional.conv2d(torch.ones(2, 8, 64, 64), torch.ones(4, 8, 7, 7)), 1.3),
    ],
    ids=["mm", "addmm", "bmm", "conv3", "conv7"],
)
def test_the_work_of_a_product_is_estimated_by_what_its_tensors_hold(function, within):
    call = made(function)
    assert 1 / within <= call.multiplications / multiplications(call) <= within


def test_the_work_of_attention_and_of_a_decomposition_is_within_a_few_times_of_the_true_one():
    heads = torch.ones(1, 8, 128, 64)
    attention = made(lambda: functional.scaled_dot_product_attention(heads, heads, heads))
    assert 1 / 4 <= attention.multiplications / (2 * 8 * 128 * 128 * 64) <= 4
    assert made(lambda: torch.linalg.svd(torch.eye(40))).multiplications >= 40**3


def test_whatever_torch_has_a_formula_for_counts_as_work():
    names = {
        packet.__name__
        for packet in flop_registry
        if getattr(packet, "_qualified_op_name", "").startswith("aten::")
    }
    assert len(names) > 10
    assert [name for name in sorted(names) if not MULTIPLIES.search(name)] == []


def test_what_passes_over_its_tensors_once_is_no_work_whatever_its_size():
    for function in (
        lambda: torch.ones(8, 8).softmax(-1),
        lambda: torch.ones(8, 8).cumsum(0),
        lambda: functional.layer_norm(torch.ones(8, 8), (8,)),
        lambda: functional.interpolate(torch.ones(1, 1, 8, 8), scale_factor=2, mode="bilinear"),
    ):
        assert made(function).multiplications == 0


def test_of_a_steps_calls_the_quickest_are_run_and_the_rest_stay_unknown():
    small = made(lambda: torch.ones(4, 4) @ torch.ones(4, 4))
    slow = CPU().multiplications_a_second(torch.float32) * PROBE_S
    large = replace(
        made(lambda: torch.ones(2, 4) @ torch.ones(4, 2)), multiplications=int(slow) + 1
    )
    prober = Prober(CPU())
    prober.learn([large, small])
    assert prober.inside(small) == 4 * 4 * 4
    assert prober.inside(large) is None


def test_where_no_batch_makes_a_call_small_no_second_one_is_made(monkeypatch):
    """Weights of 256 MiB are in each call, whatever the batch: one more step shows it, not two."""
    stepped = []
    fake_step = predict.fake_step
    monkeypatch.setattr(
        predict, "fake_step", lambda cell, *a, **k: stepped.append(cell) or fake_step(cell, *a, **k)
    )
    predictor = Predictor("cpu")
    monkeypatch.setattr(Predictor, "_children", lambda _: Here())
    member = Cell(model="mlp_d1_w8192", workload="inference", grad_mode="no_grad", batch_size=8)
    found = predictor.predict(member, MODELS["mlp_d1_w8192"])
    assert "aten::addmm" in found.unprobed
    assert [cell.batch_size for cell in stepped] == [8, 2]


class Here:
    """Runs in this process what would run in a child."""

    device = CPU()

    def run(self, function):
        return function(lambda _: None)
