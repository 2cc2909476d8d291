"""What a peak is made of, against arithmetic spelled out by hand: 0 bytes off in every part."""

import gc
from functools import partial
from itertools import groupby, pairwise

import pytest
import torch
from patience import PATIENCE_S
from torch import nn

from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import PARTS, Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass
from gradbench.workloads.models import Model, Residual, classification, mlp

FLOAT, LABEL, COUNTER = 4, 8, 4  # bytes; AdamW counts steps in a float32
NUMBER = 8 + 4  # a Python number beside a tensor becomes one of float64, then one of float32
CLASSES = 10
WANTED = ("peak_allocated", "first_peak_allocated", "saved_for_backward", "breakdown")
WIDTHS = (32, 64, 48, CLASSES)
BATCHES = (8, 256)  # weights outweigh activations, and the other way round


class Hand:
    """An account that is kept by hand: blocks are taken and given back, and the peak is noted."""

    def __init__(self, **resident):
        self._live = {f"resident {part}": (part, nbytes) for part, nbytes in resident.items()}
        self.peak = dict.fromkeys(PARTS, 0) | resident

    def take(self, part, **blocks):
        for name, nbytes in blocks.items():
            assert name not in self._live
            self._live[name] = part, nbytes
            now = dict.fromkeys(PARTS, 0)
            for owner, size in self._live.values():
                now[owner] += size
            if sum(now.values()) > sum(self.peak.values()):
                self.peak = now

    def drop(self, *names):
        for name in names:
            del self._live[name]


@pytest.fixture(scope="module", autouse=True)
def _without_onednn(measured_here):
    """Its kernels for convolutions use layouts of their own that differ by processor: without it
    a convolution is one product with the unfolded image."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def matrix(*, batch, workload="inference", optimizer="sgd", modes=GRAD_MODES):
    return list(
        Matrix(
            models=["it"],
            workloads=[workload],
            batch_sizes=[batch],
            optimizers=[optimizer],
            grad_modes=modes,
        )
    )


def read(model, **axes):
    """Return the readings by mode and meter."""
    gc.collect()  # what an earlier test left must not be freed while this one counts
    messages = memory_pass.memory_block(matrix(**axes), model, Plan(), WANTED)
    found = [m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)]
    assert len(found) == len(matrix(**axes)) * len(WANTED)
    return {(o.cell.grad_mode, o.meter): o for o in found}


def perceptron(widths=WIDTHS):
    return Model(partial(mlp, *widths), partial(classification, shape=(widths[0],)))


def expect(found, mode, parts, *, first=None):
    """Check a cell's breakdown, and that its sums are what the peaks read."""
    breakdown, peak = found[mode, "breakdown"], found[mode, "peak_allocated"].values[0]
    assert breakdown.parts == parts
    assert breakdown.parts["unknown"] == breakdown.rounding_bytes == 0
    assert sum(parts.values()) == peak
    first = first or parts
    assert breakdown.first_parts == first
    assert sum(first.values()) == found[mode, "first_peak_allocated"].values[0]
    moments = [sum(row) for row in zip(*breakdown.timeline.values(), strict=True)]
    assert max(moments) == peak
    assert len(moments) == len(breakdown.phases)


def phases(breakdown):
    return [name for name, _ in groupby(breakdown.phases)]


def of_an_mlp(widths, batch):
    """What is there whether anything runs or not."""
    return {
        "parameters": sum(wide * narrow + narrow for wide, narrow in pairwise(widths)) * FLOAT,
        "inputs": batch * widths[0] * FLOAT + batch * LABEL,
    }


def mlp_forward(hand, widths, batch, *, graph):
    """Each linear output lives until its ReLU is done; each ReLU output until the next linear
    one is, or where a graph is recorded until backward: the next layer saves its input."""
    *hidden, last = (batch * width * FLOAT for width in widths[1:])
    for i, nbytes in enumerate(hidden):
        hand.take("other", **{f"linear{i}": nbytes})
        if i and not graph:
            hand.drop(f"relu{i - 1}")
        hand.take("saved" if graph else "other", **{f"relu{i}": nbytes})
        hand.drop(f"linear{i}")
    hand.take("other", output=last)


