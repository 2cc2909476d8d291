"""Blocks of several devices at once: which run together, what their times say, how they end."""

import os
import threading
from collections.abc import Iterator
from datetime import datetime

import pytest
from builders import block, counted, ended, environment, timed
from patience import PATIENCE_S

from gradbench import host_locks
from gradbench.experiment.matrix import by_block
from gradbench.experiment.plan import Plan
from gradbench.runner import bench, host_system, side_by_side
from gradbench.runner.attempts import DeviceSite
from gradbench.runner.block_runner import OneAfterAnother

METERS = ("step_time", "peak_transient")
FIRST, SECOND, ON_CPU = (
    block(device="cuda"),
    block(device="cuda:1"),
    block(device="cpu", batch_size=2),
)


class MeetingBench:
    """A bench whose blocks on CUDA each wait for one on another device to be measured, too."""

    meeting: threading.Barrier
    log: list[tuple[str, frozenset[int]]]
    closed: int

    def __init__(self, **_: object) -> None: ...

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        type(self).closed += 1
        self.meeting.abort()

    def end(self) -> None:
        self.meeting.abort()

    def environment(self, _names):
        return environment()

    def site(self, device_name):
        return DeviceSite(device_name, None)

    def ended(self):
        return ended(timing=3.0, harness=1.0)

    def measure(self, cells, *, done=(), passes=(), say) -> Iterator[list]:
        device = cells[0].device
        self.log.append((device, frozenset(os.sched_getaffinity(0))))
        say("time")
        if device != "cpu":
            self.meeting.wait(timeout=PATIENCE_S)
        yield [timed(cell, (10, 11)) for cell in cells]
        yield [counted(cell, 4096) for cell in cells]


@pytest.fixture
def meeting(monkeypatch):
    monkeypatch.setattr(bench, "Bench", MeetingBench)
    monkeypatch.setattr(host_system, "usable_cores", lambda: sorted(os.sched_getaffinity(0)))
    for name, value in (("meeting", threading.Barrier(2)), ("log", []), ("closed", 0)):
        monkeypatch.setattr(MeetingBench, name, value, raising=False)
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("two devices at once need two cores")
    return MeetingBench


def measured(cells, **options):
    runner = side_by_side.here(cells, plan=Plan(), models={}, meters=METERS)
    with runner:
        facts = runner.environment(cell.device for cell in cells).facts
        return facts, list(runner.measure(by_block(cells), **options))


@pytest.fixture(autouse=True)
def no_lookups(monkeypatch):
    monkeypatch.setattr(side_by_side.preflight, "obstacle", lambda *_: None)


def test_blocks_of_two_devices_run_at_once_and_each_has_cores_of_its_own(meeting):
    facts, _ = measured([*FIRST, *SECOND])
    (_, first), (_, second) = sorted(meeting.log)
    assert first and second and not first & second
    assert facts["cuda own_cores"].endswith("this system does not say which are near")
    assert set(facts) >= {"cuda own_cores", "cuda:1 own_cores"}


def test_only_times_note_the_devices_that_were_measured_meanwhile(meeting):
    _, found = measured([*FIRST, *SECOND])
    beside = {(o.cell.device, o.meter): o.notes.get("measured_beside") for o in found}
    assert beside == {
        ("cuda", "step_time"): "cuda:1",
        ("cuda:1", "step_time"): "cuda",
        ("cuda", "peak_transient"): None,
        ("cuda:1", "peak_transient"): None,
    }


def test_figures_say_when_they_were_read_in_turns_on_a_device_and_at_once_on_two(meeting):
    further = [block(device=name, batch_size=2) for name in ("cuda", "cuda:1")]
    _, found = measured([*FIRST, *SECOND, *further[0], *further[1]])
    stays = {"cuda": {}, "cuda:1": {}}
    for one in found:
        stay = tuple(datetime.fromisoformat(one.notes[name]) for name in ("began_at", "ended_at"))
        if one.meter == "step_time":
            stays[one.cell.device][one.cell.batch_size] = stay  # two may end in one millisecond
    on_first, on_second = (sorted(blocks.values()) for blocks in stays.values())
    assert len(on_first) == len(on_second) == 2
    for first, second in (on_first, on_second):
        assert first[1] <= second[0]
    for here, there in zip(on_first, on_second, strict=True):
        assert here[0] <= there[1] and there[0] <= here[1]


def test_what_ran_at_any_time_since_the_last_outcomes_counts_and_nothing_before():
    beside = side_by_side._Beside()
    beside.begin("cuda")
    beside.begin("cuda:1")
    beside.end("cuda:1")
    assert beside.take("cuda") == ["cuda:1"]
    assert beside.take("cuda") == []
    beside.begin("cuda:2")
    assert beside.take("cuda:2") == ["cuda"]
    beside.end("cuda:2")
    assert beside.take("cuda") == ["cuda:2"]


