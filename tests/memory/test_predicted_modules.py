"""Modules that people have: predicted to the byte, measured and marked, or a reason; never else.

Each is small, and written for what its row says: a constructor or a step that looks at numbers,
gradients that meet, kernels whose outputs fake tensors do not know, an executor of its own.
"""

import gc
import tempfile
import threading
from functools import partial

import numpy as np
import pytest
import torch
from batches import unlabelled
from torch import get_rng_state, nn
from torch.autograd import grad
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradbench.devices.cpu import CPU
from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.memory.child_process import Children
from gradbench.memory.predict import Predictor, Unpredictable
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner import memory_pass
from gradbench.workloads.losses import mean_square
from gradbench.workloads.models import Model

pytestmark = pytest.mark.usefixtures("measured_here")

WIDE = 16


class Steps(nn.Module):
    """A linear layer, then a function of its output and of two more layers."""

    def __init__(self, step):
        super().__init__()
        self.first, self.a, self.b = (nn.Linear(WIDE, WIDE) for _ in range(3))
        self.step = step

    def forward(self, x):
        return self.step(self, self.first(x).sin())


def drops(module, y):
    module.training_seen = module.training
    return functional.dropout(module.a(y), 0.1, module.training) + module.b(y)


def picks(module, y):
    return module.a(y)[(y > -9).nonzero(as_tuple=True)]


def branches(module, y):
    return module.a(y) if y.sum().item() < 1e9 else y


def halves(module, y):
    left, right = y.chunk(2, 1)
    return (left * right).sum(1) + module.a(y).sin().sum(1) + module.b(y).cos().sum(1)


def turned(module, y):
    squares = y.view(-1, 4, 4).transpose(1, 2).sin().sum((1, 2))
    return squares + y.cos().sum(1) + module.a(y).sum(1)


STEPS = {
    "numbers_kept": lambda _, y: ((y * 0.5) / 3).sin() * 2 + y * 0.1,
    "two_ways": lambda module, y: module.a(y) + module.b(y) * y,
    "spread_and_dense": lambda module, y: y.sum(1) + y.cos().sum(1) + module.a(y).exp().sum(1),
    "halves": halves,
    "turned": turned,
    "tied": lambda module, y: module.a(module.a(y).sin()).sin(),
    "joined": lambda module, y: torch.cat([module.a(y), module.b(y), y], 1).sin(),
    "normed": lambda module, y: functional.layer_norm(y, (WIDE,)) + module.a(y).softmax(-1) * y,
    "drops": drops,
    "silu": lambda module, y: module.b(functional.silu(module.a(y))),
    "mish": lambda module, y: module.b(functional.mish(module.a(y))),
    "checkpointed": lambda module, y: checkpoint(module.a, y, use_reentrant=False) * y,
    "reentrant": lambda module, y: checkpoint(module.a, y, use_reentrant=True) * y,
}


class Attention(nn.Module):
    """Self-attention by torch's own layer, with a fused operator where nothing is recorded."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDE, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Biased(nn.Module):
    """Attention with a learned bias of positions, written out: many gradients meet at one input."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDE, WIDE, bias=False) for _ in range(4))
        self.bias = nn.Embedding(8, 1)

    def forward(self, x):
        for _ in range(2):
            normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            at = torch.arange(x.shape[1])
            bias = self.bias((at[:, None] - at).abs()).squeeze(-1)
            scores = self.q(normed) @ self.k(normed).transpose(1, 2) + bias
            x = x + self.out(scores.softmax(-1) @ self.v(normed))
        return x


class Whole(nn.Module):
    """torch's encoder and decoder, which copy their layers deeply."""

    def __init__(self):
        super().__init__()
        self.body = nn.Transformer(WIDE, 2, 1, 1, 32, batch_first=True)

    def forward(self, x):
        return self.body(x, x)