def mlp_backward(hand, widths, batch):
    """From the loss back: beside each gradient of an activation that of the weight it meets."""
    layers = list(pairwise(widths))
    scores = batch * widths[-1] * FLOAT
    hand.take("saved", log_softmax=scores)
    hand.take("other", loss=FLOAT)
    hand.take("saved", weight_of_labels=FLOAT)
    hand.drop("output")
    hand.take("other", seed=FLOAT, d_log_softmax=scores)
    hand.drop("weight_of_labels")
    hand.take("other", d_output=scores)
    hand.drop("d_log_softmax", "log_softmax")
    for i, (wide, narrow) in reversed(list(enumerate(layers))):
        incoming = "d_output" if i == len(layers) - 1 else f"d_linear{i}"
        if i:
            hand.take("other", **{f"d_relu{i - 1}": batch * wide * FLOAT})
        hand.take("gradients", **{f"d_weight{i}": wide * narrow * FLOAT})
        hand.take("gradients", **{f"d_bias{i}": narrow * FLOAT})
        hand.drop(incoming)
        if i:
            hand.take("other", **{f"d_linear{i - 1}": batch * wide * FLOAT})
            hand.drop(f"d_relu{i - 1}", f"relu{i - 1}")
    hand.drop("seed", "loss")


def sizes(widths):
    """Bytes of each parameter in their order."""
    return [n * FLOAT for wide, narrow in pairwise(widths) for n in (wide * narrow, narrow)]


def momentum(hand, widths):
    """A copy of each gradient, made in the first step."""
    for i, nbytes in enumerate(sizes(widths)):
        hand.take("optimizer_state", **{f"momentum{i}": nbytes})


def adamw_state(hand, widths):
    """Two averages of each gradient and a counter, made in the first step before any update."""
    for i, nbytes in enumerate(sizes(widths)):
        hand.take("optimizer_state", **{f"counter{i}": COUNTER, f"averages{i}": 2 * nbytes})


def adamw_update(hand, widths):
    """The root of the second average, then it divided by a number; the last parameter's quotient
    still has its name in the loop."""
    for i, nbytes in enumerate(sizes(widths)):
        hand.take("other", **{f"root{i}": nbytes})
        hand.take("other", number=NUMBER, **{f"quotient{i}": nbytes})
        hand.drop("number", f"root{i}", *([f"quotient{i - 1}"] if i else []))


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_an_mlps_inference_is_one_layer_or_all_that_is_saved(mode):
    found = read(perceptron(), batch=8, modes=[mode])
    hand = Hand(**of_an_mlp(WIDTHS, 8))
    mlp_forward(hand, WIDTHS, 8, graph=mode == "global_on")
    expect(found, mode, hand.peak)
    weights = (32 * 64 + 64) + (64 * 48 + 48) + (48 * 10 + 10)
    assert hand.peak == dict.fromkeys(PARTS, 0) | {
        "parameters": weights * 4,
        "inputs": 8 * 32 * 4 + 8 * 8,
        # with a graph at the second ReLU, without at the first, beside its input
        "saved": 8 * (64 + 48) * 4 if mode == "global_on" else 0,
        "other": 8 * 48 * 4 if mode == "global_on" else 8 * (64 + 64) * 4,
    }
    assert phases(found[mode, "breakdown"]) == ["prepare", "forward"]


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(
    ("workload", "mode"),
    [("training", "global_on"), *(("training_reenabled", mode) for mode in GRAD_MODES)],
)
def test_an_mlps_training_peaks_in_backward(workload, mode, batch):
    found = read(perceptron(), batch=batch, workload=workload, modes=[mode])
    hand = Hand(**of_an_mlp(WIDTHS, batch))
    mlp_forward(hand, WIDTHS, batch, graph=True)
    mlp_backward(hand, WIDTHS, batch)
    expect(found, mode, hand.peak)
    assert phases(found[mode, "breakdown"]) == ["prepare", "forward", "loss", "backward"]


