"""Machines as blocks: what a machine's own shift may not do, and what several machines find."""

import math
import re

import numpy as np
import pytest
from scipy import stats

from gradbench.stats import table_rule
from gradbench.stats.machine_rule import FEWEST, MachineRule, change, machine_changes
from gradbench.stats.replicate import Replicate
from gradbench.stats.table_rule import TableRule
from gradbench.stats.verdicts import Verdict

CHANGED = {Verdict.WORSE, Verdict.BETTER, Verdict.WITHIN}


def drawn(rng, *, machines, count, shift, noise, effect=0.0, uneven=False):
    """Return replicates of machines of which each has a shift of its own, in turns.

    Uneven machines differ in noise, and the first one makes half of the replicates.
    """
    shifts = effect + shift * rng.standard_normal(machines)
    noises = noise * (rng.uniform(0.2, 3, machines) if uneven else np.ones(machines))
    made = [
        0 if uneven and number % 2 and number > machines else number % machines
        for number in range(count)
    ]
    return [(f"m{one}", shifts[one] + noises[one] * rng.standard_normal()) for one in made]


def decided(rule, table):
    """Return the verdicts on a table, each by as many replicates as its rule takes."""
    suspects, verdicts = len(table), []
    for sample in table:
        for count in rule.looks:
            if not rule.more(sample[:count], suspects=suspects):
                break
        verdicts.append(rule.verdict(sample[:count], suspects=suspects).verdict)
    return verdicts


def alarms(rng, *, tables, cells, machines, **draw):
    rule = MachineRule(machines=machines, first=3)
    return sum(
        bool(
            CHANGED
            & set(
                decided(
                    rule,
                    [drawn(rng, machines=machines, count=rule.most, **draw) for _ in range(cells)],
                )
            )
        )
        for _ in range(tables)
    )


INTERACTIONS = {
    "none": {"shift": 0.0, "noise": 0.01},
    "as the noise": {"shift": 0.01, "noise": 0.01},
    "far beyond the noise": {"shift": 0.05, "noise": 0.005},
    "uneven machines": {"shift": 0.02, "noise": 0.01, "uneven": True},
}


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_shifts_of_machines_raise_no_false_alarm_in_more_than_one_of_a_hundred_equal_tables(
    interaction,
):
    """The count is what 1% gives in 1 of 1,000 tries."""
    rng = np.random.default_rng(0)
    found = alarms(rng, tables=100, cells=2, machines=FEWEST, **INTERACTIONS[interaction])
    assert found <= stats.binom.isf(0.001, 100, table_rule.ALPHA)


@pytest.mark.slow
@pytest.mark.parametrize("machines", [3, 16])
@pytest.mark.parametrize("cells", [1, 20])
@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_however_many_machines_and_cells_it_stays_at_one_in_a_hundred(interaction, cells, machines):
    rng = np.random.default_rng(1)
    tables = 400 // cells + 40
    draw = INTERACTIONS[interaction]
    found = alarms(rng, tables=tables, cells=cells, machines=machines, **draw)
    assert found <= stats.binom.isf(0.001, tables, table_rule.ALPHA)


def test_pooled_as_if_they_were_independent_replicates_of_machines_cry_wolf():
    """So the tests above would see it."""
    rng, rule = np.random.default_rng(0), TableRule(first=20)
    draw = INTERACTIONS["far beyond the noise"]
    tables = [drawn(rng, machines=FEWEST, count=rule.most, **draw) for _ in range(60)]
    pooled = [[log for _machine, log in sample] for sample in tables]
    found = [rule.verdict(logs, suspects=1).verdict in CHANGED for logs in pooled]
    assert sum(found) > 0.15 * len(found)


def test_more_replicates_do_not_narrow_the_interval_about_a_machine_s_own_shift():
    shifts = {"a": 0.01, "b": -0.01, "c": 0.02, "d": 0.0, "e": -0.015}
    few = [(name, shift) for name, shift in shifts.items() for _ in range(3)]
    assert change(few * 50) == change(few)
    assert change(few).low < 1 < change(few).high
    assert change(few).rounds == 5


def test_the_interval_is_student_s_over_the_machines_changes():
    rng = np.random.default_rng(0)
    sample = drawn(rng, machines=6, count=60, shift=0.01, noise=0.01, effect=0.03)
    centres = machine_changes(tuple(sample))
    low, high = stats.t.interval(
        0.95, 5, loc=np.mean(centres), scale=np.std(centres, ddof=1) / math.sqrt(6)
    )
    found = change(sample)
    assert (found.low, found.high) == pytest.approx((math.exp(low), math.exp(high)))