class LooksWhenBuilt(nn.Module):
    """Depth and rates are numbers of a tensor, as in vision transformers with stochastic depth."""

    def __init__(self):
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.layers = nn.ModuleList(nn.Linear(WIDE, WIDE) for _ in self.rates)

    def forward(self, x):
        for layer, rate in zip(self.layers, self.rates, strict=True):
            x = layer(x) * (1 - rate)
        return x


class PlainTable(nn.Module):
    """A table that is neither a parameter nor a buffer, copied because the depth is looked at."""

    def __init__(self):
        super().__init__()
        self.table = torch.arange(100.0 * WIDE).view(100, WIDE)
        self.depth = int(self.table[0, 1].item())
        self.layer = nn.Linear(WIDE, WIDE)

    def forward(self, x):
        return self.layer(x) + self.table[: x.shape[0]]


class Recurrent(nn.Module):
    """Two layers of a recurrent kind, and the last output classified."""

    def __init__(self, kind):
        super().__init__()
        self.body, self.out = kind(WIDE, 8, num_layers=2, batch_first=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.body(x)[0][:, -1])


class Projected(nn.Module):
    """An LSTM whose outputs are projected, batch first: its input is not contiguous."""

    def __init__(self):
        super().__init__()
        self.body = nn.LSTM(WIDE, 8, proj_size=4, batch_first=True)

    def forward(self, x):
        return self.body(x)[0]


class SparseTable(nn.Module):
    """An embedding whose gradient is sparse."""

    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.table((x.abs() * 10).long().clamp(max=49)).mean(1))


def small():
    return nn.Sequential(nn.Linear(WIDE, 32), nn.ReLU(), nn.Linear(32, 4))


def orthogonal():
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(WIDE, WIDE))
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(WIDE, 4))


THERE_BEFORE = small()


class Tabled(nn.Module):
    """A linear layer, and a table that is a plain attribute."""

    def __init__(self, table):
        super().__init__()
        self.layer, self.table = nn.Linear(WIDE, WIDE), table()

    def forward(self, x):
        return self.layer(x) + self.table[: x.shape[0]]


def weighted(*weights):
    """Linear layers of these weights, a ReLU between."""
    layers = []
    for weight in weights:
        layer = nn.Linear(WIDE, WIDE, bias=False)
        layer.weight = nn.Parameter(weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers)


def numpys():
    return torch.from_numpy(np.ones((100, WIDE), np.float32))


def from_file():
    with tempfile.NamedTemporaryFile() as file:
        file.write(bytes(100 * WIDE * 4))
        file.flush()
        return torch.from_file(file.name, size=100 * WIDE, dtype=torch.float32).view(100, WIDE)


def slices_of_a_file():
    table = from_file()
    return weighted(table[:WIDE], table[WIDE : 2 * WIDE])


def overlapping():
    numbers = np.ones((100, WIDE), np.float32)
    return weighted(torch.from_numpy(numbers[:WIDE]), torch.from_numpy(numbers[8 : 8 + WIDE]))


@torch.jit.script
def gated(x):
    return x * torch.sigmoid(x) + x.tanh()