def test_which_gradients_and_activations_meet_at_the_peak_depends_on_the_batch():
    """8 samples: at the last weight gradient nothing is saved any more, all gradients are there,
    the activation's of 64 features, the loss and its seed. 256 samples: at the second ReLU's
    gradient, the first in backward, both ReLUs' outputs are saved yet, two gradients of 48
    features are there, and of the weights only the last layer's."""
    found = {
        batch: read(perceptron(), batch=batch, workload="training", modes=["global_on"])[
            "global_on", "breakdown"
        ].parts
        for batch in BATCHES
    }
    weights = (32 * 64 + 64) + (64 * 48 + 48) + (48 * 10 + 10)
    assert found[8]["gradients"] == weights * 4
    assert found[8]["saved"] == 0
    assert found[8]["other"] == 8 * 64 * 4 + 4 + 4
    assert found[256]["gradients"] == (48 * 10 + 10) * 4
    assert found[256]["saved"] == 256 * (64 + 48) * 4
    assert found[256]["other"] == 256 * (48 + 48) * 4 + 4 + 4


@pytest.mark.parametrize("batch", BATCHES)
def test_momentum_is_made_in_the_first_step_beside_all_gradients(batch):
    """For few samples the first step's peak is there, and all of it is for the optimizer."""
    model = perceptron()
    found = read(
        model, batch=batch, workload="training", optimizer="sgd_momentum", modes=["global_on"]
    )
    first = Hand(**of_an_mlp(WIDTHS, batch))
    mlp_forward(first, WIDTHS, batch, graph=True)
    mlp_backward(first, WIDTHS, batch)
    momentum(first, WIDTHS)
    warm = Hand(**of_an_mlp(WIDTHS, batch), optimizer_state=sum(sizes(WIDTHS)))
    mlp_forward(warm, WIDTHS, batch, graph=True)
    mlp_backward(warm, WIDTHS, batch)
    warm.take("other", number=NUMBER)  # beside the gradients: the state times 0.9
    expect(found, "global_on", warm.peak, first=first.peak)
    assert warm.peak["optimizer_state"] == sum(sizes(WIDTHS))
    if batch == min(BATCHES):
        assert first.peak["optimizer_state"] == first.peak["gradients"] == sum(sizes(WIDTHS))
        assert first.peak["other"] == 0
    else:
        assert first.peak["optimizer_state"] == 0


@pytest.mark.parametrize("batch", BATCHES)
def test_adamw_keeps_two_averages_and_a_counter_and_needs_two_temporaries_more(batch):
    found = read(
        perceptron(), batch=batch, workload="training", optimizer="adamw", modes=["global_on"]
    )
    state = 2 * sum(sizes(WIDTHS)) + 6 * COUNTER
    first = Hand(**of_an_mlp(WIDTHS, batch))
    mlp_forward(first, WIDTHS, batch, graph=True)
    mlp_backward(first, WIDTHS, batch)
    adamw_state(first, WIDTHS)
    adamw_update(first, WIDTHS)
    warm = Hand(**of_an_mlp(WIDTHS, batch), optimizer_state=state)
    mlp_forward(warm, WIDTHS, batch, graph=True)
    mlp_backward(warm, WIDTHS, batch)
    adamw_update(warm, WIDTHS)
    expect(found, "global_on", warm.peak, first=first.peak)
    assert warm.peak["optimizer_state"] == state
    assert phases(found["global_on", "breakdown"]) == [
        "prepare",
        "forward",
        "loss",
        "backward",
        "optimizer",
    ]
    if batch == min(BATCHES):  # at the largest weight, after its predecessor, a bias of 64
        assert warm.peak["other"] == 2 * 64 * 48 * 4 + NUMBER + 64 * 4
        assert first.peak == warm.peak


