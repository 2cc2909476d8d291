"""Predictions against measurements to the byte, and what cannot be predicted against its reason."""

import ctypes
import gc
import subprocess
import sys
from dataclasses import replace
from functools import cache, partial
from itertools import groupby, pairwise

import pytest
import torch
from patience import PATIENCE_S
from torch import nn

from gradbench.devices.cpu import CPU
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import Plan
from gradbench.experiment.presets import PRESETS
from gradbench.memory import predict, probe
from gradbench.memory.child_process import Children
from gradbench.memory.predict import CannotBuild, Predictor, Unpredictable
from gradbench.memory.probe import Call, Prober, Seen
from gradbench.records.measurements import PARTS, Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass, prediction_pass
from gradbench.workloads.arms import same_step
from gradbench.workloads.models import MODELS, Model, classification, mlp

pytestmark = pytest.mark.usefixtures("measured_here")

FLOAT, LABEL = 4, 8  # bytes
CLASSES = 10


@pytest.fixture(scope="module")
def predictor():
    """One for all, as in a run: what it learns of one model must not mislead it with another."""
    return Predictor("cpu")


def cell(**axes):
    return Cell(
        **{"model": "it", "workload": "inference", "grad_mode": "no_grad", "batch_size": 8} | axes
    )


def perceptron(*widths):
    return Model(partial(mlp, *widths), partial(classification, shape=(widths[0],)))


def read(cells, model, wanted):
    gc.collect()  # what an earlier test left must not be freed while this one counts
    measured = [name for name in wanted if name != "predicted_peak"]
    messages = list(memory_pass.memory_block(cells, model, Plan(), measured)) if measured else []
    if measured != list(wanted):
        messages += prediction_pass.predict_block(cells, model, Plan(), ["predicted_peak"])
    found = [m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)]
    return {(o.cell, o.meter): o for o in found}


def figures(outcome):
    return outcome.values if isinstance(outcome, Measurement) else (outcome.cause, outcome.reason)


def blocks(cells):
    return [list(members) for _, members in groupby(cells, key=lambda cell: cell.block)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "cells", blocks(PRESETS["tiny"]), ids=lambda cells: f"{cells[0].model}-{cells[0].workload}"
)
def test_every_cell_of_tiny_is_predicted_to_the_byte(cells):
    """And where torch refuses to train, in which words."""
    found = read(cells, MODELS[cells[0].model], ["peak_allocated", "predicted_peak"])
    for member in cells:
        predicted, measured = found[member, "predicted_peak"], found[member, "peak_allocated"]
        assert figures(predicted) == figures(measured)
        assert isinstance(predicted, Skipped) or predicted.notes == {}
    refused = {
        member.grad_mode for member in cells if isinstance(found[member, "predicted_peak"], Skipped)
    }
    assert refused == (set(GRAD_MODES[1:]) if cells[0].workload == "training" else set())


TRAINING = {"workload": "training", "grad_mode": "global_on"}


def slow(*row):
    """Return a row that repeats at length what others of its table show once."""
    return pytest.param(*row, marks=pytest.mark.slow)


FORWARDS = [
    {"model": "cnn_small", "dtype": "bfloat16"},
    {"model": "cnn_small", "grad_mode": "global_on"},
    {"model": "cnn_small", "memory_format": "channels_last"},
    {"model": "cnn_small", "entry": "per_call"},
    {"model": "cnn_small", "workload": "frozen_backbone", "grad_mode": "inference_mode"},
    {"model": "mlp_deep", "batch_size": 32, "grad_mode": "global_on"},
]
BACKWARDS = [
    {"model": "cnn_small", "workload": "training_reenabled", "grad_mode": "inference_mode"},
    {"model": "cnn_small", "dtype": "bfloat16"} | TRAINING,
    {"model": "mlp_deep", "batch_size": 32} | TRAINING,
    {"model": "cnn_small", "workload": "frozen_backbone", "grad_mode": "global_on"},
    {"model": "cnn_small", "memory_format": "channels_last"} | TRAINING,
]


def named(axes):
    return "-".join(map(str, axes.values()))


@pytest.fixture(scope="module")
def both(predictor):
    """What a cell measures, and what was predicted of it."""

    @cache
    def compared(member):
        model = MODELS[member.model]
        found = read([member], model, ["peak_allocated", "breakdown", "peak_transient"])
        return {name: o for (_, name), o in found.items()}, predictor.predict(member, model)

    return compared


