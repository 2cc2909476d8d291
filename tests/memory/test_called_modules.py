"""Which modules a call is about: one search, wherever the question is asked."""

import functools

import pytest
import torch
from torch import nn

import gradbench
from gradbench.memory.called_modules import called_modules
from gradbench.memory.usage import memory_usage

NAMED_GLOBALLY = nn.Sequential(nn.Linear(4, 4), nn.Sigmoid())


def uses_a_global(x):
    return NAMED_GLOBALLY(x)


def wrapped(function):
    @functools.wraps(function)
    def around(*args):
        return function(*args)

    return around


class Trainer:
    def __init__(self, net):
        self.net = net

    def step(self, x):
        return self.net(x)

    __call__ = step


def ways():
    """Return calls of one argument by how they come to their network."""
    net = NAMED_GLOBALLY
    return {
        "itself": net,
        "its method": net.forward,
        "a closure": lambda x: net(x) + 0,
        "a global": uses_a_global,
        "a decorated function": wrapped(uses_a_global),
        "a partial": functools.partial(lambda module, x: module(x), net),
        "a keyword": functools.partial(lambda x, module: module(x), module=net),
        "an owner": Trainer(net).step,
        "a callable object": Trainer(net),
    }


@pytest.mark.parametrize("way", ways())
def test_the_module_is_found(way):
    assert called_modules(ways()[way]) == [NAMED_GLOBALLY]


@pytest.mark.parametrize("way", ways())
def test_what_is_observed_and_what_memory_is_named_by_is_the_same_module(way):
    call, x = ways()[way], torch.ones(2, 4)
    with torch.no_grad():
        missing = gradbench.observe(call, x).without_gradient
    assert list(missing) == ["0.weight", "0.bias"]
    assert [one.module for one in memory_usage(call, x).saved] == ["1"]


def test_a_module_is_found_once_and_the_function_s_own_comes_first():
    one, other = nn.Linear(1, 1), nn.Linear(1, 1)
    assert called_modules(lambda: one(other), [other, one], {"again": one}) == [one, other]
    assert called_modules(one.forward, [other]) == [one, other]


def test_a_variable_without_a_value_and_a_function_that_wraps_itself_are_no_obstacle():
    def calls_what_is_not_there_yet():
        return later

    calls_what_is_not_there_yet.__wrapped__ = calls_what_is_not_there_yet
    assert called_modules(calls_what_is_not_there_yet) == []
    later = 1


def test_what_a_call_used_is_printed_in_a_line():
    used = memory_usage(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), torch.ones(2, 4), leaks_too=True)
    assert str(used) == "peak 64 B; saved 32 B; each further call leaves 0 B"
