"""Who makes which replicates, what is lost, when it ends: on scripted machines."""

import itertools
import math
import time
from collections import Counter
from dataclasses import dataclass, field

import pytest
from builders import cell

from gradbench.cli.gate import as_plain
from gradbench.cluster.dispatch import SlotLost
from gradbench.cluster.equal_machines import EqualMachines
from gradbench.cluster.jobs import Answer, ReplicateJob, ReplicateResult, ReplicateSetup
from gradbench.cluster.replicates_on_ray import ReplicatesOnRay
from gradbench.comparison import versions
from gradbench.comparison.budget import Budget
from gradbench.comparison.effort import Effort
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replicate_results import Results
from gradbench.comparison.versions import Comparison
from gradbench.errors import BadModel
from gradbench.exit_status import ExitStatus
from gradbench.stats.replicate import Replicate
from gradbench.stats.verdicts import Verdict

CELLS = [cell("no_grad", batch_size=size) for size in (1, 2)]
KIND = {
    "processor": "EPYC",
    "cores": "8",
    "accelerator": "",
    "torch build": "2.13.0",
    "python release": "3.11.7",
}


def replicate(change=1.0):
    return Replicate([[100.0, 110.0]], [[100.0 * change, 110.0 * change]])


def made(slot, *, change=1.0, apart=(), **fields):
    """Return what a machine answers that makes a replicate of each cell."""
    results = Results(
        replicates={one: [replicate(change)] for one in slot.job.cells},
        apart={**slot.job.apart, **dict.fromkeys(apart, "a compiled extension")},
    )
    return ReplicateResult(host=slot.host, results=results, **fields)


