"""A module that replaces what it keeps has the peaks of a plain loop: nothing else holds it."""

from functools import partial

import pytest
import torch
from torch import nn

from gradbench.devices.cpu import ProfilerLedger
from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass
from gradbench.workloads.grad_modes import MODES
from gradbench.workloads.models import Model
from gradbench.workloads.trees import Batch

ROWS, WIDTH, FLOAT = 8, 64, 4
OUTPUT = ROWS * WIDTH * FLOAT
FIGURES = ["peak_allocated", "first_peak_allocated", "saved_for_backward", "breakdown"]

pytestmark = pytest.mark.usefixtures("measured_here")


class GrowsByCat(nn.Module):
    """Keys of all calls so far, one after the other, as a key-value cache has them."""

    def __init__(self):
        super().__init__()
        self.keys = torch.zeros(ROWS, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        self.keys = torch.cat([self.keys, self.layer(x).detach()])
        return self.layer(x) + self.keys.sum()


class ReplacesItsPair(nn.Module):
    """A pair in a tuple, where only the tuple is replaced."""

    def __init__(self):
        super().__init__()
        self.layer, self.pair = nn.Linear(WIDTH, WIDTH), (torch.ones(ROWS, WIDTH),) * 2

    def forward(self, x):
        y = self.layer(x + self.pair[0])
        self.pair = (y.detach().tanh(), y.detach().cos())
        return y.sin()


class KeepsItsOutput(nn.Module):
    """The last output, with its graph where there is one."""

    def __init__(self):
        super().__init__()
        self.layer, self.last = nn.Linear(WIDTH, WIDTH), torch.ones(ROWS, WIDTH)

    def forward(self, x):
        self.last = self.layer(x).relu()
        return self.last


def old_weight_norm():
    return nn.utils.weight_norm(nn.Linear(WIDTH, WIDTH))


def of_batch(batch_size):
    return Batch((torch.ones(batch_size, WIDTH),))


def total(output, _batch):
    return output.sum()


def measured(build, workload, modes):
    cells = Matrix(
        models=["it"],
        workloads=[workload],
        grad_modes=modes,
        batch_sizes=[ROWS],
        optimizers=["sgd"],
    )
    model = Model(build, of_batch, total)
    found = memory_pass.memory_block(list(cells), model, Plan(), FIGURES)
    return {
        (one.cell.grad_mode, one.meter): one
        for one in found
        if isinstance(one, Measurement | Breakdown)
    }


def peaks_of_a_plain_loop(build, workload, mode):
    """Return the peaks of the first and the third step, with nothing held but what the loop has."""
    ledger = ProfilerLedger()
    (net, x), _ = ledger.observe(lambda: (build(), torch.ones(ROWS, WIDTH)))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    net.train(workload == "training")

    def step():
        with MODES[mode].hold():
            if workload == "training":
                net(x).sum().backward()
                optimizer.step()
            else:
                net(x)

    peaks = []
    for _ in range(3):
        _, window = ledger.observe(step)
        peaks.append(window.peak_bytes)
        ledger.observe(partial(optimizer.zero_grad, set_to_none=True))
    return peaks[0], peaks[2]


@pytest.mark.parametrize("build", [GrowsByCat, ReplacesItsPair, KeepsItsOutput, old_weight_norm])
@pytest.mark.parametrize(
    ("workload", "modes"), [("inference", GRAD_MODES), ("training", ["global_on"])]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_what_a_step_replaces_is_gone_as_in_a_plain_loop(build, workload, modes):
    found = measured(build, workload, modes)
    for mode in modes:
        peaks = (found[mode, "first_peak_allocated"].values[0],)
        peaks += (found[mode, "peak_allocated"].values[0],)
        assert peaks == peaks_of_a_plain_loop(build, workload, mode)
        assert sum(found[mode, "breakdown"].parts.values()) == peaks[1]


def test_a_cache_that_grows_is_counted_once_as_it_was_and_once_longer():
    """The third step has three outputs in its cache, and makes one of four beside it."""
    found = measured(GrowsByCat, "inference", ["no_grad"])
    there = (WIDTH * WIDTH + WIDTH) * FLOAT + OUTPUT
    before, new, after = 3 * OUTPUT, OUTPUT, 4 * OUTPUT
    assert found["no_grad", "peak_allocated"].values == (there + before + new + after,)


@pytest.mark.parametrize("build", [GrowsByCat, KeepsItsOutput])
def test_what_is_saved_is_of_the_step_whose_peak_counts(build):
    found = measured(build, "training", ["global_on"])
    kept = OUTPUT if build is KeepsItsOutput else 0  # relu keeps its output
    assert found["global_on", "saved_for_backward"].values == (kept,)


def test_a_model_that_trains_where_it_must_not_has_the_peaks_of_global_on():
    """Its state is kept, to ask whether the mode is why it fails; but it does not fail."""

    class Enabling(KeepsItsOutput):
        forward = torch.enable_grad()(KeepsItsOutput.forward)

    model = Model(Enabling, of_batch, torch.enable_grad()(total))
    modes = ["global_on", "no_grad"]
    cells = Matrix(models=["it"], workloads=["training"], grad_modes=modes, batch_sizes=[ROWS])
    messages = memory_pass.memory_block(list(cells), model, Plan(), FIGURES[:2])
    found = {
        (one.cell.grad_mode, one.meter): one.values
        for one in messages
        if isinstance(one, Measurement)
    }
    assert len(found) == len(modes) * 2
    for meter in FIGURES[:2]:
        assert found["no_grad", meter] == found["global_on", meter]


def test_a_model_that_builds_only_once_keeps_its_peak_and_has_a_reason_for_its_parts():
    built = []

    def once():
        if built:
            raise RuntimeError("only one of me")
        built.append(True)
        return GrowsByCat()

    cells = Matrix(
        models=["it"], workloads=["inference"], grad_modes=["no_grad"], batch_sizes=[ROWS]
    )
    messages = memory_pass.memory_block(list(cells), Model(once, of_batch, total), Plan(), FIGURES)
    found = {one.meter: one for one in messages if isinstance(one, Measurement | Skipped)}
    assert isinstance(found["peak_allocated"], Measurement)
    for meter in ("breakdown", "saved_for_backward"):
        assert "built a second time: RuntimeError: only one of me" in found[meter].reason