class Spectral(nn.Module):
    """A complex filter: its gradient is of conjugates, which kernels write out first."""

    def __init__(self):
        super().__init__()
        self.filter = nn.Parameter(torch.randn(WIDE // 2 + 1, dtype=torch.complex64))

    def forward(self, x):
        return (torch.fft.rfft(x) * self.filter).abs().square()


def exported():
    return torch.export.export(small(), (torch.zeros(8, WIDE),)).module()


def in_a_fork_of_the_numbers(module, y):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        noise = torch.rand_like(y)
    return module.a(y) * noise


def pulls(module, y):
    """A derivative in a thread of the forward, by a name that the module gave torch's function."""
    forces = []

    def work():
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = y.detach().clone().requires_grad_()
            z = module.a(x).repeat(1, 32)
            forces.extend(grad((z * 2).sum() + (z * 3).sum() + (z * 4).sum(), x))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return module.b(y) * forces[0]


def turns(module, y):
    """A linear layer of what is not contiguous, in a thread of the forward."""
    made = []

    def work():
        with torch.set_grad_enabled(not torch.is_inference_mode_enabled()):
            z = y.view(-1, 4, 4).transpose(1, 2).unsqueeze(2).expand(-1, -1, 4, -1)
            made.append(functional.linear(z, module.a.weight[:, :4], module.a.bias))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return made[0].sum((1, 2)).sin() + module.b(y)


def keeps_states(module, y):
    states = [get_rng_state() for _ in range(2)]
    torch.random.set_rng_state(states[0])
    return module.a(y).sin()


EXACT = {name: (partial(Steps, step), (WIDE,)) for name, step in STEPS.items()} | {
    "attention": (Attention, (6, WIDE)),
    "biased": (Biased, (6, WIDE)),
    "whole": (Whole, (6, WIDE)),
    "looks_when_built": (LooksWhenBuilt, (WIDE,)),
    "plain_table": (PlainTable, (WIDE,)),
    "there_before": (lambda: THERE_BEFORE, (WIDE,)),
    "numpy_weights": (lambda: weighted(numpys()[:WIDE]), (WIDE,)),
    "numpy_table": (partial(Tabled, numpys), (WIDE,)),
    "file_table": (partial(Tabled, from_file), (WIDE,)),
    "file_slices": (slices_of_a_file, (WIDE,)),
    "pulls_in_a_thread": (partial(Steps, pulls), (WIDE,)),
    "turns_in_a_thread": (partial(Steps, turns), (WIDE,)),
    "imported_states": (partial(Steps, keeps_states), (WIDE,)),
    "forked_numbers": (partial(Steps, in_a_fork_of_the_numbers), (WIDE,)),
}
MEASURED = {
    "picks": (partial(Steps, picks), (WIDE,)),
    "branches": (partial(Steps, branches), (WIDE,)),
    "lstm": (partial(Recurrent, nn.LSTM), (5, WIDE)),
    "projected": (Projected, (5, WIDE)),
    "sparse_gradient": (SparseTable, (6,)),
    "orthogonal": (orthogonal, (WIDE,)),
    "gru": (partial(Recurrent, nn.GRU), (5, WIDE)),
    "overlapping": (overlapping, (WIDE,)),
    "script_function": (partial(Steps, lambda module, y: gated(module.a(y))), (WIDE,)),
    "exported": (exported, (WIDE,)),
    "spectral": (Spectral, (WIDE,)),
    "scripted": (lambda: torch.jit.script(small()), (WIDE,)),
}
IN_TRAINING = ("sparse_gradient", "spectral")  # else there is no gradient of that kind
WITH_GRAPH = {"grad_mode": "global_on"}
WAYS = [
    {"workload": "training"} | WITH_GRAPH,
    {"workload": "inference"} | WITH_GRAPH,
    {"workload": "inference", "grad_mode": "inference_mode"},
]


@pytest.fixture(scope="module")
def predictor():
    return Predictor("cpu")


def model_of(build, shape):
    return Model(build, partial(unlabelled, shape=shape), loss=mean_square)


def cell(**axes):
    return Cell(**{"model": "it", "batch_size": 8} | axes)


def measured_peak(one, model):
    """In a process of its own, as a run does: TorchScript's executor remembers earlier modes."""

    def measured(_say):
        gc.collect()
        messages = memory_pass.memory_block([one], model, Plan(), ["peak_allocated"])
        (outcome,) = [m for m in messages if isinstance(m, Measurement | Skipped)]
        return outcome.values[0]

    return Children(device=CPU()).run(measured)


def way_of(axes):
    return "-".join(axes.values())


QUICK = frozenset(
    [
        "two_ways",
        "halves",
        "reentrant",
        "biased",
        "looks_when_built",
        "numpy_table",
        "file_slices",
        "pulls_in_a_thread",
        "imported_states",
        "picks",
        "lstm",
        "script_function",
    ]
)
"""Rows that stand for their kinds; the others are for the night."""


def marked(name):
    return () if name in QUICK else (pytest.mark.slow, pytest.mark.thorough)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "axes"),
    [
        pytest.param(name, axes, marks=marked(name))
        for name in EXACT
        for axes in (WAYS[:2] if name in STEPS else WAYS)
    ],
    ids=lambda value: value if isinstance(value, str) else way_of(value),
)
def test_a_module_is_predicted_to_the_byte_or_marked_as_measured(name, axes, predictor):
    one, model = cell(**axes), model_of(*EXACT[name])
    prediction = predictor.predict(one, model)
    assert prediction.peak_bytes == measured_peak(one, model)
    assert prediction.unprobed == ()
    fused = axes["grad_mode"] == "inference_mode" and name in ("attention", "whole")
    assert bool(prediction.measured_at) == fused
    assert bool(prediction.why_measured) == fused


