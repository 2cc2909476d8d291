"""The grad modes: the two bits they set, and that they put back what was there."""

import pytest
import torch

from gradbench.experiment.matrix import GRAD_MODES
from gradbench.workloads.grad_modes import MODES

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


@pytest.mark.parametrize("way", ["enter", "hold"])
@pytest.mark.parametrize("name", GRAD_MODES)
def test_a_mode_sets_its_two_bits_entered_or_held(name, way):
    with getattr(MODES[name], way)():
        assert bits() == BITS[name]


@pytest.mark.parametrize("way", ["enter", "hold"])
@pytest.mark.parametrize("name", GRAD_MODES)
@pytest.mark.parametrize("ambient", [True, False])
def test_a_mode_restores_what_was_there_even_after_an_exception(name, ambient, way):
    context = getattr(MODES[name], way)
    with torch.set_grad_enabled(ambient):
        with context():
            pass
        assert bits() == (ambient, False)
        with pytest.raises(ZeroDivisionError), context():
            raise ZeroDivisionError
        assert bits() == (ambient, False)


def test_held_modes_of_one_flag_are_entered_alike_and_entered_ones_by_their_own_construct():
    """The A/A control: held, global_off and no_grad are the same call."""
    off, no_grad = MODES["global_off"].hold(), MODES["no_grad"].hold()
    assert type(off) is type(no_grad)
    assert isinstance(MODES["no_grad"].enter(), torch.no_grad)
    assert isinstance(MODES["inference_mode"].enter(), torch.inference_mode)


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
