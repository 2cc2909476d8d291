"""Steps of which some take longer: seen in the mean, for sure, and not where sides are equal."""

from dataclasses import replace

import numpy as np
import pytest

from gradbench.stats import uneven_steps
from gradbench.stats.machine_rule import MachineRule
from gradbench.stats.replicate import Replicate
from gradbench.stats.table_rule import TableRule
from gradbench.stats.verdicts import Verdict

RULE = TableRule()
TURNS, BATCHES = 6, 8


def replicate(rng, *, longer=1.0, each=4, slower=1.0, wild=0.02):
    """Return a replicate of a candidate of which some steps take so many times as long."""

    def side(factors):
        noise = rng.exponential(0.01, (TURNS, BATCHES))
        noise += (rng.random((TURNS, BATCHES)) < wild) * rng.pareto(1.5, (TURNS, BATCHES))
        return (1e5 * factors * (1 + noise)).tolist()

    steps = np.arange(TURNS * BATCHES).reshape(TURNS, BATCHES)
    candidate = slower * np.where(steps % each == 0, longer, 1.0)
    return Replicate(side(np.ones((TURNS, BATCHES))), side(candidate))


def verdicts(made, cells=9):
    before = RULE.verdict(RULE.sample(made), suspects=1)
    return before, judged(before, made, cells=cells)


def judged(before, made, *, cells, rule=RULE):
    return uneven_steps.judged(
        before,
        rule.independent(made, lambda one: one.log_ratio),
        rule.independent(made, lambda one: one.mean_log_ratio),
        threshold=rule.threshold,
        cells=cells,
    )


@pytest.mark.parametrize(("longer", "each"), [(1.4, 4), (3.0, 8)])
def test_work_in_some_steps_alone_is_found_though_the_fastest_batches_do_not_show_it(longer, each):
    rng = np.random.default_rng(0)
    made = [replicate(rng, longer=longer, each=each, wild=0) for _ in range(RULE.first)]
    before, after = verdicts(made)
    assert before.verdict is Verdict.SAME
    assert after.verdict is Verdict.WORSE
    assert after.change == before.change
    assert "slower on average, by +" in after.reason
    assert after.average.low > 1.03


@pytest.mark.parametrize(("shifts", "found"), [(True, False), (False, True)])
def test_over_machines_the_mean_must_be_slower_on_each_of_them(shifts, found):
    """A machine's disturbance is in all of its replicates: they are one sample."""
    rng, rule = np.random.default_rng(0), MachineRule(machines=5)
    made = []
    for number in range(5):
        longer = 1.4 if not shifts else 1.0 + 2.0 * (number == 0)
        made += [
            replace(replicate(rng, longer=longer, wild=0), machine=f"m{number}") for _ in range(6)
        ]
    before = rule.verdict(rule.sample(made), suspects=9)
    after = judged(before, made, cells=9, rule=rule)
    assert (after.verdict is Verdict.WORSE) is found


def test_what_all_steps_take_is_left_to_the_rule():
    rng = np.random.default_rng(0)
    for slower in (1.02, 1.2):
        made = [replicate(rng, slower=slower, wild=0) for _ in range(RULE.first)]
        before, after = verdicts(made)
        assert after is before


def test_of_equal_tables_with_wild_batches_hardly_any_has_a_cell_that_is_slower_on_average():
    rng = np.random.default_rng(0)
    tables, cells = 100, 5
    alarms = 0
    for _ in range(tables):
        table = [[replicate(rng) for _ in range(RULE.first)] for _ in range(cells)]
        same = verdicts(table[0])[0]
        found = [judged(same, made, cells=cells) for made in table]
        alarms += any(one is not same for one in found)
    assert alarms <= tables // 100


def test_replicates_that_are_too_few_or_alike_to_the_last_digit_say_nothing():
    rng = np.random.default_rng(0)
    one = replicate(rng, longer=9.0, wild=0)
    before, after = verdicts([one] * RULE.first)
    assert after is before
    assert verdicts([replicate(rng, longer=9.0) for _ in range(2)])[1].verdict is not Verdict.WORSE