@pytest.mark.slow
@pytest.mark.parametrize("axes", FORWARDS + BACKWARDS, ids=named)
def test_cells_of_every_kind_are_predicted_to_the_byte(axes, both):
    measured, predicted = both(cell(**axes))
    assert predicted.peak_bytes == measured["peak_allocated"].values[0]
    assert predicted.transient_bytes == measured["peak_transient"].values[0]
    assert predicted.unprobed == ()


@pytest.mark.parametrize("axes", [*FORWARDS[:2], *map(slow, FORWARDS[2:])], ids=named)
def test_peaks_in_the_forward_are_predicted_in_every_part(axes, both):
    measured, predicted = both(cell(**axes))
    assert predicted.breakdown.parts == measured["breakdown"].parts


@pytest.mark.parametrize("axes", [*BACKWARDS[:2], *map(slow, BACKWARDS[2:])], ids=named)
def test_peaks_in_backward_are_predicted_in_every_part(axes, both):
    """Where a processor has instructions for bfloat16, but for one: a kernel's own copy of a
    gradient, in a layout of its own, is there at the peak, and the gradient itself is not yet."""
    measured, predicted = both(cell(**axes))
    own_copies = axes.get("dtype") == "bfloat16" and CPU().multiplies_bfloat16()
    apart = [dict(one.parts) for one in (predicted.breakdown, measured["breakdown"])]
    for parts in apart:
        parts["other"] += parts.pop("gradients") if own_copies else 0
    assert apart[0] == apart[1]


@pytest.mark.parametrize("optimizer", [slow("sgd_momentum"), "adamw"])
@pytest.mark.parametrize("model", ["mlp_tiny", slow("cnn_small")])
def test_what_the_optimizer_keeps_is_predicted_to_the_byte(model, optimizer, both):
    """AdamW's updates divide by Python numbers, which become tensors of 8 bytes and then of 4."""
    measured, predicted = both(cell(model=model, optimizer=optimizer, **TRAINING))
    assert predicted.peak_bytes == measured["peak_allocated"].values[0]
    state = measured["breakdown"].parts["optimizer_state"]
    assert predicted.breakdown.parts["optimizer_state"] == state > 0


def test_the_way_there_is_predicted_too(predictor):
    member = cell(model="mlp_tiny", workload="training", grad_mode="global_on")
    measured = read([member], MODELS["mlp_tiny"], ["breakdown"])[member, "breakdown"]
    breakdown = predictor.predict(member, MODELS["mlp_tiny"]).breakdown
    assert [name for name, _ in groupby(breakdown.phases)] == [
        name for name, _ in groupby(measured.phases)
    ]
    for part in ("saved", "gradients"):
        assert max(breakdown.timeline[part]) == max(measured.timeline[part])


def test_a_prediction_repeats_whatever_was_predicted_before(predictor):
    members = [
        cell(model=model, workload=workload, grad_mode="global_on")
        for model in ("mlp_tiny", "cnn_small")
        for workload in ("inference", "training")
    ]
    first = [predictor.predict(member, MODELS[member.model]).breakdown for member in members]
    again = [predictor.predict(member, MODELS[member.model]).breakdown for member in members[::-1]]
    assert first == again[::-1]


def columns(channels):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


def test_what_an_operator_takes_inside_is_carried_on_to_batches_that_are_not_run():
    """Without oneDNN and NNPACK a convolution is a product with the unfolded image, 27 numbers a
    pixel: for 512 images of 8x8 that is 3.4 MiB, beside inputs and outputs of 1.4 MiB. No call of
    more than 64 KiB is run, so all of it is learned from batches of 2 and 4."""
    side, channels, batch = 8, 8, 512
    model = Model(partial(columns, channels), partial(classification, shape=(3, side, side)))
    member = cell(batch_size=batch)
    with torch.backends.mkldnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        few, all_, none = (
            with_prober(prober).predict(member, model)
            for prober in (Prober(CPU(), largest=2**16), Prober(CPU()), Prober(None))
        )
    pixels = batch * side * side
    weights = channels * 27 + channels * CLASSES + CLASSES
    assert few.breakdown.parts == dict.fromkeys(PARTS, 0) | {
        "parameters": weights * FLOAT,
        "inputs": 3 * pixels * FLOAT + batch * LABEL,
        "other": (27 + channels) * pixels * FLOAT,
    }
    assert few.breakdown.ops["aten::convolution"] >= 27 * pixels * FLOAT
    assert few.peak_bytes == all_.peak_bytes
    assert few.unprobed == all_.unprobed == ()
    assert none.breakdown.parts["other"] == 2 * channels * pixels * FLOAT  # what outputs show
    assert "aten::convolution" in none.unprobed


