"""Who measures which block, and what becomes of those that are lost: on a scripted fleet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from builders import block, environment

from gradbench.cluster.dispatch import TRIES, Dispatcher, GivenUp, SlotLost
from gradbench.cluster.jobs import BlockJob, BlockResult
from gradbench.cluster.on_ray import OnRay
from gradbench.experiment.matrix import by_block
from gradbench.experiment.plan import Plan

WAIT_S = 10.0
Script = Callable[["ScriptedSlot"], BlockResult | None]


@dataclass
class ScriptedFleet:
    """Machines by name with what they have; time passes only when it is waited."""

    has: dict[str, frozenset[str]]
    script: Script
    starts: Mapping[str, Callable[[], bool]] = field(default_factory=dict)
    now_s: float = 0.0
    log: list[tuple[str, str, str]] = field(default_factory=list)  # what, machine, block
    running: list["ScriptedSlot"] = field(default_factory=list)
    happens: dict[float, Callable[[], None]] = field(default_factory=dict)

    def machines(self):
        return dict(self.has)

    def slots(self, machine, resource):
        count = 2 if resource and machine == "two gpus" else 1
        return [ScriptedSlot(self, machine, resource) for _ in range(count)]

    def measure_with(self, serve, setup, *, longest_s):
        pass

    def pause(self, slots):
        self.now_s += 1.0
        for at_s in [at_s for at_s in self.happens if at_s <= self.now_s]:
            self.happens.pop(at_s)()


@dataclass(eq=False)
class ScriptedSlot:
    fleet: ScriptedFleet
    machine: str
    resource: str
    job: BlockJob | None = None

    @property
    def host(self):
        return f"host of {self.machine}"

    def taken(self):
        return self.fleet.starts.get(self.machine, lambda: True)()

    def submit(self, job):
        self.job = job
        self.fleet.log.append(("begin", self.machine, str(job.block)))
        self.fleet.running.append(self)

    def result(self):
        if self.machine not in self.fleet.has:
            raise SlotLost("the node is gone")
        result = self.fleet.script(self)
        if result is not None:
            self.fleet.running.remove(self)
        return result

    def leave(self):
        self.fleet.log.append(("leave", self.machine, ""))
        if self in self.fleet.running:
            self.fleet.running.remove(self)


def jobs(count, **axes):
    return [BlockJob(cells=tuple(block(batch_size=2**size, **axes))) for size in range(count)]


def measured(slot):
    return BlockResult(host=slot.host)


def results(fleet, wanted, **options):
    dispatcher = Dispatcher(
        fleet,
        resource_of=lambda job: "GPU" if job.device == "cuda" else "",
        wait_s=WAIT_S,
        now=lambda: fleet.now_s,
        **options,
    )
    return dict(dispatcher.results(wanted))


def begun(fleet):
    return [(machine, block) for what, machine, block in fleet.log if what == "begin"]


CPU, GPU = frozenset({""}), frozenset({"", "GPU"})


def test_every_block_comes_back_once_and_every_machine_takes_part():
    fleet = ScriptedFleet({"a": CPU, "b": CPU}, measured)
    wanted = jobs(6)
    found = results(fleet, wanted)
    assert set(found) == set(wanted)
    assert {machine for machine, _ in begun(fleet)} == {"a", "b"}
    assert sorted(block for _, block in begun(fleet)) == sorted(str(job.block) for job in wanted)


def test_a_machine_measures_one_block_at_a_time_and_one_with_two_gpus_two():
    seen: list[tuple[str, int]] = []

    def script(slot):
        here = [one for one in slot.fleet.running if one.machine == slot.machine]
        seen.append((slot.machine, len(here)))
        return measured(slot) if slot.fleet.now_s % 2 else None

    fleet = ScriptedFleet({"one": CPU, "two gpus": GPU}, script)
    results(fleet, [*jobs(4), *jobs(4, device="cuda")])
    assert max(count for machine, count in seen if machine == "one") == 1
    assert max(count for machine, count in seen if machine == "two gpus") == 2


def test_blocks_go_where_their_device_is():
    fleet = ScriptedFleet({"a": CPU, "b": GPU}, measured)
    results(fleet, [*jobs(3), *jobs(3, device="cuda")])
    assert {machine for machine, block in begun(fleet) if "cuda" in block} == {"b"}


def test_a_lost_block_is_begun_again_on_another_machine():
    def script(slot):
        if slot.machine == "a":
            raise SlotLost("killed")
        return measured(slot)

    fleet = ScriptedFleet({"a": CPU, "b": CPU}, script)
    wanted = jobs(1)
    assert results(fleet, wanted) == {wanted[0]: BlockResult(host="host of b")}
    assert [machine for machine, _ in begun(fleet)] == ["a", "b"]


def test_a_block_that_is_always_lost_is_begun_three_times_and_is_then_a_reason():
    def script(slot):
        raise SlotLost("killed by its model")

    fleet = ScriptedFleet({"a": CPU}, script)
    (found,) = results(fleet, jobs(1)).values()
    assert found == GivenUp(
        cause="crashed",
        reason=f"begun {TRIES} times, the last on host of a: killed by its model",
    )
    assert len(begun(fleet)) == TRIES


def test_a_block_is_begun_again_where_it_was_lost_if_no_other_machine_can_be_had():
    def script(slot):
        lost = len(begun(slot.fleet)) == 1
        if lost:
            raise SlotLost("killed")
        return measured(slot)

    fleet = ScriptedFleet({"a": CPU, "b": CPU}, script, starts={"b": lambda: False})
    fleet.happens[100.0] = lambda: pytest.fail("it waits for the other for ever")
    wanted = jobs(1)
    assert results(fleet, wanted) == {wanted[0]: BlockResult(host="host of a")}
    assert [machine for machine, _ in begun(fleet)] == ["a", "a"]


def test_progress_counts_a_block_once_however_often_it_is_begun():
    def script(slot):
        if len(begun(slot.fleet)) == 1:
            raise SlotLost("killed")
        return BlockResult(host=slot.host, environment=environment())

    cells = [*block(batch_size=1), *block(batch_size=2)]
    runner = OnRay(ScriptedFleet({"a": CPU}, script), plan=Plan(), models={}, meters=("step_time",))
    said = []
    assert len(list(runner.measure(by_block(cells), progress=said.append))) == 1
    assert sorted(event.begun for event in said) == [1, 2, 2]


def test_a_node_that_leaves_loses_its_block_to_those_that_stay():
    def script(slot):
        return measured(slot) if slot.fleet.now_s > 20 else None

    fleet = ScriptedFleet({"a": CPU, "b": CPU}, script)
    fleet.happens[5.0] = lambda: fleet.has.pop("b")
    wanted = jobs(2)
    assert list(results(fleet, wanted).values()) == [BlockResult(host="host of a")] * 2


def test_a_node_that_joins_takes_part():
    def script(slot):
        return measured(slot) if slot.fleet.now_s > 20 else None

    fleet = ScriptedFleet({"a": CPU}, script)
    fleet.happens[5.0] = lambda: fleet.has.update(b=CPU)
    results(fleet, jobs(3))
    assert "b" in {machine for machine, _ in begun(fleet)}


def test_a_resource_that_nobody_has_meets_our_deadline():
    fleet = ScriptedFleet({"a": CPU}, measured)
    (found,) = results(fleet, jobs(1, device="cuda")).values()
    assert found.cause == "unavailable"
    assert "no machine of the cluster with a GPU could be had for 10 s" in found.reason
    assert WAIT_S < fleet.now_s < 2 * WAIT_S


def test_a_resource_that_vanishes_meets_it_too_and_not_while_it_is_in_use_by_us():
    def script(slot):
        return measured(slot) if slot.fleet.now_s in (30.0, 60.0) else None

    fleet = ScriptedFleet({"a": GPU}, script)
    fleet.happens[35.0] = lambda: fleet.has.pop("a")
    first, second = results(fleet, jobs(2, device="cuda")).values()
    assert first == BlockResult(host="host of a")
    assert second.cause == "unavailable" and "host of a: the " in second.reason


def test_a_machine_that_others_use_is_said_so_when_the_time_is_over():
    fleet = ScriptedFleet({"a": CPU}, measured, starts={"a": lambda: False})
    (found,) = results(fleet, jobs(1)).values()
    assert found.cause == "unavailable"
    assert "host of a: was in use by others for 10 s" in found.reason


def test_where_no_slot_can_start_it_is_tried_three_times_and_the_reason_is_the_last():
    def fails():
        raise SlotLost("no module named gradbench")

    fleet = ScriptedFleet({"a": CPU}, measured, starts={"a": fails})
    (found,) = results(fleet, jobs(1)).values()
    assert found.reason.endswith("host of a: no module named gradbench")
    assert [what for what, _, _ in fleet.log] == ["leave"] * TRIES


def test_cores_that_others_hold_are_asked_for_again_and_are_then_no_crash():
    fleet = ScriptedFleet(
        {"a": CPU}, lambda slot: BlockResult(host=slot.host, trouble="busy", why="core-0 was held")
    )
    (found,) = results(fleet, jobs(1)).values()
    assert (found.cause, found.reason.rpartition(": ")[2]) == ("unavailable", "core-0 was held")


def test_what_breaks_off_gives_every_slot_back():
    def script(slot):
        raise KeyboardInterrupt

    fleet = ScriptedFleet({"a": CPU, "b": CPU}, script)
    with pytest.raises(KeyboardInterrupt):
        results(fleet, jobs(2))
    assert sorted(machine for what, machine, _ in fleet.log if what == "leave") == ["a", "b"]
