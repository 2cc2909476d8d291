"""What is put back between two visits of a module: everything but parameters."""

import functools
import random
import threading
from collections import deque

import numpy as np
import pytest
import torch
from torch import nn

from gradbench.workloads.models import MODELS
from gradbench.workloads.state import RandomNumbers, Snapshot


class Remembering:
    def __init__(self):
        self.keys = []
        self.last = None


class Slotted:
    __slots__ = ("count",)

    def __init__(self):
        self.count = 0


class Stateful(nn.Module):
    """Keeps something in every way that one may."""

    shared, calls = [], 0

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.zeros(4))
        self.hidden = None
        self.count = 0
        self.seen = {}
        self.recent = deque(maxlen=3)
        self.names = set()
        self.cache = Remembering()
        self.slotted = Slotted()
        self.pair = (torch.zeros(2), [])
        self.own_random = random.Random(1)
        self.own_generator = torch.Generator().manual_seed(1)
        self.own_numpy = np.random.RandomState(1), np.random.default_rng(1)
        self.of_the_thread = threading.local()
        self.parts = [nn.BatchNorm1d(4)]  # in no registry

    def forward(self, x):
        self.hidden = self.layer(x)
        self.count += 1
        self.seen[self.count] = x
        self.recent.append(self.count)
        self.names.add(self.count)
        self.cache.keys.append(self.hidden)
        self.cache.last = self.hidden
        self.slotted.count += 1
        self.pair[0].add_(1)
        self.pair[1].append(1)
        self.table = self.table + 1
        self.drawn = self.own_random.random(), torch.rand(1, generator=self.own_generator).item()
        self.drawn += (self.own_numpy[0].rand(), self.own_numpy[1].random())
        Stateful.calls += 1
        Stateful.since = self.count
        self.shared.append(self.hidden)
        self.of_the_thread.last = self.hidden
        if "late" not in self._buffers:
            self.register_buffer("late", torch.ones(1))
        return self.parts[0](self.norm(self.hidden))


def state(net):
    return (
        net.hidden,
        net.count,
        dict(net.seen),
        list(net.recent),
        set(net.names),
        list(net.cache.keys),
        net.cache.last,
        net.slotted.count,
        net.pair[0].tolist(),
        list(net.pair[1]),
        net.table.tolist(),
        net.norm.running_mean.tolist(),
        int(net.norm.num_batches_tracked),
        net.parts[0].running_var.tolist(),
        net.own_random.getstate(),
        net.own_generator.get_state().tolist(),
        hasattr(net, "drawn"),
        net.own_numpy[0].get_state()[2],
        net.own_numpy[1].bit_generator.state["state"],
        (Stateful.calls, hasattr(Stateful, "since"), len(Stateful.shared)),
        hasattr(net.of_the_thread, "last"),
        list(net.state_dict()),
    )


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("on_host", [False, True])
def test_whatever_a_step_changed_is_as_it_was(mode, on_host):
    net, x = Stateful(), torch.randn(3, 4)
    before = state(net), x.tolist()
    snapshot = Snapshot([net], given=[x], on_host=on_host)
    with mode():
        net(x)
        x.mul_(2)
    snapshot.look()
    for _ in range(2):
        with mode():
            net(x)
            x.mul_(2)
        snapshot.put_back()
        assert (state(net), x.tolist()) == before


def test_what_a_mode_made_is_that_modes_own():
    net, x = Stateful(), torch.randn(3, 4)
    built = Snapshot([net])
    with torch.inference_mode():
        net(x)
    there = Snapshot([net])
    built.put_back()
    net(x)
    here = Snapshot([net])
    there.put_back()
    assert net.hidden.is_inference()
    here.put_back()
    assert not net.hidden.is_inference()
    net(x).sum().backward()


class Cache:
    """Keys that every call adds to, in an object that is given with the batch."""

    def __init__(self):
        self.keys = torch.zeros(3, 1)


def test_an_object_of_the_batch_is_as_it_was():
    cache, batch = Cache(), {"labels": torch.ones(3)}
    snapshot = Snapshot([], given=[(cache, batch)])
    for _ in range(2):
        cache.keys = torch.cat([cache.keys, torch.ones(3, 1)], 1)
        del batch["labels"]
        snapshot.put_back()
        assert cache.keys.tolist() == [[0], [0], [0]]
        assert list(batch) == ["labels"]