def test_training_where_nothing_is_recorded_has_no_breakdown_but_torchs_words():
    found = read(perceptron(), batch=8, workload="training", modes=GRAD_MODES[1:])
    assert {(o.cause, "does not require grad" in o.reason) for o in found.values()} == {
        ("cannot_train", True)
    }


SIDE, BATCH = 8, 4


def cnn(channels):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


def residual_cnn(channels):
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, padding=1, bias=False),
        Residual(channels, channels, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, CLASSES),
    )


def images(build, channels):
    return Model(partial(build, channels), partial(classification, shape=(3, SIDE, SIDE)))


MAP = BATCH * SIDE * SIDE * FLOAT  # one channel of every image
PICTURES = 3 * MAP + BATCH * LABEL
COLUMNS = 3 * 3 * MAP  # one channel, unfolded for a 3x3 kernel


def statistics(channels):
    """Running mean and variance, and the count of batches."""
    return 2 * channels * FLOAT + 8


def norm(channels):
    """Weight and bias of a BatchNorm, or mean and deviation of a batch."""
    return 2 * channels * FLOAT


def linear(channels):
    return (channels + 1) * CLASSES * FLOAT


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_a_cnns_inference_is_two_maps_or_with_a_graph_three(mode):
    """32 channels: unfolded pictures (27) and a map are less than two maps. Without a graph the
    peak is within BatchNorm, beside its input and what its scale and shift come to; with one at
    the ReLU: BatchNorm's input and the ReLU's output are saved, the map between is not."""
    channels = 32
    found = read(images(cnn, channels), batch=BATCH, modes=[mode])
    graph = mode == "global_on"
    expect(
        found,
        mode,
        dict.fromkeys(PARTS, 0)
        | {
            "parameters": channels * 3 * 9 * FLOAT + norm(channels) + linear(channels),
            "buffers": statistics(channels),
            "inputs": PICTURES,
            "saved": 2 * channels * MAP if graph else 0,
            "other": channels * MAP if graph else 2 * channels * MAP + norm(channels),
        },
    )


def test_the_first_convolutions_columns_are_the_peak_of_a_narrow_cnn():
    """8 channels: unfolded pictures (27) and a map (8) are more than any two or three maps."""
    found = read(images(cnn, 8), batch=BATCH, modes=["global_on", "no_grad"])
    for mode, saved in (("global_on", 8 * MAP), ("no_grad", 0)):
        breakdown = found[mode, "breakdown"]
        assert breakdown.parts["saved"] == saved
        assert breakdown.parts["saved"] + breakdown.parts["other"] == 3 * COLUMNS + 8 * MAP


def test_a_cnns_training_peaks_in_batch_norms_backward():
    """BatchNorm's input and its batch's mean and deviation are saved; the gradients of its
    output and input and a temporary of the same size are not. The gradients of the last layer
    and of BatchNorm are there, the convolution's is yet to come."""
    channels = 32
    found = read(images(cnn, channels), batch=BATCH, workload="training", modes=["global_on"])
    expect(
        found,
        "global_on",
        dict.fromkeys(PARTS, 0)
        | {
            "parameters": channels * 3 * 9 * FLOAT + norm(channels) + linear(channels),
            "buffers": statistics(channels),
            "inputs": PICTURES,
            "gradients": linear(channels) + norm(channels),
            "saved": channels * MAP + norm(channels),
            "other": 3 * channels * MAP + FLOAT + FLOAT,  # the loss and its seed
        },
    )


RESIDUAL_CHANNELS = 8


