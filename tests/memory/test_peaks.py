"""Memory against arithmetic: what a plain MLP's forward holds, spelled out, 0 bytes off."""

import resource
from itertools import pairwise

import pytest
import torch
from patience import PATIENCE_S
from torch import nn

from gradbench.devices import Unreadable
from gradbench.devices.cpu import CPU, NO_DRIVER, ProfilerLedger, balance
from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.memory.saved_tensors import SavedTensors
from gradbench.records.measurements import Measurement, Skipped
from gradbench.runner.bench import Bench
from gradbench.runner.meters import METERS, peak_rss

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

FLOAT, LABEL = 4, 8  # bytes
MEASURED = tuple(
    meter.name
    for meter in METERS.values()
    if meter.read_in == "memory" and meter.name != "predicted_peak"
)
PROCESS = tuple(meter.name for meter in METERS.values() if meter.read_in == "process")
BATCH = 8
WIDTHS = {
    "mlp_tiny": [64] * 9 + [10],
    "mlp_deep": [128] * 32 + [10],
    "mlp_wide": [784, 2048, 2048, 2048, 10],
}


def parameters(widths):
    return sum(wide * narrow + narrow for wide, narrow in pairwise(widths)) * FLOAT


def batch(widths):
    return BATCH * widths[0] * FLOAT + BATCH * LABEL


def hidden_outputs(widths):
    """Every ReLU's output: the next layer's saved input, and the ReLU's own saved result."""
    return BATCH * sum(widths[1:-1]) * FLOAT


def transient_with_graph(widths):
    """The most during the forward: every ReLU output so far, and one linear output.

    Layer i's linear output lives beside all ReLU outputs before it; then its ReLU output comes
    while the linear output is still held; then the linear output goes, for addmm saves its
    input, not its result. After the last layer there is no ReLU.
    """
    hidden = widths[1:-1]
    while_relu = [sum(hidden[: i + 1]) + width for i, width in enumerate(hidden)]
    at_the_end = sum(hidden) + widths[-1]
    return BATCH * max(*while_relu, at_the_end) * FLOAT


def transient_without_graph(widths):
    """The most of any one layer: its input, unless that is the batch, and its output."""
    hidden = widths[1:-1]
    linears = [0 + hidden[0], *(a + b for a, b in pairwise([*hidden, widths[-1]]))]
    relus = [2 * width for width in hidden]
    return BATCH * max(*linears, *relus) * FLOAT


def read(models, workloads=("inference",), meters=MEASURED, **axes):
    matrix = Matrix(models=models, workloads=workloads, batch_sizes=[BATCH], **axes)
    with Bench(plan=Plan(limit_s=PATIENCE_S), meters=meters) as bench:
        outcomes = [o for outcomes in bench.measure(list(matrix)) for o in outcomes]
    return {(o.cell.grad_mode, o.meter): o for o in outcomes}


@pytest.fixture(scope="module", params=WIDTHS)
def forward(request):
    return WIDTHS[request.param], read([request.param])


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_the_forward_peak_is_the_hand_computed_one_to_the_byte(forward, mode):
    widths, outcomes = forward
    graph = mode == "global_on"
    transient = transient_with_graph(widths) if graph else transient_without_graph(widths)
    assert outcomes[mode, "peak_transient"].values == (transient,)
    resident = parameters(widths) + batch(widths)
    assert outcomes[mode, "peak_allocated"].values == (resident + transient,)


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_saved_bytes_are_the_relu_outputs_or_nothing(forward, mode):
    widths, outcomes = forward
    expected = hidden_outputs(widths) if mode == "global_on" else 0
    assert outcomes[mode, "saved_for_backward"].values == (expected,)


def test_what_the_cpu_cannot_read_is_a_reason_not_a_number(forward):
    _, outcomes = forward
    for meter in ("peak_reserved", "fragmentation"):
        outcome = outcomes["no_grad", meter]
        assert isinstance(outcome, Skipped)
        assert outcome.cause == "unreadable"
        assert "no reserve" in outcome.reason


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp_tiny", "cnn_small"])
@pytest.mark.parametrize("workload", ["inference", "training_reenabled", "frozen_backbone"])
def test_memory_is_identical_in_three_runs(model, workload):
    """To the byte, and to the moment: figures, breakdowns and timelines."""
    first, second, third = (read([model], [workload]) for _ in range(3))
    assert first == second == third


def test_memory_does_not_depend_on_which_modes_ran_before():
    together = read(["cnn_small"])
    alone = {}
    for mode in GRAD_MODES:
        alone |= read(["cnn_small"], grad_modes=[mode])
    assert together == alone


