"""The grad modes: the two bits they set, and that they put back what was there."""

import pytest
import torch

from gradbench.matrix import GRAD_MODES
from gradbench.modes import MODES

BITS = {
    "global_on": (True, False),
    "global_off": (False, False),
    "no_grad": (False, False),
    "inference_mode": (False, True),
}


def bits():
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def test_the_catalogue_has_the_modes_that_the_matrix_knows():
    assert tuple(MODES) == GRAD_MODES


@pytest.mark.parametrize("name", GRAD_MODES)
def test_a_mode_sets_its_two_bits(name):
    with MODES[name].enter():
        assert bits() == BITS[name]


@pytest.mark.parametrize("name", GRAD_MODES)
@pytest.mark.parametrize("ambient", [True, False])
def test_a_mode_restores_what_was_there_even_after_an_exception(name, ambient):
    with torch.set_grad_enabled(ambient):
        with MODES[name].enter():
            pass
        assert bits() == (ambient, False)
        with pytest.raises(ZeroDivisionError), MODES[name].enter():
            raise ZeroDivisionError
        assert bits() == (ambient, False)


@pytest.mark.parametrize("name", GRAD_MODES)
def test_reenabling_records_a_graph_inside_any_mode(name):
    weight = torch.ones(2, requires_grad=True)
    with MODES[name].enter(), MODES[name].reenable():
        (weight * weight).sum().backward()
    assert weight.grad is not None


def test_enable_grad_alone_records_nothing_inside_inference_mode():
    """Why inference_mode has a construct of its own."""
    weight = torch.ones(2, requires_grad=True)
    with torch.inference_mode(), torch.enable_grad():
        assert torch.is_grad_enabled()
        assert (weight * weight).grad_fn is None


@pytest.mark.parametrize("name", GRAD_MODES)
def test_records_says_whether_backward_can_run(name):
    weight = torch.ones(2, requires_grad=True)
    with MODES[name].enter():
        assert (weight * weight).requires_grad is MODES[name].records