def test_parameters_are_left_alone():
    net, x = Stateful(), torch.randn(3, 4)
    snapshot = Snapshot([net])
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    net(x).sum().backward()
    optimizer.step()
    moved = net.layer.weight.clone()
    snapshot.put_back()
    assert net.layer.weight.equal(moved)


def test_a_module_that_keeps_nothing_is_not_written_to():
    net = MODELS["mlp_tiny"].build()
    snapshot = Snapshot([net])
    versions = [p._version for p in net.parameters()]
    net(torch.randn(2, 64))
    snapshot.look()
    snapshot.put_back()
    assert snapshot._fingerprint() == (snapshot._lengths, snapshot._entries)
    assert [p._version for p in net.parameters()] == versions


def test_a_buffer_changed_unseen_by_its_version_is_put_back():
    norm, x = nn.BatchNorm1d(4), torch.randn(8, 4)
    version = norm.running_mean._version
    snapshot = Snapshot([norm])
    norm(x)
    assert norm.running_mean._version == version  # what makes `look` needed
    snapshot.look()
    snapshot.put_back()
    assert norm.running_mean.tolist() == [0] * 4


class Private:
    __slots__ = ("__calls",)

    def __init__(self):
        self.__calls = 0

    def __setattr__(self, name, value):
        if value < getattr(self, name, 0):
            raise ValueError("it only grows")
        object.__setattr__(self, name, value)

    def next(self):
        self.__calls += 1
        return self.__calls


TABLES: dict[int, torch.Tensor] = {}
CALLS = 0


@functools.lru_cache
def table(size):
    return torch.arange(size)


class OfAFile(nn.Module):
    """Keeps what it has in its file: a dict, a number, what a function remembers."""

    def __init__(self):
        super().__init__()
        self.private = Private()

    def forward(self, x):
        global CALLS, LATER  # noqa: PLW0603 # that it does is the point
        CALLS += 1
        LATER = CALLS
        TABLES[CALLS] = table(CALLS)
        return x * CALLS * self.private.next()


def test_what_stands_in_the_file_of_a_class_is_put_back():
    net, x = OfAFile(), torch.ones(2)
    built, tables = Snapshot([net]), TABLES
    first = net(x)
    after = Snapshot([net], since=built)
    net(x)
    after.put_back(forgetting=False)
    assert (CALLS, sorted(TABLES), table.cache_info().currsize) == (1, [1], 2)
    assert net(x).equal(4 * first)
    built.put_back()
    assert (CALLS, TABLES, "LATER" in globals()) == (0, {}, False)
    assert TABLES is tables
    assert net(x).equal(first)
    built.put_back()


def test_a_function_forgets_what_it_keeps_where_it_kept_nothing_at_first():
    net = OfAFile()
    built = Snapshot([net])
    net(torch.ones(1))
    after = Snapshot([net], since=built)
    assert after.forget()
    assert table.cache_info().currsize == 0
    assert not after.forget()
    table(7)
    full = Snapshot([net])
    table(8)
    assert not full.forget()
    assert table.cache_info().currsize == 2
    built.put_back()


def test_what_is_beside_modules_is_kept_without_their_own():
    net = OfAFile()
    net.own = [1]
    beside = Snapshot.beside([net])
    net(torch.ones(1))
    net.own.append(2)
    beside.put_back()
    assert (CALLS, TABLES, net.own) == (0, {}, [1, 2])


def test_a_long_list_is_judged_by_its_length():
    net = nn.Linear(2, 2)
    net.history = list(range(20_000))
    snapshot = Snapshot([net])
    net.history.append(1)
    snapshot.put_back()
    assert len(net.history) == 20_000


def test_draws_repeat_from_the_mark_on():
    numbers = RandomNumbers([torch.zeros(1)])

    def draw():
        return torch.rand(1).item(), random.random(), np.random.rand()

    first = draw()
    numbers.put_back()
    assert draw() == first
    numbers.mark()
    second = draw()
    numbers.put_back()
    assert draw() == second != first


def test_only_generators_that_were_drawn_from_are_put_back_later():
    numbers = RandomNumbers()
    random.random()
    numbers.look()
    used = numbers.used()
    before = np.random.rand()
    python = random.random()
    used.put_back()
    assert random.random() == python
    assert np.random.rand() != before