@pytest.mark.parametrize(
    "axes", [WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])], ids=way_of
)
@pytest.mark.parametrize("name", [pytest.param(name, marks=marked(name)) for name in MEASURED])
def test_what_fake_tensors_cannot_say_is_measured_and_says_so(name, axes, predictor):
    one, model = cell(**axes), model_of(*MEASURED[name])
    prediction = predictor.predict(one, model)
    if name not in IN_TRAINING or axes["workload"] == "training":
        assert prediction.measured_at == (8,)
        assert prediction.how == "measured at batch 8"
        assert prediction.why_measured
    assert prediction.peak_bytes == measured_peak(one, model)


def test_a_measured_step_is_carried_on_block_by_block_even_where_the_peak_moves(monkeypatch):
    """At the small batches AdamW's update is the highest moment, at the large one backward is:
    a line through the two peaks would be flat."""
    monkeypatch.setattr("gradbench.memory.predict.SMALL_BYTES", 2**14)
    axes = {"workload": "training", "optimizer": "adamw"} | WITH_GRAPH
    model, one = model_of(*MEASURED["branches"]), cell(batch_size=512, **axes)
    prediction = Predictor("cpu").predict(one, model)
    assert len(prediction.measured_at) == 2
    assert max(prediction.measured_at) < 512
    low = Predictor("cpu").predict(cell(batch_size=prediction.measured_at[0], **axes), model)
    assert low.breakdown.phase == "optimizer"
    assert prediction.breakdown.phase != "optimizer"
    assert prediction.peak_bytes == measured_peak(one, model)


class Compiled(nn.Module):
    """An ordinary module that calls a compiled function."""

    def __init__(self):
        super().__init__()
        self.layer, self.function = nn.Linear(WIDE, WIDE), torch.compile(torch.relu)

    def forward(self, x):
        return self.function(self.layer(x))


def compiled_in_place():
    module = small()
    module.compile()
    return module


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: torch.compile(small()), marks=pytest.mark.slow),
        pytest.param(compiled_in_place, marks=pytest.mark.slow),
        Compiled,
    ],
)
def test_a_module_that_is_compiled_somewhere_is_a_reason(build, predictor):
    with pytest.raises(Unpredictable, match="compiled code allocates by its own plan"):
        predictor.predict(cell(workload="inference", grad_mode="no_grad"), model_of(build, (WIDE,)))


def test_a_module_that_was_there_before_keeps_its_own_tensors(predictor):
    kept = [*THERE_BEFORE.parameters()]
    predictor.predict(cell(**WAYS[0]), model_of(lambda: THERE_BEFORE, (WIDE,)))
    assert [*map(id, THERE_BEFORE.parameters())] == [*map(id, kept)]
    assert {type(tensor) for tensor in kept} == {nn.Parameter}