@dataclass
class Machines:
    """Scripted machines that are all alike."""

    names: list[str]
    script: object
    ran: list[tuple[str, ReplicateJob]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def measure_with(self, serve, setup, *, longest_s):
        self.limits_s = longest_s

    def machines(self):
        return {name: frozenset({""}) for name in self.names}

    def facts(self, machine):
        return {"host": machine, **KIND}

    def slots(self, machine, resource):
        return [Slot(self, machine)]

    def pause(self, slots):
        pass


@dataclass(eq=False)
class Slot:
    fleet: Machines
    machine: str
    job: ReplicateJob | None = None

    @property
    def host(self):
        return self.machine

    def taken(self):
        return True

    def submit(self, job):
        self.job = job
        self.fleet.ran.append((self.machine, job))

    def result(self):
        return self.fleet.script(self)

    def leave(self):
        self.fleet.left.append(self.machine)


SETUP = ReplicateSetup(
    trees={"base": "base", "candidate": "candidate"},
    inside=".",
    itself=False,
    base_python=None,
    sources={},
    replication=Replication(),
    seed=0,
    variables={},
    wait_s=10.0,
)
FIVE = list("abcde")


def compared(fleet, *, cells=CELLS, fewest=5, **effort):
    """Return the decision on the cells, what was said, and who made the replicates."""
    group = EqualMachines(fleet, resource="", fewest=fewest)
    replicates, said = ReplicatesOnRay(fleet, group, SETUP), []
    comparison = Comparison(replicates, effort=Effort(processes=3, **effort))
    comparison.run(cells, said.append)
    return comparison.decision(cells), said, replicates


def of_times(decision):
    return [one for one in decision.figure_verdicts if one.meter == "step_time"]


def test_every_machine_makes_replicates_until_all_cells_are_settled_and_the_record_says_where():
    fleet = Machines(FIVE, made)
    decision, said, _ = compared(fleet)
    assert {one.verdict for one in of_times(decision)} == {Verdict.SAME}
    assert {machine for machine, _ in fleet.ran} == set(FIVE)
    assert Counter(one.machine for one in decision.replicates) == dict.fromkeys(FIVE, 6)
    assert sorted(fleet.left) == FIVE
    assert said[-1].startswith("replicate 15 on ") and "2 of 2 cells settled" in said[-1]
    plain = as_plain(decision, ExitStatus.OK)
    assert plain["machines"] == dict.fromkeys(FIVE, KIND)
    assert {one["machine"] for one in plain["replicates"]} == set(FIVE)
    assert len({job.number for _, job in fleet.ran}) == len(fleet.ran)


def test_without_a_cluster_nothing_of_machines_is_recorded():
    decision = versions.GateResult(figure_verdicts=(), not_compared=(), measured=0)
    assert set(as_plain(decision, ExitStatus.OK)) == {
        "status",
        "counts",
        "verdicts",
        "not_compared",
    }


def test_a_slowdown_on_every_machine_is_worse():
    shifts = dict(zip(FIVE, (1.049, 1.05, 1.051, 1.0505, 1.0495), strict=True))
    fleet = Machines(FIVE, lambda slot: made(slot, change=shifts[slot.machine]))
    decision, _, _ = compared(fleet)
    assert {one.verdict for one in of_times(decision)} == {Verdict.WORSE}
    assert decision.status() is ExitStatus.REGRESSION


def test_a_small_group_s_replicates_are_of_one_machine_and_judged_as_here():
    fleet = Machines(["a", "b"], made)
    decision, _, replicates = compared(fleet)
    assert replicates.machines == 0
    assert {one.machine for one in decision.replicates} == {"a"}
    assert {one.verdict for one in of_times(decision)} == {Verdict.SAME}


def test_replicates_of_a_machine_that_is_lost_do_not_mix_with_those_of_the_next():
    calls = itertools.count()

    def script(slot):
        if next(calls) == 2:
            fleet.names.remove("a")
            raise SlotLost("the node is gone")
        return made(slot)

    fleet = Machines(["a", "b"], script)
    decision, _, _ = compared(fleet)
    assert Counter(one.machine for one in decision.replicates) == {"a": 4, "b": 6}
    assert {one.change.rounds for one in of_times(decision)} == {3}


def test_a_lost_replicate_is_made_on_another_machine():
    lost = []

    def script(slot):
        if slot.machine == "c" and not lost:
            lost.append(slot.job.number)
            raise SlotLost("killed")
        return made(slot)

    fleet = Machines(FIVE, script)
    decision, _, _ = compared(fleet)
    assert decision.measured == 2
    (number,) = lost
    again = [machine for machine, job in fleet.ran if job.number == number]
    assert len(again) == 2 and again[0] == "c" != again[1]


def test_a_cell_that_ends_its_machine_s_process_each_time_becomes_a_reason_and_others_do_not():
    lethal = CELLS[0]

    def script(slot):
        if lethal in slot.job.cells:
            raise SlotLost("killed by its model")
        return made(slot)

    decision, _, _ = compared(Machines(FIVE, script))
    lost = [one for one in decision.not_compared if one.cell == lethal]
    assert [one.meter for one in lost] == ["step_time", "saved_for_backward", "peak_transient"]
    for one in lost:
        assert one.reason.startswith("begun 3 times, the last on ")
        assert one.reason.endswith("killed by its model")
    assert {each.cell for each in of_times(decision)} == {CELLS[1]}


def test_one_machine_s_reason_for_pairs_holds_for_all_and_its_cell_begins_anew():
    def script(slot):
        return made(slot, apart=[CELLS[0]] if len(fleet.ran) > 7 else [])

    fleet = Machines(FIVE, script)
    decision, _, replicates = compared(fleet)
    assert set(replicates.results.apart) == {CELLS[0]}
    first = of_times(decision)[0]
    assert "in pairs of processes: a compiled extension" in first.reason
    known = [job.apart for _, job in fleet.ran]
    assert known[0] == {} and known[-1] == {CELLS[0]: "a compiled extension"}


def test_what_the_user_has_to_mend_is_raised_as_here():
    fleet = Machines(FIVE, lambda slot: ReplicateResult(host="a", refused="no such module"))
    with pytest.raises(BadModel, match="no such module"):
        compared(fleet)
    assert sorted(fleet.left) == FIVE


def test_cores_that_others_hold_for_too_long_are_a_reason():
    busy = Answer(host="a", trouble="busy", why="core-0 was held by another run")
    decision, _, _ = compared(Machines(FIVE, lambda slot: busy))
    assert {one.cell for one in decision.not_compared} == set(CELLS)
    assert "core-0 was held by another run" in decision.not_compared[0].reason
    assert decision.status() is ExitStatus.NOTHING_MEASURED


def test_what_is_not_back_when_the_budget_ends_is_given_up(clock):
    def script(slot):
        clock.advance(1.0)
        return None if slot.machine == "e" else made(slot, change=1.2 if slot.machine == "a" else 1)

    fleet = Machines(FIVE, script)
    decision, said, _ = compared(fleet, budget_s=40.0)
    assert sorted(fleet.left) == FIVE
    assert clock.now < 50
    assert {one.verdict for one in of_times(decision)} == {Verdict.INCONCLUSIVE}
    assert all("the budget ended" in one.reason for one in of_times(decision))
    assert said


def test_a_base_that_is_late_on_a_machine_is_so_in_the_decision():
    def late(slot):
        results = Results(
            failures={one: {"base": "gave no answer"} for one in slot.job.cells},
            doubts={(one, "base"): "it may be slow there" for one in slot.job.cells[:1]},
        )
        return ReplicateResult(host=slot.host, results=results)

    decision, *_ = compared(Machines(FIVE, late))
    found = {one.cell: one.verdict for one in decision.figure_verdicts}
    assert found == dict(zip(CELLS, (Verdict.INCONCLUSIVE, Verdict.BETTER), strict=True))


def test_ctrl_c_leaves_no_machine_with_work():
    def script(slot):
        raise KeyboardInterrupt

    fleet = Machines(FIVE, script)
    with pytest.raises(KeyboardInterrupt):
        compared(fleet)
    assert sorted(fleet.left) == FIVE


@dataclass
class Clock:
    now: float = 0.0

    def advance(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    one = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: one.now)
    return one


def test_a_replicate_s_limit_is_beyond_what_its_answers_may_take():
    fleet = Machines(FIVE, made)
    compared(fleet)
    job = ReplicateJob(number=1, cells=tuple(CELLS), apart={})
    answers = 2 * (2 + SETUP.replication.least_turns) * SETUP.replication.limit_s
    assert SETUP.wait_s + len(CELLS) * answers < fleet.limits_s(job) < math.inf


def test_a_budget_is_over_when_its_time_has_passed(clock):
    budget = Budget(10.0)
    assert (budget.is_over, budget.ended) == (False, False)
    clock.advance(11.0)
    assert (budget.is_over, budget.ended) == (True, True)


def test_an_open_cell_whose_machines_are_gone_says_so_and_a_settled_one_does_not():
    def script(slot):
        if len(fleet.ran) <= 15:
            return made(slot, change=1.1 if slot.machine == "a" else 1.0)
        raise SlotLost("the node is gone")

    fleet = Machines(FIVE, script)
    decision, _, _ = compared(fleet, cells=CELLS[:1])
    (one,) = of_times(decision)
    assert one.verdict is Verdict.INCONCLUSIVE
    assert one.reason.count("the node is gone") == 1
