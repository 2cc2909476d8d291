"""What autograd saves, counted once, on the account of the module and line that had it saved."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from gradbench.memory.saved_tensors import ROOT, SavedTensors, paths
from gradbench.workloads.models import mlp


def test_each_storage_counts_once_however_often_it_is_saved() -> None:
    x = torch.randn(256, requires_grad=True)
    with SavedTensors(apart=[x]) as saved:
        y = x.exp()  # saves its output
        z = y * y  # saves it twice more
        z.sum()
    assert saved.nbytes == 256 * 4


def test_views_count_with_their_whole_storage() -> None:
    whole = torch.randn(100)
    weight = torch.randn(10, requires_grad=True)
    with SavedTensors() as saved:
        whole[:10] * weight
    (one,) = saved.saved
    assert (one.shape, one.nbytes) == ((10,), 400)


def test_nothing_is_saved_where_no_graph_is_recorded() -> None:
    model, x = mlp(8, 8, 8), torch.randn(4, 8)
    with SavedTensors() as saved, torch.no_grad():
        model(x)
    assert saved.saved == []


def test_bytes_are_on_the_account_of_the_module_that_saved_them_first() -> None:
    model, x = mlp(8, 16, 16, 4), torch.randn(2, 8)
    with SavedTensors(modules=paths(model), apart=[x, *model.parameters()]) as saved:
        model(x)
    # A ReLU saves its result; the linear layer after it saves the same storage again.
    assert saved.by_module() == {"1": 2 * 16 * 4, "3": 2 * 16 * 4}


def test_functions_outside_of_all_children_are_the_roots() -> None:
    class Squares(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1).square()

    model, x = Squares(), torch.randn(8, requires_grad=True)
    with SavedTensors(modules=paths(model), apart=[x]) as saved:
        model(x)
    assert saved.by_module() == {ROOT: 32}


def test_the_line_is_the_users_own_and_not_torchs() -> None:
    x = torch.randn(8, requires_grad=True)
    model = nn.Sequential(nn.Sigmoid())
    with SavedTensors(apart=[x]) as saved:
        model(x)
    (one,) = saved.saved
    assert one.line.startswith("test_saved_tensors.py:")
    assert one.line.endswith(" in test_the_line_is_the_users_own_and_not_torchs")


def test_fake_tensors_are_distinguished_though_they_have_no_addresses() -> None:
    with FakeTensorMode():
        model, x = mlp(8, 16, 16, 4), torch.randn(2, 8)
        with SavedTensors(modules=paths(model), apart=[x, *model.parameters()]) as saved:
            model(x)
    assert saved.by_module() == {"1": 128, "3": 128}


def test_hooks_are_gone_afterwards_also_after_an_error() -> None:
    model, x = mlp(8, 8), torch.randn(4, 8)
    with pytest.raises(RuntimeError, match="shapes"), SavedTensors(modules=paths(model)):
        model(x.t())
    with SavedTensors() as later:
        model(x)
    assert {one.module for one in later.saved} == {""}
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks
