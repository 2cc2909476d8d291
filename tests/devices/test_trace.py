"""Allocations and marks in the order in which they came, against the ledger's own figures."""

from collections import Counter
from contextlib import contextmanager
from itertools import accumulate
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradbench.devices import OutOfSight, Trace, Unreadable, Window, trace as trace_module
from gradbench.devices.cpu import ProfilerLedger
from gradbench.devices.trace import OperatorProfile, cpu_changes, trace
from gradbench.records.allocations import Change, Phase, Tag
from gradbench.workloads.models import cnn_small, mlp

pytestmark = pytest.mark.usefixtures("collected")


def changes(entries):
    return [entry for entry in entries if isinstance(entry, Change)]


def kilobytes(count):
    return torch.empty(count * 1024, dtype=torch.uint8)


def training(model, x, y, optimizer):
    def step(mark=lambda _: None):
        optimizer.zero_grad(set_to_none=True)
        mark(Phase("forward"))
        output = model(x)
        mark(Phase("loss"))
        loss = functional.cross_entropy(output, y)
        mark(Phase("backward"))
        loss.backward()
        mark(Phase("optimizer"))
        optimizer.step()

    return step


@pytest.mark.parametrize(
    ("build", "shape"), [(lambda: mlp(32, 48, 10), (32,)), (cnn_small, (3, 32, 32))]
)
def test_the_entries_running_sum_is_what_the_ledger_counts(build, shape):
    ledger = ProfilerLedger()

    def prepared():
        model = build()
        optimizer = torch.optim.AdamW(model.parameters())
        return training(model, torch.randn(4, *shape), torch.arange(4), optimizer)

    step, _ = ledger.observe(prepared)
    for _ in range(2):
        ledger.observe(step)
    _, observed = ledger.observe(step)
    _, window, traced = ledger.trace(step)
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (
        observed.before_bytes,
        observed.peak_bytes,
        observed.after_bytes,
    )
    entries = traced.entries("cpu")
    window.check(entries)
    live = list(
        accumulate((change.nbytes for change in changes(entries)), initial=window.before_bytes)
    )
    assert (max(live), live[-1]) == (observed.peak_bytes, observed.after_bytes)
    assert observed.peak_bytes > observed.before_bytes


def test_the_balance_goes_on_from_window_to_window_whichever_way_they_are_read():
    ledger = ProfilerLedger()
    held, window, _ = ledger.trace(lambda _: kilobytes(3))
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (0, 3072, 3072)
    boxes = [held]
    del held
    _, window = ledger.observe(boxes.clear)
    assert (window.before_bytes, window.peak_bytes, window.after_bytes) == (3072, 3072, 0)
    _, window, traced = ledger.trace(lambda _: None)
    assert (window.before_bytes, traced.entries("cpu")) == (0, [])


def test_a_free_of_what_an_earlier_window_allocated_is_an_entry_too():
    ledger = ProfilerLedger()
    boxes = []
    ledger.observe(lambda: boxes.append(kilobytes(3)))
    address = boxes[0].data_ptr()
    _, window, traced = ledger.trace(lambda _: boxes.clear())
    assert [(change.address, change.nbytes) for change in traced.entries("cpu")] == [
        (address, -3072)
    ]
    assert window.after_bytes == 0


def test_marks_stand_between_the_allocations_where_they_were_made():
    def marking(mark):
        mark(Phase("first"))
        one = kilobytes(1)
        mark(Tag(one.data_ptr(), "saved"))
        mark(Phase("second"))
        two = kilobytes(2)
        del one
        mark(Phase("third"))
        del two
        mark(Phase("end"))
        return "result"

    result, traced = trace(marking)
    entries = traced.entries("cpu")
    one, two = (change.address for change in changes(entries) if change.nbytes > 0)
    assert result == "result"
    plain = [
        entry if not isinstance(entry, Change) else (entry.address, entry.nbytes)
        for entry in entries
    ]
    assert plain == [
        Phase("first"),
        (one, 1024),
        Tag(one, "saved"),
        Phase("second"),
        (two, 2048),
        (one, -1024),
        Phase("third"),
        (two, -2048),
        Phase("end"),
    ]


def test_marks_from_within_backward_stand_before_the_gradients_that_follow():
    """The hooks run in autograd's engine, as the marks of gradients do."""
    module = mlp(16, 16, 16)
    x = torch.randn(4, 16)
    names = {id(p): name for name, p in module.named_parameters()}

    def marking(mark):
        hooks = [
            parameter.register_post_accumulate_grad_hook(
                lambda p: mark(Tag(p.grad.data_ptr(), names[id(p)]))
            )
            for parameter in module.parameters()
        ]
        module(x).sum().backward()
        for hook in hooks:
            hook.remove()

    entries = trace(marking)[1].entries("cpu")
    tags = {entry.part: index for index, entry in enumerate(entries) if isinstance(entry, Tag)}
    assert tags.keys() == set(names.values())
    for name, parameter in module.named_parameters():
        born = [
            index
            for index, entry in enumerate(entries)
            if isinstance(entry, Change)
            and entry.address == parameter.grad.data_ptr()
            and entry.nbytes == parameter.nbytes
        ]
        assert born[-1] < tags[name]
    assert tags["2.weight"] < tags["0.weight"]


def _profiled():
    with torch.profiler.profile():
        return torch.ones(3)


def _warming_up():
    with torch.profiler.profile(schedule=torch.profiler.schedule(wait=0, warmup=2, active=1)):
        return torch.ones(3)


def _started():
    torch.profiler.profile().start()
    raise RuntimeError("its own error comes second")


@pytest.mark.parametrize("call", [_profiled, _warming_up, _started])
@pytest.mark.parametrize("read", [cpu_changes, lambda call: trace(lambda _: call())])
def test_a_call_that_profiles_itself_is_out_of_sight(read, call):
    """A second profiler of torch ends the first one, which would have counted nothing."""
    with pytest.raises(OutOfSight, match="it runs torch's profiler itself, of which one"):
        read(call)
    _, changes = cpu_changes(lambda: torch.ones(3))
    assert changes == [12]


def test_operators_of_a_call_that_profiles_itself_are_out_of_sight():
    with (
        pytest.raises(OutOfSight, match="it runs torch's profiler itself"),
        OperatorProfile() as ops,
    ):
        ops.call(_profiled)


def test_many_marks_keep_their_order():
    def marking(mark):
        for number in range(300):
            mark(Phase(f"{number}"))

    assert trace(marking)[1].entries("cpu") == [Phase(f"{number}") for number in range(300)]


def test_every_free_has_the_address_and_the_size_of_what_was_allocated():
    module, x = cnn_small(), torch.randn(2, 3, 32, 32)

    def marking(_):
        functional.cross_entropy(module(x), torch.arange(2)).backward()
        module.zero_grad(set_to_none=True)

    marking(None)
    entries = trace(marking)[1].entries("cpu")
    live, buffers = {}, {buffer.data_ptr() for buffer in module.buffers()}
    for change in changes(entries):
        if change.nbytes > 0:
            assert change.address not in live
            live[change.address] = change.nbytes
        else:
            assert live.pop(change.address) == -change.nbytes
    assert live.keys() <= buffers
    assert len(entries) > 50


def test_an_allocation_bears_the_name_of_the_innermost_operator():
    module, x = nn.Sequential(nn.Linear(16, 24), nn.Sigmoid()), torch.randn(8, 16)
    entries = trace(lambda _: module(x))[1].entries("cpu")
    assert Counter((change.op, change.nbytes) for change in changes(entries)) >= Counter(
        {("aten::addmm", 8 * 24 * 4): 1, ("aten::sigmoid", 8 * 24 * 4): 1}
    )


def test_no_mark_is_taken_for_an_operator():
    def marking(mark):
        mark(Phase("forward"))
        kept.append(kilobytes(1))

    kept = []
    entries = trace(marking)[1].entries("cpu")
    assert [change.op for change in changes(entries)] == ["aten::empty"]


def test_the_allocations_of_other_devices_are_left_out_and_the_marks_are_not():
    def marking(mark):
        mark(Phase("forward"))
        kept.append(kilobytes(1))
        mark(Phase("end"))

    kept = []
    assert trace(marking)[1].entries("cuda:0") == [Phase("forward"), Phase("end")]


def test_what_the_function_raises_goes_through_and_the_next_trace_is_whole():
    def fails(mark):
        mark(Phase("forward"))
        raise ValueError("not like this")

    with pytest.raises(ValueError, match="not like this"):
        trace(fails)
    assert trace(lambda mark: mark(Phase("later")))[1].entries("cpu") == [Phase("later")]


def test_a_trace_keeps_devices_apart_and_marks_with_all_of_them():
    traced = Trace(
        (
            ("", Phase("forward")),
            ("cuda:0", Change(1, 512)),
            ("cuda:1", Change(2, 1024)),
            ("cuda:0", Change(1, -512)),
            ("cuda:0", Change(3, 2048)),
        )
    )
    assert traced.entries("cuda:1") == [Phase("forward"), Change(2, 1024)]
    assert traced.entries("cpu") == [Phase("forward")]
    assert traced.allocated() == {"cuda:0": 2560, "cuda:1": 1024}


@pytest.mark.parametrize(
    ("entries", "agree"),
    [
        ([Change(1, 500), Change(1, -500)], True),
        ([Change(1, 500)], False),  # the free is missing
        ([Change(1, 400), Change(1, -400)], False),  # the peak is another
        ([], False),
    ],
)
def test_a_trace_that_does_not_lead_to_what_was_counted_is_a_reason(entries, agree):
    unknown = Unreadable("not asked")
    window = Window(1000, 1500, 1000, unknown, unknown)
    if agree:
        window.check(entries)
    else:
        with pytest.raises(Unreadable, match="the allocator counted 1,500 B and 1,000 B"):
            window.check(entries)


class FakeAllocation(SimpleNamespace):
    """A profiler's event of a block: its address, its bytes, its device."""


class FakeProfiler:
    """The profiler's record of a GPU's step, by torch's rule for it.

    Ranges nest, and a block of the CPU is always kept; one of a GPU that is taken or freed under
    no range is not in the tree of events (``materializeOpEvents`` of profiler_kineto.cpp).
    """

    def __init__(self):
        self.tree, self.open, self.now_ns = [], [], 0
        self.kineto_results = SimpleNamespace(experimental_event_tree=lambda: self.tree)

    def block(self, address, nbytes, device="cuda:0"):
        fields = FakeAllocation(ptr=address, alloc_size=nbytes, device=device)
        if self.open or device == "cpu":
            self._add("[memory]", fields)

    @contextmanager
    def range(self, name):
        self.open.append(self._add(name, None))
        yield
        self.open.pop()

    @contextmanager
    def recording(self, *, profile_memory):
        assert profile_memory
        yield self

    def _add(self, name, fields):
        self.now_ns += 1
        node = SimpleNamespace(
            name=name, extra_fields=fields, children=[], start_time_ns=self.now_ns
        )
        (self.open[-1].children if self.open else self.tree).append(node)
        return node


@pytest.fixture
def gpu_profiler(monkeypatch):
    fake = FakeProfiler()
    monkeypatch.setattr(torch._C._profiler, "_ExtraFields_Allocation", FakeAllocation)
    monkeypatch.setattr(trace_module, "profile", fake.recording)
    monkeypatch.setattr(trace_module, "record_function", fake.range)
    return fake


def test_the_profiler_loses_what_a_gpu_frees_under_no_range(gpu_profiler):
    gpu_profiler.block(1, 512)
    gpu_profiler.block(2, 64, "cpu")
    assert [node.extra_fields.device for node in gpu_profiler.tree] == ["cpu"]


def test_what_python_drops_on_a_gpu_is_in_the_trace_and_of_no_operator(gpu_profiler):
    def step(mark):
        mark(Phase("forward"))
        with gpu_profiler.range("aten::addmm"):
            gpu_profiler.block(1, 512)
            gpu_profiler.block(9, 1024, "cuda:1")
        gpu_profiler.block(1, -512)  # Python lets go of it: no operator runs
        gpu_profiler.block(2, 2048)

    traced = trace(step)[1]
    assert traced.entries("cuda:0") == [
        Phase("forward"),
        Change(1, 512, "aten::addmm"),
        Change(1, -512, ""),
        Change(2, 2048, ""),
    ]
    assert traced.allocated() == {"cuda:0": 2560, "cuda:1": 1024}