def test_frozen_parameters_make_every_mode_alike():
    """The modes save memory only because parameters require grad."""
    ledger = ProfilerLedger()
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).requires_grad_(False)
    x = torch.randn(8, 64)
    module(x)

    def forward_and_drop():
        module(x)

    _, on = ledger.observe(forward_and_drop)
    with torch.no_grad():
        _, off = ledger.observe(forward_and_drop)
    assert on.peak_bytes - on.before_bytes == off.peak_bytes - off.before_bytes


def test_the_balance_is_exact_across_windows():
    ledger = ProfilerLedger()
    held, first = ledger.observe(lambda: torch.empty(1000, dtype=torch.uint8))
    assert (first.before_bytes, first.peak_bytes) == (0, 1000)
    boxes = [held]
    del held

    def replace_it():
        boxes.append(torch.empty(10, dtype=torch.uint8))
        boxes.pop(0)

    _, second = ledger.observe(replace_it)
    assert (second.before_bytes, second.peak_bytes) == (1000, 1010)
    _, third = ledger.observe(boxes.clear)
    assert (third.before_bytes, third.peak_bytes) == (10, 10)
    _, last = ledger.observe(lambda: None)
    assert last.before_bytes == 0


def test_a_profiler_without_memory_events_is_unreadable_not_zero(monkeypatch):
    monkeypatch.setattr("gradbench.devices.trace._cpu_memory_events", lambda _: [])
    with pytest.raises(Unreadable, match="1024 bytes were counted as 0"):
        CPU().ledger()


def test_a_profiler_of_another_shape_is_unreadable_not_a_crash(monkeypatch):
    def changed(_):
        raise AttributeError("no attribute 'kineto_results'")

    monkeypatch.setattr("gradbench.devices.trace._cpu_memory_events", changed)
    with pytest.raises(Unreadable, match="no memory events"):
        CPU().ledger()


@pytest.mark.parametrize(
    ("start", "changes", "peak", "end"),
    [(0, [], 0, 0), (5, [10, -10, 3], 15, 8), (7, [-7, 2], 7, 2)],
)
def test_balance_is_a_running_sum_with_its_peak(start, changes, peak, end):
    assert balance(start, changes) == (peak, end)


def test_a_node_that_saves_its_own_output_is_freed_with_it():
    """tanh saves its result; a hook that handed it back attached would hold itself for ever."""
    ledger = ProfilerLedger()
    x, _ = ledger.observe(lambda: torch.zeros(256, requires_grad=True))

    def step():
        with SavedTensors(apart=[x]):
            x.tanh()

    ledger.observe(step)
    _, after = ledger.observe(lambda: None)
    assert after.before_bytes == 256 * FLOAT


def test_rss_whose_mark_cannot_be_reset_names_its_bias(tmp_path):
    process = tmp_path / "proc"
    peak, words = peak_rss(lambda: None, steps=1, process=process)  # nothing there at all
    assert peak == pytest.approx(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, rel=0.1)
    assert "ru_maxrss" in words
    assert "inherited" in words
    process.mkdir()
    (process / "clear_refs").mkdir()  # so that nobody can write to it, not even root
    (process / "status").write_text("VmRSS:\t 10 kB\nVmHWM:\t 12 kB\n")
    peak, words = peak_rss(lambda: None, steps=1, process=process)
    assert peak == 12 * 1024
    assert "could not be reset (Is a directory)" in words


def test_rss_resets_the_mark_before_the_steps_and_reads_it_after_them(tmp_path):
    status = tmp_path / "status"
    status.write_text("VmHWM:\t 99 kB\n")
    seen = []

    def step():
        seen.append((tmp_path / "clear_refs").read_text())
        status.write_text(f"VmPeak:\t 500 kB\nVmHWM:\t {len(seen)} kB\n")

    assert peak_rss(step, steps=3, process=tmp_path) == (3 * 1024, "")
    assert seen == ["5"] * 3


def test_rss_without_a_mark_is_unreadable(tmp_path):
    (tmp_path / "status").write_text("VmRSS:\t 10 kB\n")
    with pytest.raises(Unreadable, match="no VmHWM"):
        peak_rss(lambda: None, steps=1, process=tmp_path)


def test_rss_sees_a_short_peak_that_polling_would_miss():
    def spike():
        torch.ones(64 * 2**20, dtype=torch.uint8)  # beyond what malloc ever keeps for itself

    quiet = read(["mlp_tiny"], meters=PROCESS)["no_grad", "peak_rss"]
    assert isinstance(quiet, Measurement)
    assert quiet.notes == {}  # no bias
    (low, _), (high, _) = peak_rss(lambda: None, steps=1), peak_rss(spike, steps=1)
    assert high >= low + 60 * 2**20


def test_the_cpu_has_no_driver_to_ask_but_a_reason():
    outcome = read(["mlp_tiny"], meters=PROCESS)["no_grad", "device_process"]
    assert (outcome.cause, outcome.reason) == ("unreadable", NO_DRIVER)
