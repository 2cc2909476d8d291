"""The timed rounds, on a fake clock: order, windows, calibration, when they stop."""

import gc
import math
import random
import sys
from dataclasses import replace

import pytest
from fakes import FakeArm, FakeClock, arms

from gradbench import devices
from gradbench.experiment.plan import Plan
from gradbench.runner.interleave import (
    Interleaving,
    Warmth,
    timed_rounds,
    warm_up,
)
from gradbench.runner.meters import StepTime
from gradbench.runner.timing_rules import calibrate, collector_resting, precision

PLAN = Plan(budget_s=1.0, min_rounds=12, max_rounds=500, warmup_s=0.001)


@pytest.fixture
def clock():
    return FakeClock()


def measure(
    sides,
    clock,
    *,
    plan=PLAN,
    step_ns=1000.0,
    batch_ns=3000,
):
    """Return the rounds of arms that were warm before, of three steps each by default."""
    return timed_rounds(
        sides,
        StepTime(lambda: None, clock, batch_ns=batch_ns),
        plan=plan,
        rng=random.Random(0),
        warmth=Warmth([step_ns for _ in sides], 6, steady=True),
    )


def interleaved(sides, clock, *, plan=PLAN, step_ns=1e9, **options):
    rounds = Interleaving(
        sides,
        StepTime(lambda: None, clock),
        plan=plan,
        rng=random.Random(0),
        warmth=Warmth([step_ns for _ in sides], 6, steady=True),
        **options,
    )
    for _ in rounds:
        pass
    return rounds.so_far()


def test_a_batch_is_synchronized_on_both_sides_and_never_between(clock):
    log = []
    (arm,) = arms(clock, [10], log)
    StepTime(lambda: log.append("synchronize"), clock).read(arm.step, 3)
    assert log == ["synchronize", *["arm0 outside its mode"] * 3, "synchronize"]


def test_every_round_visits_every_arm_once_in_a_fresh_order(clock):
    log = []
    measure(arms(clock, [1000, 1000, 1000], log), clock)
    visits = [entry.removeprefix("enter ") for entry in log if entry.startswith("enter")]
    rounds = [tuple(visits[i : i + 3]) for i in range(0, len(visits), 3)]
    assert all(sorted(visited) == ["arm0", "arm1", "arm2"] for visited in rounds)
    assert len(set(rounds)) > 3


def test_one_untimed_step_follows_each_switch_and_modes_are_held_around_steps(clock):
    log = []
    rounds = measure(arms(clock, [1000, 2000], log), clock)
    visit = log[: log.index("leave arm0") + 1] if log[0] == "enter arm0" else log[6:12]
    assert visit == ["enter arm0", *["arm0"] * 4, "leave arm0"]
    assert not any("outside" in entry for entry in log)
    assert set(rounds.batch_ns[0]) == {3000}
    assert set(rounds.batch_ns[1]) == {6000}


def test_stops_on_precision_when_times_repeat(clock):
    rounds = measure(arms(clock, [1000, 1300], []), clock)
    assert rounds.stopped == "precision"
    assert len(rounds.batch_ns[0]) == PLAN.min_rounds
    assert rounds.precision == 0


def test_stops_on_budget_when_times_scatter(clock):
    noise = random.Random(1)
    sides = [
        FakeArm(name, clock, lambda _: noise.randint(100_000, 900_000), []) for name in ("a", "b")
    ]
    rounds = measure(sides, clock, batch_ns=0, step_ns=500_000, plan=Plan(budget_s=0.1))
    assert rounds.stopped == "budget"
    assert clock.now_ns >= 0.1e9
    assert rounds.precision > 0.0025


def test_stops_at_the_most_rounds_and_never_before_the_least(clock):
    noise = random.Random(2)
    sides = [FakeArm(name, clock, lambda _: noise.randint(10, 90), []) for name in ("a", "b")]
    assert len(measure(sides, clock).batch_ns[0]) == PLAN.max_rounds
    long = arms(clock, [10**8, 10**8], [])
    assert len(measure(long, clock, step_ns=1e8).batch_ns[0]) == PLAN.min_rounds