def of_a_residual_cnn(channels):
    return dict.fromkeys(PARTS, 0) | {
        "parameters": channels * 3 * 9 * FLOAT
        + 2 * (channels * channels * 9 * FLOAT + norm(channels))
        + linear(channels),
        "buffers": 2 * statistics(channels),
        "inputs": PICTURES,
    }


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_a_residual_cnns_inference_peaks_in_the_second_convolution(mode):
    """The shortcut holds the block's input all the while. Beside it stand the convolution's
    input, that input unfolded, and its output; with a graph the first convolution's output too,
    which BatchNorm saved, and all but the unfolded one are saved."""
    channels = RESIDUAL_CHANNELS
    found = read(images(residual_cnn, channels), batch=BATCH, modes=[mode])
    graph = mode == "global_on"
    maps = channels * MAP
    expect(
        found,
        mode,
        of_a_residual_cnn(channels)
        | {
            "saved": 4 * maps if graph else 0,
            "other": channels * COLUMNS if graph else 3 * maps + channels * COLUMNS,
        },
    )


def test_a_residual_cnns_training_peaks_in_the_second_convolutions_backward():
    """Saved yet: the block's input, the first convolution's output with its batch's mean and
    deviation, the second's input. Gradients: of the last layer, the second BatchNorm and the
    second convolution. Others: the gradients of the block's output, which the shortcut needs,
    of the convolution's output and input, and the unfolded input."""
    channels = RESIDUAL_CHANNELS
    found = read(
        images(residual_cnn, channels), batch=BATCH, workload="training", modes=["global_on"]
    )
    maps = channels * MAP
    expect(
        found,
        "global_on",
        of_a_residual_cnn(channels)
        | {
            "gradients": linear(channels) + norm(channels) + channels * channels * 9 * FLOAT,
            "saved": 3 * maps + norm(channels),
            "other": 3 * maps + channels * COLUMNS + FLOAT + FLOAT,
        },
    )


@pytest.mark.parametrize("model", [perceptron(), images(residual_cnn, 8)], ids=["mlp", "cnn"])
@pytest.mark.parametrize("workload", ["inference", "training_reenabled"])
def test_the_modules_that_had_tensors_saved_hold_all_that_was_saved(model, workload):
    found = read(model, batch=BATCH, workload=workload)
    for mode in GRAD_MODES:
        modules = found[mode, "breakdown"].modules
        assert len(modules) <= memory_pass.MODULES
        assert sum(modules.values()) == found[mode, "saved_for_backward"].values[0]
        assert list(modules.values()) == sorted(modules.values(), reverse=True)


def test_modules_are_named_by_their_paths_and_the_loss_by_words():
    found = read(perceptron(), batch=8, workload="training", modes=["global_on"])
    assert found["global_on", "breakdown"].modules == {
        "1": 8 * 64 * FLOAT,
        "3": 8 * 48 * FLOAT,
        memory_pass.OUTSIDE: 8 * CLASSES * FLOAT + FLOAT,
    }


def test_ten_modules_are_named_at_most_and_those_hold_the_most():
    widths = (8, *range(12, 24), CLASSES)
    found = read(perceptron(widths), batch=8, modes=["global_on"])
    modules = found["global_on", "breakdown"].modules
    assert list(modules.values()) == [8 * width * FLOAT for width in range(23, 13, -1)]


@pytest.mark.parametrize(
    ("runs", "processes"), [(2, 1), pytest.param(10, 2, marks=pytest.mark.slow)]
)
def test_runs_and_fresh_processes_agree_to_the_byte_and_to_the_moment(runs, processes, servers):
    model = images(residual_cnn, 8)
    axes = {
        "batch": BATCH,
        "workload": "training_reenabled",
        "optimizer": "adamw",
        "modes": ["inference_mode"],
    }
    first, *others = (read(model, **axes) for _ in range(runs))
    assert all(other == first for other in others)
    with torch.backends.mkldnn.flags(enabled=True):  # as processes have it
        here = read(model, **axes)
    server = servers("memory")
    for _ in range(processes):
        messages = server.run(
            memory_pass.memory_block, matrix(**axes), model, Plan(), WANTED, limit_s=PATIENCE_S
        )
        there = [m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)]
        assert {(o.cell.grad_mode, o.meter): o for o in there} == here