@pytest.mark.skipif(not torch.backends.nnpack.is_available(), reason="this torch has no NNPACK")
def test_what_nnpack_takes_inside_is_carried_on_from_batches_that_it_takes():
    """Without oneDNN it has convolutions of 16 samples and more: two and four run another."""
    model = Model(partial(columns, 8), partial(classification, shape=(3, 8, 8)))
    with torch.backends.mkldnn.flags(enabled=False):
        few, all_ = (
            with_prober(prober).predict(cell(batch_size=256), model)
            for prober in (Prober(CPU(), largest=2**18), Prober(CPU()))
        )
        assert CPU().carried_from(15) == (2, 4)
    assert few.peak_bytes == all_.peak_bytes
    assert few.unprobed == all_.unprobed == ()


@pytest.mark.slow
@pytest.mark.parametrize("workload", ["inference", "training"])
def test_predictions_that_are_carried_on_are_within_one_percent(workload):
    member = cell(model="cnn_small", workload=workload, grad_mode="global_on", batch_size=64)
    few, all_ = (
        with_prober(prober).predict(member, MODELS["cnn_small"])
        for prober in (Prober(CPU(), largest=2**21), Prober(CPU()))
    )
    assert few.unprobed == ()
    assert few.peak_bytes == pytest.approx(all_.peak_bytes, rel=0.01)


def with_prober(prober):
    predictor = Predictor("cpu")
    predictor._prober = prober
    return predictor


def test_a_model_far_larger_than_any_memory_here_is_predicted_by_arithmetic(predictor):
    """Two weights of 256 GiB each, a million samples; what cannot be run at any batch is named."""
    wide, batch = 2**18, 10**6
    found = predictor.predict(cell(batch_size=batch), perceptron(wide, wide, wide, CLASSES))
    weights = 2 * (wide * wide + wide) + wide * CLASSES + CLASSES
    assert found.breakdown.parts == dict.fromkeys(PARTS, 0) | {
        "parameters": weights * FLOAT,
        "inputs": batch * wide * FLOAT + batch * LABEL,
        "other": 2 * batch * wide * FLOAT,
    }
    assert found.unprobed == ("aten::addmm",)


def test_tied_parameters_count_once_also_in_another_dtype(predictor):
    def tied():
        model = mlp(32, 32, 32)
        model[2].weight = model[0].weight
        return model

    model = Model(tied, partial(classification, shape=(32,), classes=32))
    for dtype, itemsize in (("float32", 4), ("bfloat16", 2)):
        member = cell(dtype=dtype, workload="training", grad_mode="global_on")
        found = read([member], model, ["breakdown"])[member, "breakdown"]
        predicted = predictor.predict(member, model).breakdown
        assert predicted.peak_bytes == sum(found.parts.values())
        assert predicted.parts["parameters"] == found.parts["parameters"]
        assert predicted.parts["parameters"] == (32 * 32 + 2 * 32) * itemsize


def test_compiled_code_is_not_predicted_but_a_reason(predictor):
    member = cell(model="mlp_tiny", compile="default")
    with pytest.raises(Unpredictable, match="compiled code allocates by its own plan"):
        predictor.predict(member, MODELS["mlp_tiny"])
    outcome = read([member], MODELS["mlp_tiny"], ["predicted_peak"])[member, "predicted_peak"]
    assert outcome.cause == "unreadable"
    assert "compiled code" in outcome.reason


class Asking(nn.Module):
    """A network that looks at its own numbers, which fake tensors do not have."""

    def __init__(self, ask):
        super().__init__()
        self.layer, self.ask = nn.Linear(16, CLASSES), ask

    def forward(self, x):
        y = self.layer(x)
        self.ask(y.detach())
        return y


def no_numbers(y):
    raise RuntimeError("no numbers here")