def test_blocks_of_the_cpu_are_measured_before_with_nothing_beside_them(meeting):
    _, found = measured([*FIRST, *ON_CPU, *SECOND])
    assert meeting.log[0][0] == "cpu"
    assert [o.cell.device for o in found[: 2 * len(ON_CPU)]] == ["cpu"] * 2 * len(ON_CPU)
    assert all("measured_beside" not in o.notes for o in found[: 2 * len(ON_CPU)])


def test_a_block_of_two_ranks_takes_two_devices_and_has_nothing_beside_it(meeting):
    ranks = block(device="cuda", workload="inference_ddp", world_size=2)
    meeting.meeting = threading.Barrier(1)
    _, found = measured([*FIRST, *ranks, *SECOND])
    assert [outcome.cell.world_size for outcome in found[: 2 * len(ranks)]] == [2] * 2 * len(ranks)
    assert all("measured_beside" not in outcome.notes for outcome in found[: 2 * len(ranks)])


class Waited(Exception):
    """A block would have to wait."""


def test_a_pass_waits_for_every_device_that_its_ranks_use_and_for_no_other():
    def say(words):
        raise Waited(words)

    own = bench.Bench(plan=Plan(), meters=METERS)
    own._sites = {f"cuda:{number}": DeviceSite(f"GPU-{number}", None) for number in range(3)}
    (ranks, *_) = block(device="cuda", workload="inference_ddp", world_size=2)
    with host_locks.holding(["device-GPU-1"]):
        with (
            pytest.raises(Waited, match="waiting for another run"),
            own._alone(ranks, say, timed=False),
        ):
            pytest.fail("the second rank's device was had")
        for free in (FIRST[0], ON_CPU[0]):
            with own._alone(free, say, timed=False):
                pass
        own._wait_s = 0.0
        with (
            pytest.raises(host_locks.Held, match="GPU-1"),
            own._alone(ranks, lambda _: None, timed=False),
        ):
            pytest.fail("it was had all the same")
    with own._alone(ranks, say, timed=False):
        pass


def test_a_pass_that_is_timed_on_the_cpu_waits_for_the_cores_of_its_step():
    def say(words):
        raise Waited(words)

    own = bench.Bench(plan=Plan(), meters=METERS)
    last = max(host_system.usable_cores())
    with host_locks.holding([f"core-{last}"]):
        with (
            pytest.raises(Waited, match="waiting for another run"),
            own._alone(ON_CPU[0], say, timed=True),
        ):
            pytest.fail("it was timed beside another run")
        with own._alone(ON_CPU[0], say, timed=False):
            pass  # bytes are the same beside it
        whoever_holds_it = bench.Bench(plan=Plan(), meters=METERS, has_cores=True)
        with whoever_holds_it._alone(ON_CPU[0], say, timed=True):
            pass
    with own._alone(ON_CPU[0], say, timed=True):
        pass


def test_a_run_that_ends_gives_up_waiting_for_what_others_hold():
    own = bench.Bench(plan=Plan(), meters=METERS)
    last = max(host_system.usable_cores())
    with (
        host_locks.holding([f"core-{last}"]),
        pytest.raises(host_locks.Held, match="nobody waits for it any more"),
        own._alone(ON_CPU[0], lambda _: own.end(), timed=True),
    ):
        pytest.fail("it was had")


def test_progress_counts_blocks_that_began_and_that_ended(meeting):
    said = []
    measured([*FIRST, *ON_CPU, *SECOND], progress=said.append)
    assert [(event.done, event.total) for event in said] == [(0, 3), (1, 3), (1, 3)]
    assert sorted(event.begun for event in said) == [1, 2, 3]


def test_one_device_needs_no_threads(meeting):
    runner = side_by_side.here([*FIRST, *ON_CPU], plan=Plan(), models={}, meters=METERS)
    assert isinstance(runner, OneAfterAnother)


def test_fewer_cores_than_devices_are_used_one_at_a_time_and_the_record_says_so(
    meeting, monkeypatch
):
    monkeypatch.setattr(host_system, "usable_cores", lambda: [0])
    meeting.meeting = threading.Barrier(1)
    facts, found = measured([*FIRST, *SECOND])
    assert facts["own_cores"] == "none: 1 for 2 devices, one at a time"
    assert [device for device, _ in meeting.log] == ["cuda", "cuda:1"]
    assert all("measured_beside" not in outcome.notes for outcome in found)


def test_an_error_in_a_devices_thread_ends_the_run_with_that_error(meeting, monkeypatch):
    def fail(*_: object, **__: object):
        raise ZeroDivisionError("in a thread")

    monkeypatch.setattr(MeetingBench, "measure", fail)
    with pytest.raises(ZeroDivisionError, match="in a thread"):
        measured([*FIRST, *SECOND])


def test_what_breaks_off_a_run_ends_every_bench_and_thread(meeting):
    before = set(threading.enumerate())
    meeting.meeting = threading.Barrier(3)  # a third that never comes: both hang

    def interrupt(_event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured([*FIRST, *SECOND], progress=interrupt)
    assert set(threading.enumerate()) <= before
    assert meeting.closed >= 3