def test_the_operator_whose_outputs_are_others_for_real_is_named(predictor):
    prediction = predictor.predict(cell(**WAYS[1]), model_of(*MEASURED["lstm"]))
    assert prediction.why_measured == (
        "aten::mkldnn_rnn_layer returns other sizes than on fake tensors"
    )


def test_an_operator_that_goes_by_its_numbers_is_named(predictor):
    prediction = predictor.predict(cell(**WAYS[1]), model_of(*MEASURED["orthogonal"]))
    assert prediction.why_measured == (
        "what aten::linalg_matrix_exp needs inside depends on its numbers"
    )


def test_a_model_too_large_to_be_built_for_real_is_built_on_meta(predictor, monkeypatch):
    """Its constructor reads a number of a tensor that it puts on the CPU itself."""

    class Large(nn.Module):
        def __init__(self):
            super().__init__()
            rate = torch.linspace(0, 1, 2, device="cpu")[1].item()
            self.layers = nn.Sequential(nn.Linear(WIDE, int(WIDE * rate)), nn.Linear(WIDE, 4))

        def forward(self, x):
            return self.layers(x)

    one, model = cell(workload="inference", grad_mode="no_grad"), model_of(Large, (WIDE,))
    expected = measured_peak(one, model)
    monkeypatch.setattr("gradbench.memory.fake_model.free_bytes", lambda: 512)
    prediction = Predictor("cpu").predict(one, model)
    assert (prediction.peak_bytes, prediction.measured_at) == (expected, ())


@pytest.mark.parametrize(
    "budget_batch", [1, 37, *(pytest.param(b, marks=pytest.mark.slow) for b in (2, 1000))]
)
def test_a_fit_begins_where_batchnorm_can_be_trained_and_asks_few_steps(budget_batch, monkeypatch):
    """The line through two small batches leads to the answer, which is asked and the next one up.

    With the batch of one that raises, the first that works, and the two of the line: six steps.
    """
    model = model_of(
        lambda: nn.Sequential(nn.Linear(WIDE, 32), nn.BatchNorm1d(32), nn.ReLU()), (WIDE,)
    )
    one = cell(batch_size=1, **WAYS[0])
    member = cell(batch_size=max(budget_batch, 2), **WAYS[0])
    peak = Predictor("cpu").predict(member, model, probing=False).peak_bytes
    budget = peak if budget_batch > 1 else peak - 1

    real, asked = Predictor._run, []

    def counted(self, member, *arguments):
        asked.append(member.batch_size)
        return real(self, member, *arguments)

    monkeypatch.setattr(Predictor, "_run", counted)
    fit = Predictor("cpu").largest(one, model, budget)
    assert fit.batch_size == (budget_batch if budget_batch > 1 else 0)
    assert fit.next_bytes > budget
    assert len(asked) <= 6


def test_where_no_batch_works_the_reason_is_the_models_own_words(predictor, monkeypatch):
    monkeypatch.setattr("gradbench.memory.batch_fit.SMALLEST", (2, 1))  # each takes three children

    def fails(_module, _y):
        raise ValueError("this never works")

    with pytest.raises(Unpredictable, match="ValueError: this never works"):
        predictor.largest(cell(**WAYS[0]), model_of(partial(Steps, fails), (WIDE,)), 2**30)


def test_what_was_left_to_the_collector_is_not_freed_in_a_measured_step(predictor):
    """Here it lies in a cycle, made where the profiler counted it, and would be missing there."""

    def leave():
        knot = [torch.zeros(100_000)]
        knot.append(knot)

    one = cell(optimizer="adamw", **WAYS[0])
    build, shape = MEASURED["branches"]
    expected = predictor.predict(one, model_of(build, shape)).breakdown
    gc.disable()
    try:
        CPU().ledger().observe(leave)
        found = predictor.predict(one, model_of(partial(build), shape)).breakdown
    finally:
        gc.enable()
    assert (found.phase, found.parts) == (expected.phase, expected.parts)
