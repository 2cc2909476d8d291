"""Steps of two versions that alternate in one process: their weights, their rounds."""

import random
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import nn

from gradbench.comparison import interleaved_sides, worker
from gradbench.runner.timing_rules import precision

# Weights


def subject(module, x):
    parts = [module]
    tensors = [*module.parameters(), *module.buffers(), x]
    return SimpleNamespace(parts=lambda: parts, resident=lambda: tensors)


def net(seed, width=4):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def test_equal_weights_are_one_memory_with_gradients_of_their_own():
    x, base, candidate = torch.ones(2, 4), net(0), net(0)
    other = x.clone()
    assert interleaved_sides.share(subject(base, x), subject(candidate, other)) == ""
    for one, two in zip(base.parameters(), candidate.parameters(), strict=True):
        assert (one is not two, one.data_ptr()) == (True, two.data_ptr())
    assert x.data_ptr() == other.data_ptr()
    base(x).sum().backward()
    assert all(parameter.grad is None for parameter in candidate.parameters())


@pytest.mark.parametrize("candidate", [net(1), net(0, width=8), nn.Sequential(nn.Linear(4, 4))])
def test_weights_that_differ_at_all_stay_apart(candidate):
    x = torch.ones(2, 4)
    base = net(0)
    before = [parameter.clone() for parameter in candidate.parameters()]
    why = interleaved_sides.share(subject(base, x), subject(candidate, x.clone()))
    assert why == interleaved_sides.UNKNOWN
    assert all(map(torch.equal, before, candidate.parameters()))
    assert not {p.data_ptr() for p in base.parameters()} & {
        p.data_ptr() for p in candidate.parameters()
    }


def test_a_buffer_or_an_input_that_a_step_changes_stays_each_side_s_own():
    base, candidate = net(0), net(0)
    given = [torch.ones(2, 4) for _ in range(2)]

    def steps():
        for module, x in zip((base, candidate), given, strict=True):
            module(x)
            x.add_(1)
            yield

    subjects = map(subject, (base, candidate), given)
    assert interleaved_sides.share(*subjects, steps=steps()) == ""
    own = {name for name, one in base.state_dict().items()
           if one.data_ptr() != candidate.state_dict()[name].data_ptr()}  # fmt: skip
    assert own == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert given[0].data_ptr() != given[1].data_ptr()


def moved(module, *, by):
    """Change a weight as a forward or an optimizer does: unseen by its version."""
    module[0].weight.data.mul_(by)


@pytest.mark.parametrize(
    ("factors", "optimizes", "shared"),
    [
        ((1.0, 1.0), False, True),
        ((0.999, 0.999), False, False),  # or each side would find what the other has left
        ((1.0, 0.5), False, False),
        ((0.5, 1.0), False, False),
        ((0.999, 0.999), True, True),  # an optimizer's, on both sides alike
        ((0.999, 0.5), True, False),
    ],
)
def test_weights_that_a_step_changes_stay_each_side_s_own(factors, optimizes, shared):
    base, candidate, x = net(0), net(0), torch.ones(2, 4)

    def steps():
        for module, by in zip((base, candidate), factors, strict=True):
            moved(module, by=by)
            yield

    sides = subject(base, x), subject(candidate, x.clone())
    before, kept = base[0].weight.detach().clone(), []
    why = interleaved_sides.share(*sides, steps=steps(), optimizes=optimizes, kept=kept)
    assert why == ("" if shared else interleaved_sides.CHANGES)
    pairs = zip(base.parameters(), candidate.parameters(), strict=True)
    assert {one.data_ptr() == other.data_ptr() for one, other in pairs} == {shared}
    assert len(kept) == (4 if shared else 0)
    if shared:  # what a later step changes shows beside it
        assert torch.equal(kept[0][1], before * factors[0])
        moved(candidate, by=0.5)
        assert not torch.equal(*kept[0])


# Rounds