def test_twelve_machines_find_one_percent_where_one_finds_three_and_five_find_more_than_one():
    """Where a machine's replicates differ by 2%, without shifts; shares of 60 tables."""
    rng, trials, alone = np.random.default_rng(0), 60, TableRule()

    def share(effect, machines):
        rule = MachineRule(machines=machines)
        draw = {"machines": machines, "shift": 0.0, "noise": 0.02, "effect": effect}
        tables = [[drawn(rng, count=rule.most, **draw)] for _ in range(trials)]
        return sum(decided(rule, table)[0] in CHANGED for table in tables) / trials

    def share_alone(effect):
        replicates = effect + 0.02 * rng.standard_normal((trials, alone.most))
        found = [alone.verdict(logs.tolist(), suspects=1).verdict for logs in replicates]
        return sum(verdict in CHANGED for verdict in found) / trials

    assert share(0.01, machines=12) > 0.8 > 0.15 > share_alone(0.01)
    assert share_alone(0.03) > 0.7
    assert share(0.02, machines=FEWEST) > 0.75 > share_alone(0.02)


def of(*percents, each=3):
    """Return replicates of machines with these changes, a round after the other."""
    logs = {f"m{number}": math.log1p(one / 100) for number, one in enumerate(percents)}
    return [pair for _ in range(each) for pair in logs.items()]


RULE = MachineRule(machines=5, first=3)


@pytest.mark.parametrize(
    ("sample", "verdict", "words"),
    [
        (
            of(5, 5.1, 4.9, 5, 5.05),
            Verdict.WORSE,
            "beyond the threshold of 3.0%; at least +4.9%, on",
        ),
        (of(-5, -5.1, -4.9, -5, -5), Verdict.BETTER, "on 5 machines with 15 replicates (p "),
        (of(1, 1.05, 0.95, 1, 1), Verdict.WITHIN, "slower, within tolerance: +1.0%"),
        (of(0.1, -0.2, 0.1, 0, 0.3), Verdict.SAME, "is ruled out, threshold 3.0%"),
        (of(9, -8, 5, -4, 1), Verdict.INCONCLUSIVE, "15 replicates on 5 machines leave ±"),
        (of(1, 4, -1, -2, 3), Verdict.INCONCLUSIVE, "machines would settle it"),
        (of(5, 5, 5, 5, 5)[:9], Verdict.INCONCLUSIVE, "9 of the first 15 replicates were made"),
        (of(5, each=15), Verdict.INCONCLUSIVE, "whose own shift is not known"),
    ],
)
def test_a_verdict_takes_machines_that_agree(sample, verdict, words):
    found = RULE.verdict(sample, suspects=1)
    assert found.verdict is verdict
    assert words in found.reason


@pytest.mark.parametrize("suspects", [1, 40])
@pytest.mark.parametrize(("mean", "sd"), [(1, 4), (5, 3.5), (-5, 3.5), (9, 9), (0.5, 5)])
def test_as_many_machines_as_are_named_settle_a_cell_and_half_as_many_do_not(mean, sd, suspects):
    def machines(count):
        """Return replicates on machines whose changes have this mean and standard deviation."""
        spread = np.linspace(-1, 1, count)
        return of(*(mean + sd * spread / spread.std(ddof=1)))

    here = RULE.verdict(machines(5), suspects=suspects)
    assert here.verdict is Verdict.INCONCLUSIVE
    named = int(re.search(r"(\d+) equal machines would settle it", here.reason)[1])
    for count, settled in ((named + 1, True), (named // 2, False)):
        rule = MachineRule(machines=count, first=3)
        found = rule.verdict(machines(count), suspects=suspects)
        assert (found.verdict is not Verdict.INCONCLUSIVE) is settled, found


def test_sides_swapped_give_the_opposite_verdict():
    rng, seen = np.random.default_rng(0), set()
    opposite = {Verdict.WORSE: Verdict.BETTER, Verdict.BETTER: Verdict.WORSE}
    for _ in range(150):
        effect, shift = rng.normal(0, 0.04), rng.uniform(0, 0.02)
        sample = drawn(rng, machines=5, count=RULE.most, shift=shift, noise=0.005, effect=effect)
        here = RULE.verdict(sample, suspects=2).verdict
        there = RULE.verdict([(m, -log) for m, log in sample], suspects=2).verdict
        assert there is opposite.get(here, here)
        seen.add(here)
    assert seen == set(Verdict)


def test_a_settled_cell_takes_no_more_and_an_open_one_a_stated_number_at_most():
    assert RULE.looks == (15, 30, 55)
    assert RULE.more(of(0, 0, 0, 0, 0)[:14], suspects=1)
    assert not RULE.more(of(0, 0.1, 0, 0.1, 0), suspects=1)
    wild = of(9, -8, 5, -4, 1, each=30)
    assert RULE.more(wild[:54], suspects=1)
    assert not RULE.more(wild[:55], suspects=1)
    # what is settled stays so, whatever comes back after it
    settled = of(0, 0.1, 0, 0.1, 0)
    assert RULE.verdict(settled + wild[:10], suspects=1) == RULE.verdict(settled, suspects=1)


def test_the_rule_of_one_machine_takes_no_replicate_of_another():
    made = [Replicate([[1.0]], [[1.0 + n]], machine=m) for n, m in enumerate(["a", "a", "b", "b"])]
    assert TableRule().sample(made) == [one.log_ratio for one in made[2:]]
    assert TableRule().sample(()) == []
    assert [machine for machine, _ in RULE.sample(made)] == ["a", "a", "b", "b"]