def test_rounds_that_would_pass_the_budget_four_times_over_are_as_few_as_carry_an_interval(clock):
    long = arms(clock, [10**9, 10**9], [])
    rounds = measure(long, clock, step_ns=1e9)
    assert len(rounds.batch_ns[0]) == 6
    assert rounds.stopped == "budget"


def test_no_round_is_begun_that_would_not_end_by_the_deadline(clock):
    rounds = interleaved(arms(clock, [10**9, 10**9], []), clock, deadline_ns=9e9)
    assert rounds.stopped == "limit"
    assert len(rounds.iterations) == 4
    assert clock.now_ns <= 9e9


def test_a_kept_budget_is_kept_and_one_round_is_made_whatever_it_takes(clock):
    plan = replace(PLAN, budget_s=7)
    rounds = interleaved(arms(clock, [10**9] * 2, []), clock, plan=plan, keeps_budget=True)
    assert (len(rounds.iterations), clock.now_ns) == (3, 6e9)
    rounds = interleaved(arms(clock, [10**10] * 2, []), clock, plan=plan, keeps_budget=True)
    assert len(rounds.iterations) == 1


def test_an_arm_that_raises_is_lost_and_the_others_keep_their_rounds(clock):
    class Cracks(FakeArm):
        def step(self):
            super().step()
            if self.log.count("b") == 21:
                sys.exit("enough")

    log = []
    first, last = arms(clock, [1000, 1000], log)
    sides = [first, Cracks("b", clock, lambda _: 1000, log), last]
    raised = []
    rounds = interleaved(sides, clock, step_ns=1000, lost=lambda *what: raised.append(what))
    assert [len(values) for values in rounds.batch_ns] == [12, 10, 12]
    ((index, error),) = raised
    assert (index, repr(error)) == (1, "SystemExit('enough')")


def test_no_arm_left_ends_the_rounds(clock):
    class Broken(FakeArm):
        def step(self):
            raise ValueError

    rounds = interleaved([Broken("a", clock, lambda _: 0)], clock, lost=lambda *_: None)
    assert (rounds.stopped, rounds.batch_ns) == ("arms", [[]])
    with pytest.raises(ValueError):
        measure([Broken("a", clock, lambda _: 0)], clock)


def test_warm_up_goes_on_without_an_arm_that_raises(clock):
    class Broken(FakeArm):
        def step(self):
            raise ValueError

    sides = [Broken("a", clock, lambda _: 0), *arms(clock, [100_000], [])]
    raised = []
    warmth = warm_up(
        sides,
        StepTime(lambda: None, clock),
        plan=PLAN,
        rng=random.Random(0),
        lost=lambda *what: raised.append(what),
    )
    assert warmth.typical_ns == [math.inf, 100_000]
    assert len(raised) == 1


def test_never_stops_on_significance(clock):
    """Arms that differ tenfold, but scatter: the difference is plain, the precision is not."""
    noise = random.Random(3)
    sides = [
        FakeArm("slow", clock, lambda _: noise.randint(10_000, 19_000), []),
        FakeArm("fast", clock, lambda _: noise.randint(1_000, 1_900), []),
    ]
    assert measure(sides, clock, batch_ns=0).stopped == "rounds"


def test_drift_shared_by_both_arms_does_not_widen_the_ratio(clock):
    sides = [
        FakeArm("a", clock, lambda n: 1000 * (100 + n), log := []),
        FakeArm("b", clock, lambda n: 1000 * (100 + n), log),
    ]
    rounds = measure(sides, clock, batch_ns=0, step_ns=1e5)
    times = rounds.batch_ns[0]
    assert max(times) > 1.3 * min(times)
    assert rounds.precision < 0.05


def test_a_lone_arm_stops_on_the_precision_of_its_own_time(clock):
    rounds = measure(arms(clock, [1000], []), clock)
    assert rounds.stopped == "precision"