def test_each_side_steps_in_its_turn_and_in_its_mode_and_both_draw_the_same():
    turns = SimpleNamespace(now=None)
    turns.give = lambda index: setattr(turns, "now", index)
    seen = [[], []]

    def arm(index):
        def step():
            assert (turns.now, torch.is_grad_enabled()) == (index, False)
            seen[index].append(torch.rand(1).item())

        given = SimpleNamespace(step=step, held=torch.no_grad)
        return interleaved_sides.Arm(index, given, SimpleNamespace())

    arms = [arm(0), arm(1)]
    visits = interleaved_sides.Visits(turns, lambda: None, random.Random(0))
    assert visits.warm_up(arms, seconds=0.0) > 0
    for drawn in seen:
        drawn.clear()
    times = visits.rounds(
        arms, iterations=3, seconds=0.0, least=5, untimed=True, precision=precision
    )
    assert list(map(len, times)) == [5, 5]
    assert seen[0] == seen[1]
    assert len(seen[0]) == len(set(seen[0]))
    assert 5 * (3 + 1) <= len(seen[0]) <= 5 * (3 + 2)  # some rounds have an untimed step more


def test_both_sides_draw_the_same_from_whichever_generator_a_step_draws_from():
    numbers, seen = interleaved_sides.Numbers(), []
    numbers.mark()
    torch.rand(1)
    numpy.random.rand()
    random.random()
    numbers.look()
    numbers.mark()
    for _ in range(2):
        numbers.put_back()
        seen.append((torch.rand(1).item(), numpy.random.rand(), random.random()))
    assert seen[0] == seen[1]
    quiet = interleaved_sides.Numbers()
    quiet.mark()
    quiet.look()
    quiet.mark()
    drawn = random.random()
    quiet.put_back()
    assert drawn != random.random()


@pytest.mark.parametrize(
    ("disturbed", "left"), [(0, 7), (3, 4), (5, 2), (6, 7)], ids=["none", "3", "5", "too many"]
)
def test_rounds_in_which_the_core_was_taken_are_left_out_where_enough_others_remain(
    monkeypatch, disturbed, left
):
    reads, seconds = iter(range(100)), iter(range(100))
    monkeypatch.setattr("time.process_time", lambda: next(seconds))
    monkeypatch.setattr(  # two for each side's batch
        interleaved_sides, "_switches", lambda: min(next(reads), 4 * disturbed)
    )
    given = SimpleNamespace(step=lambda: None, held=torch.no_grad)
    arms = [interleaved_sides.Arm(index, given, SimpleNamespace()) for index in (0, 1)]
    visits = interleaved_sides.Visits(
        SimpleNamespace(give=lambda index: None), lambda: None, random.Random(0)
    )
    times = visits.rounds(
        arms, iterations=1, seconds=6, least=2, untimed=False, precision=precision
    )
    assert list(map(len, times)) == [left, left]


def test_a_batch_of_a_pair_in_which_others_had_the_core_is_left_out_and_one_of_own_threads_is_not(
    monkeypatch,
):
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock) ** 2)
    arm = SimpleNamespace(step=lambda: None, held=torch.no_grad)
    device = SimpleNamespace(synchronize=lambda: None)

    def batches(*taken):
        reads = iter(one for end in taken for one in ((0, 0), end))
        monkeypatch.setattr(worker, "taken_away", lambda: next(reads))
        return len(worker.slice_ns(arm, device, 1, len(taken)))

    own = worker.OWN_NS + 1
    assert batches((0, 0), (0, own), (0, 0)) == 3
    assert batches((0, 0), (1, 0), (2, own)) == 2
    assert batches((1, 0), (1, 0)) == 2  # none is left: then all count


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_rounds_end_when_the_ratio_is_precise_whatever_it_shows(spread, monkeypatch):
    clock, rng = SimpleNamespace(ns=0), random.Random(0)
    monkeypatch.setattr("time.perf_counter_ns", lambda: clock.ns)
    monkeypatch.setattr("time.process_time", lambda: clock.ns / 1e9)
    monkeypatch.setattr("time.perf_counter", lambda: clock.ns / 1e9)
    monkeypatch.setattr(interleaved_sides, "_switches", lambda: 0)

    def arm(index):
        def step():
            clock.ns += round((1 + index) * 1e5 * (1 + spread * rng.random()))

        return interleaved_sides.Arm(
            index, SimpleNamespace(step=step, held=torch.no_grad), SimpleNamespace()
        )

    visits = interleaved_sides.Visits(
        SimpleNamespace(give=lambda index: None), lambda: None, random.Random(0)
    )
    times = visits.rounds(
        [arm(0), arm(1)], iterations=1, seconds=0.4, least=8, untimed=True, precision=precision
    )
    assert (len(times[0]) == interleaved_sides.FIRST_LOOK) is (spread == 0)
    assert clock.ns < 0.41e9