@pytest.mark.parametrize(
    "ask", [lambda y: y.sum().item(), slow(lambda y: y.numpy())], ids=["item", "numpy"]
)
def test_a_model_that_asks_for_numbers_is_measured_where_the_device_is(ask, predictor):
    model = Model(partial(Asking, ask), partial(classification, shape=(16,)))
    found = read([cell()], model, ["peak_allocated", "predicted_peak"])
    assert figures(found[cell(), "predicted_peak"]) == figures(found[cell(), "peak_allocated"])
    elsewhere = Predictor("cuda")
    if not elsewhere._here:
        with pytest.raises(Unpredictable, match="does not run on fake tensors: "):
            elsewhere.predict(cell(), model)


def test_no_mode_is_left_behind_by_a_step_that_fails(predictor):
    model = Model(partial(Asking, no_numbers), partial(classification, shape=(16,)))
    with pytest.raises(Unpredictable) as why:  # said once, though it fails in either way
        predictor.predict(cell(grad_mode="inference_mode"), model)
    assert str(why.value) == "its step fails: RuntimeError: no numbers here"
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert type(torch.empty(1)) is torch.Tensor
    assert predictor.predict(cell(), perceptron(16, CLASSES)).peak_bytes > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
@pytest.mark.parametrize("mode", ["global_on", "no_grad"])
def test_a_gpu_that_is_not_here_is_predicted_in_what_is_asked_for_and_in_blocks(mode):
    """Each block is a multiple of 512 bytes; what kernels need inside nobody can ask."""

    def block(numbers, itemsize=FLOAT):
        return -(-numbers * itemsize // 512) * 512

    widths, batch = (16, 100, 60, CLASSES), 8
    member = cell(device="cuda", grad_mode=mode, batch_size=batch)
    found = Predictor("cuda").predict(member, perceptron(*widths))
    weights = [n for wide, narrow in pairwise(widths) for n in (wide * narrow, narrow)]
    hidden = [batch * width for width in widths[1:-1]]
    # with a graph at the second ReLU, without at the first, beside its input
    saved, other = (hidden, hidden[1:]) if mode == "global_on" else ([], [hidden[0], hidden[0]])
    assert found.breakdown.parts == dict.fromkeys(PARTS, 0) | {
        "parameters": sum(weights) * FLOAT,
        "inputs": batch * 16 * FLOAT + batch * LABEL,
        "saved": sum(saved) * FLOAT,
        "other": sum(other) * FLOAT,
    }
    blocks = [block(numbers) for numbers in (*weights, batch * 16, *saved, *other)]
    assert found.allocated_bytes == sum(blocks) + block(batch, LABEL) + 33 * 2**20
    assert found.reserved_bytes == 34 * 2**20  # a segment of small blocks, and cuBLAS's workspace
    assert found.process_bytes == found.reserved_bytes + found.context_bytes
    assert found.unprobed == ("aten::addmm",)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_a_gpus_optimizer_works_on_lists_and_so_needs_temporaries_of_every_parameter():
    """AdamW takes the roots of all second averages at once; on the CPU of one after another."""
    model, axes = perceptron(64, 64, 64), {"workload": "training", "grad_mode": "global_on"}
    there = Predictor("cuda").predict(cell(device="cuda", optimizer="adamw", **axes), model)
    here = Predictor("cpu").predict(cell(optimizer="adamw", **axes), model)
    weights = 2 * (64 * 64 + 64) * FLOAT
    assert there.breakdown.phase == here.breakdown.phase == "optimizer"
    assert there.breakdown.ops["aten::_foreach_sqrt"] >= weights
    assert there.breakdown.parts["other"] >= weights
    assert here.breakdown.parts["other"] < 2 * (64 * 64 + 64) * FLOAT + 100


RESNET = """
from pathlib import Path
import torch
from gradbench.experiment.matrix import Cell
from gradbench.memory.predict import Predictor
from gradbench.workloads.models import MODELS
torch.set_num_threads(1)
cell = Cell(model="resnet18_224", workload="inference", grad_mode="no_grad", batch_size=64)
found = Predictor("cpu").predict(cell, MODELS["resnet18_224"])
mark = Path("/proc/self/status").read_text("utf-8").partition("VmHWM:")[2].split()[0]
print(found.peak_bytes, int(mark) * 1024)
"""


@pytest.mark.slow
def test_a_resnet_of_64_pictures_is_predicted_in_less_than_a_gibibyte():
    """Weights of 47 MB, pictures of 39 MB, and at the first BatchNorm two maps of 206 MB."""
    done = subprocess.run(
        [sys.executable, "-c", RESNET],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    peak, mark = map(int, done.stdout.split()[-2:])
    pictures, maps = 64 * 3 * 224 * 224 * FLOAT, 64 * 64 * 112 * 112 * FLOAT
    with torch.device("meta"):
        model = MODELS["resnet18_224"].build()
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert peak == pytest.approx(weights + pictures + 2 * maps, rel=0.01)
    assert mark < 2**30


def test_the_largest_batch_is_the_last_whose_peak_fits(predictor):
    """No graph: the weights, and for each sample its input, its label and two of 64 features."""
    model = perceptron(64, 64, 64, CLASSES)
    weights = (2 * (64 * 64 + 64) + 64 * CLASSES + CLASSES) * FLOAT
    sample = (64 + 2 * 64) * FLOAT + LABEL
    for batch in (1, 37, 5000):
        fit = predictor.largest(cell(), model, weights + batch * sample)
        assert (fit.batch_size, fit.peak_bytes) == (batch, weights + batch * sample)
        assert fit.next_bytes == fit.peak_bytes + sample
        assert (
            predictor.largest(cell(), model, weights + batch * sample - 1).batch_size == batch - 1
        )
    assert predictor.predict(cell(batch_size=37), model).peak_bytes == weights + 37 * sample


class Dropping(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, CLASSES)

    def forward(self, x):
        return nn.functional.dropout(self.first(x), 0.5, training=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_operators_that_a_gpu_has_others_for_are_named_where_none_is_here():
    model = Model(Dropping, partial(classification, shape=(16,)))
    there = Predictor("cuda").predict(cell(device="cuda", grad_mode="global_on"), model)
    assert [op for op in there.run_otherwise if "bernoulli" in op]
    assert Predictor("cpu").predict(cell(grad_mode="global_on"), model).run_otherwise == ()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_what_fits_a_gpu_leaves_room_for_its_context_and_kernels():
    model, member = perceptron(16, CLASSES), cell(device="cuda")
    predictor = Predictor("cuda")
    fit = predictor.largest(member, model, 2**30)
    assert fit.reserve_bytes > 2**29
    assert fit.reserve_bytes < fit.peak_bytes <= 2**30 < fit.next_bytes
    assert predictor.largest(member, model, fit.reserve_bytes).batch_size == 0


class Encoder(nn.Module):
    """nn.Transformer's parts copy a layer deeply as they are built."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x):
        return self.body(x)


class LooksAsItIsBuilt(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(16, 16), nn.SiLU()) for rate in torch.ones(3) if rate.item())
        )

    def forward(self, x):
        return self.layers(x)


class LooksAsItRuns(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        return self.layer(x).tanh() if x.sum().item() < 1e9 else x


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(16, 8, batch_first=True)

    def forward(self, x):
        return self.rnn(x)[0]


def squared(output, _target):
    return output.square().mean()


@pytest.mark.parametrize("workload", [slow("inference"), "training"])
@pytest.mark.parametrize(
    ("build", "shape", "measured"),
    [
        (Encoder, (4, 16), False),
        (LooksAsItIsBuilt, (16,), False),
        (LooksAsItRuns, (16,), True),
        (Recurrent, (4, 16), True),
    ],
)
def test_what_fakes_cannot_build_or_run_is_predicted_and_marked(build, shape, measured, workload):
    model = Model(build, partial(classification, shape=shape), loss=squared)
    one = cell(workload=workload, grad_mode="global_on")
    found = read([one], model, ["peak_allocated", "predicted_peak"])
    predicted = found[one, "predicted_peak"]
    assert predicted.values == found[one, "peak_allocated"].values
    assert predicted.notes.get("measured_at_batches") == ("8" if measured else None)
    assert set(predicted.notes) == ({"measured_at_batches", "why_measured"} if measured else set())


def test_a_large_step_that_looks_at_values_lies_on_a_line_through_two_small_ones(monkeypatch):
    monkeypatch.setattr("gradbench.memory.predict.SMALL_BYTES", 64 * 2**10)
    model = Model(LooksAsItRuns, partial(classification, shape=(16,)), loss=squared)
    one = cell(batch_size=4096, grad_mode="global_on")
    prediction = Predictor("cpu").predict(one, model)
    low, high = prediction.measured_at
    assert high == 2 * low < 4096
    found = read([one], model, ["peak_allocated"])
    assert prediction.peak_bytes == found[one, "peak_allocated"].values[0]


class Apiece(nn.Module):
    """Looks at its numbers, and makes a block for each sample: larger batches make more."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 16)

    def forward(self, x):
        if x.sum().item() == 1e9:
            return x
        return torch.stack([self.layer(row) for row in x])


def test_where_a_larger_batch_makes_more_blocks_a_line_leads_through_the_peaks(monkeypatch):
    monkeypatch.setattr("gradbench.memory.predict.MOST_ENTRIES", 64)
    model = Model(Apiece, lambda size: torch.ones(size, 16))
    one = cell(batch_size=512, grad_mode="no_grad")
    prediction = Predictor("cpu").predict(one, model)
    low, high = prediction.measured_at
    assert high == 2 * low <= 64
    assert prediction.peak_bytes == (16 * 16 + 16 + 3 * 512 * 16) * FLOAT
    found = read([one], model, ["peak_allocated"])
    assert prediction.peak_bytes == found[one, "peak_allocated"].values[0]


class Crashing(nn.Module):
    def forward(self, x):
        sys.exit("enough")


def test_a_model_that_exits_has_a_reason_and_no_effect(predictor):
    with pytest.raises(Unpredictable, match="SystemExit: enough"):
        predictor.predict(cell(), Model(Crashing, partial(classification, shape=(4,))))


def test_an_operator_that_ends_its_process_is_unknown_and_the_others_are_not():
    """`Prober` asks each twice where it is small, so the one that falls takes two children."""

    def called(func):
        return Call(func, (), (), {}, nbytes=0, extra=0, returns=(16,))

    stands, falls = called(lambda: torch.ones(4)), called(lambda: ctypes.string_at(0))
    other = called(lambda: torch.zeros(8))
    found = probe._run([stands, falls, other], Children(device=CPU()), 1)
    assert found == {stands: Seen(16, (16,)), falls: None, other: Seen(32, (32,))}


def test_a_model_that_cannot_be_built_is_asked_at_one_batch_size_and_in_its_own_words(tmp_path):
    built = tmp_path / "built"

    def build():
        with built.open("a") as file:
            file.write(".")
        raise ValueError("no weights here")

    predictor, model = Predictor("cpu"), Model(build, partial(classification, shape=(16,)))
    says = pytest.raises(CannotBuild, match=r"^it cannot be built: ValueError: no weights here$")
    with says as raised:
        predictor.largest(cell(), model, 2**30)
    assert "raise ValueError" in raised.value.frames
    times = built.stat().st_size
    assert times <= 6  # of seven batch sizes each takes more than two
    for mode in GRAD_MODES:  # nor is another cell tried
        with says:
            predictor.predict(cell(grad_mode=mode), model)
    assert built.stat().st_size == times


def test_a_prediction_over_a_file_without_weights_names_the_file(tmp_path):
    weights = tmp_path / "weights.pt"
    weights.write_text("version https://git-lfs.github.com/spec/v1\n", "utf-8")
    model = Model(partial(torch.load, weights), partial(classification, shape=(16,)))
    with pytest.raises(CannotBuild) as raised:
        Predictor("cpu").largest(cell(), model, 2**30)
    says = f"model 'it' cannot be built: {str(weights)!r} is a Git LFS pointer"
    assert str(raised.value).startswith(says)


def test_the_largest_batch_is_looked_for_from_the_smallest_that_can_be_stepped(predictor):
    def build():
        return nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8))

    model = Model(build, partial(classification, shape=(16,)), loss=squared)
    fit = predictor.largest(cell(**TRAINING), model, 64 * 2**10)
    assert fit.batch_size > 2
    assert fit.peak_bytes <= 64 * 2**10 < fit.next_bytes


def test_a_model_that_no_mode_can_train_is_not_said_to_want_another_mode(predictor):
    def build():
        return nn.Linear(4, 2).requires_grad_(requires_grad=False)

    model = Model(build, partial(classification, shape=(4,)), loss=squared)
    with pytest.raises(Unpredictable, match="its step fails: RuntimeError: element 0") as raised:
        predictor.predict(cell(workload="training"), model)
    assert type(raised.value) is Unpredictable


class KnowsAFake(nn.Linear):
    """What gives itself another path on fake tensors: there it does not copy its input."""

    def forward(self, x):
        return super().forward(x.clone() if type(x) is torch.Tensor else x)


def test_a_step_that_differs_from_its_fake_is_measured_once_it_is_checked():
    model = Model(partial(KnowsAFake, 16, 4), partial(classification, shape=(16,)))
    member = cell(batch_size=64)
    unchecked = Predictor("cpu").predict(member, model)
    checked = Predictor("cpu", checks=True).predict(member, model)
    true = read([member], model, ["peak_allocated"])[member, "peak_allocated"].values[0]
    assert unchecked.peak_bytes == true - 64 * 16 * FLOAT and not unchecked.measured_at
    assert checked.peak_bytes == true
    assert checked.measured_at == (64,) and checked.checked_at is None
    assert checked.why_measured == (
        f"at batch 2 its step needs {2 * 16 * FLOAT} B more than predicted on fake tensors"
    )


def test_what_is_checked_says_so_and_what_is_too_large_for_it_does_not(monkeypatch):
    model = perceptron(16, 4)
    assert Predictor("cpu", checks=True).predict(cell(), model).checked_at == 2
    assert Predictor("cpu", checks=True).predict(cell(batch_size=1), model).checked_at == 1
    monkeypatch.setattr(predict, "CHECKED_BYTES", 100)
    assert Predictor("cpu", checks=True).predict(cell(), model).checked_at is None


HELD = {"model": "decoder_tiny", "workload": "generate", "prompt": 4, "new_tokens": 3}


def test_modes_that_are_held_alike_share_one_step_and_each_alone_is_predicted_the_same(monkeypatch):
    model, asked, real = MODELS["decoder_tiny"], [], Predictor._run

    def counted(self, member, *arguments):
        asked.append(member.grad_mode)
        return real(self, member, *arguments)

    monkeypatch.setattr(Predictor, "_run", counted)
    members = [cell(batch_size=2, **HELD, grad_mode=mode) for mode in ("global_off", "no_grad")]
    together = Predictor("cpu")
    shared = [together.predict(one, model) for one in members]
    assert ([one.cell for one in shared], asked) == (members, ["global_off"])
    monkeypatch.setattr(predict, "same_step", lambda member: member)
    alone = Predictor("cpu").predict(members[1], model)
    assert asked == ["global_off", "no_grad"]
    assert replace(alone, seconds=0) == replace(shared[1], seconds=0)


@pytest.mark.parametrize(
    ("axes", "alike"),
    [
        ({"workload": "inference"}, True),
        ({"workload": "training_reenabled"}, True),
        ({"workload": "inference", "entry": "per_call"}, False),
        ({"workload": "frozen_backbone"}, False),
        ({"workload": "decode"}, False),
    ],
)
def test_a_step_is_another_modes_only_where_nothing_of_the_mode_is_in_it(axes, alike):
    assert (same_step(cell(**axes)) == cell(grad_mode="global_off", **axes)) is alike
    for mode in ("global_on", "global_off", "inference_mode"):
        assert same_step(cell(grad_mode=mode, **axes)) == cell(grad_mode=mode, **axes)


def test_what_a_small_batch_was_measured_for_is_not_asked_of_larger_ones_again(monkeypatch):
    asked, real = [], Predictor._run

    def counted(self, member, *arguments):
        asked.append(member.batch_size)
        return real(self, member, *arguments)

    monkeypatch.setattr(Predictor, "_run", counted)
    model = Model(LooksAsItRuns, partial(classification, shape=(16,)), loss=squared)
    fit = Predictor("cpu").largest(cell(), model, 64 * 2**10)
    assert (fit.measured_at, asked) == ((fit.batch_size,), [2])
    weights, sample = (16 * 16 + 16) * FLOAT, 3 * 16 * FLOAT + LABEL
    assert fit.batch_size == (64 * 2**10 - weights) // sample


class Turned(nn.Module):
    """A linear layer of an input that is not contiguous, as attention returns it, batch first."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 50)

    def forward(self, x):
        return self.out(x.transpose(1, 2))


@pytest.mark.parametrize("axes", [{"grad_mode": "global_on"}, {}, TRAINING], ids=named)
def test_a_bias_that_is_added_in_place_is_predicted_so(axes, predictor):
    model, member = Model(Turned, lambda size: torch.randn(size, 4, 6)), cell(**axes)
    found = read([member], model, ["peak_allocated"])
    assert predictor.predict(member, model).peak_bytes == found[member, "peak_allocated"].values[0]