@pytest.mark.parametrize(
    ("step_ns", "iterations"),
    [
        (30_000, 4),
        (100, 1000),
        (60_000, 3),
        (99_999, 3),
        (100_000, 3),
        (999_999, 3),
        (1e6, 1),
        (5e6, 1),
        (0, 100_000),
    ],
)
def test_a_batch_lasts_about_its_target_and_holds_three_steps_unless_one_is_enough(
    step_ns, iterations
):
    assert calibrate(step_ns, 100_000) == iterations


def test_warm_up_goes_on_while_times_still_fall(clock):
    sides = [FakeArm("a", clock, lambda n: max(1_000, 200_000 - 4_000 * n), [])]
    warmth = warm_up(sides, StepTime(lambda: None, clock), plan=PLAN, rng=random.Random(0))
    assert warmth.typical_ns == [1_000]
    assert warmth.steady


def test_warm_up_gives_up_at_five_times_its_least(clock):
    """Every step takes 5 us longer than the one before: never steady."""
    sides = [FakeArm("a", clock, lambda n: 10_000 + 5_000 * n, log := [])]
    warmth = warm_up(sides, StepTime(lambda: None, clock), plan=PLAN, rng=random.Random(0))
    steps = sum(entry == "a" for entry in log)
    last_ns = 10_000 + 5_000 * len(log)
    assert steps == warmth.rounds > 6
    assert not warmth.steady
    assert 5e6 <= clock.now_ns <= 5e6 + last_ns


def test_arms_are_warmed_up_and_batches_calibrated_unless_that_was_done_before(clock):
    sides = arms(clock, [2_000, 1_000], log := [])
    rounds = timed_rounds(
        sides, StepTime(lambda: None, clock, batch_ns=8_000), plan=PLAN, rng=random.Random(0)
    )
    assert set(rounds.iterations) == {8}
    visits = sum(entry == "enter arm0" for entry in log)
    assert visits > len(rounds.iterations)


def test_a_batch_lasts_as_the_device_says_and_is_one_step_behind_a_flushed_cache():
    device = devices.find("cpu")
    assert StepTime.of(device).batch_ns == device.batch_ns > 0
    assert StepTime.of(device, flush=lambda: None).batch_ns == 0


def test_precision_is_the_widest_half_width_against_the_first_arm():
    steady, scattered = [100] * 50, [90, 110] * 25
    one = [1] * 50
    assert precision([steady, steady], one) == 0
    assert precision([steady, steady, scattered], one) == pytest.approx(0.1, abs=0.02)


def test_precision_of_a_lone_arm_is_of_steps_not_of_batches():
    assert precision([[100, 200] * 25], [1, 2] * 25) == 0


def test_batches_are_counted_anew_when_the_machine_changes(clock):
    """Steps become three times as long after the 60th round; a batch holds a third from then on."""
    noise = random.Random(5)

    def cost(n):
        return noise.randint(9_000, 11_000) * (1 if n < 2 * 60 * 11 else 3)

    log = []
    sides = [FakeArm(name, clock, cost, log) for name in ("a", "b")]
    plan = Plan(budget_s=10, min_rounds=12, max_rounds=300, precision_short=1e-9)
    rounds = measure(sides, clock, step_ns=10_000, batch_ns=100_000, plan=plan)
    assert rounds.iterations[:50] == [10] * 50
    assert rounds.iterations[-1] == 4
    assert sorted(set(rounds.iterations)) == [4, 10]
    per_step = [ns / n for ns, n in zip(rounds.batch_ns[0], rounds.iterations, strict=True)]
    assert max(per_step) < 4 * min(per_step)


def test_batches_stay_as_they_are_while_the_machine_does(clock):
    noise = random.Random(6)
    sides = [FakeArm(name, clock, lambda _: noise.randint(7, 13), []) for name in ("a", "b")]
    rounds = measure(sides, clock, step_ns=10, plan=PLAN)
    assert set(rounds.iterations) == {300}


def test_the_collector_rests_inside_and_comes_back_after():
    with collector_resting():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ValueError, match="x"), collector_resting():
        raise ValueError("x")
    assert gc.isenabled()
