"""Where a tensor lies: in one storage, several, or none that shows."""

import pytest
import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from gradbench.memory.storages import shape, storages
from gradbench.memory.usage import memory_usage

DENSE = torch.randn(3, 4)
ROWS, COLUMNS = torch.arange(4) * 4, torch.arange(4).repeat(3)
CSR = torch.sparse_csr_tensor(ROWS, COLUMNS, torch.ones(12), (3, 4))
CSC = torch.sparse_csc_tensor(
    torch.arange(5) * 3, torch.arange(3).repeat(4), torch.ones(12), (3, 4)
)


def total(tensor):
    return sum(storage.nbytes() for storage in storages(tensor))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("tensor", "nbytes"),
    [
        (DENSE, 48),
        (DENSE[1:], 48),
        (DENSE.to_sparse(), 12 * 2 * 8 + 48),
        (CSR, 4 * 8 + 12 * 8 + 48),
        (CSC, 5 * 8 + 12 * 8 + 48),
        (torch.nested.nested_tensor([DENSE, DENSE[:2]]), 80 + 2 * 2 * 8 * 2 + 2 * 8),
        (torch.nested.nested_tensor([DENSE, DENSE[:2]], layout=torch.jagged), 80 + 3 * 8),
        (torch.quantize_per_tensor(DENSE, 0.1, 0, torch.qint8), 12),
        (
            torch.quantize_per_channel(DENSE, torch.ones(3), torch.zeros(3), 0, torch.qint8),
            12 + 3 * 4 + 3 * 4,
        ),
        (UninitializedParameter(), 0),
        (DENSE.to_mkldnn(), 0),
        (torch.empty(0), 0),
    ],
)
def test_all_that_holds_a_tensor_is_counted(tensor, nbytes):
    assert total(tensor) == nbytes


def test_what_torch_func_wraps_lies_where_the_wrapped_does():
    seen = []
    torch.func.grad(lambda x: (seen.append(total(x)), x.sum())[1])(DENSE)
    torch.func.vmap(lambda x: (seen.append(total(x)), x.sum())[1])(DENSE)
    assert seen == [48, 48]


def test_a_storage_is_named_once_however_often_it_is_used():
    whole = torch.randn(4)
    tensor = torch.sparse_coo_tensor(torch.arange(4)[None], whole, (4,))
    assert len(storages(tensor)) == 2


@pytest.mark.filterwarnings("ignore")
def test_a_tensor_without_a_shape_has_an_empty_one():
    assert shape(torch.nested.nested_tensor([DENSE, DENSE[:2]])) == ()
    assert shape(nn.LazyLinear(2).weight) == ()
    assert shape(DENSE) == (3, 4)


def test_zeros_of_forward_ad_lie_nowhere_and_fail_no_meter():
    """Tangents of what does not vary have a storage that must not be asked where it is."""
    assert storages(torch._efficientzerotensor(3)) == []
    layer = nn.Linear(3, 3)
    used = memory_usage(lambda: torch.func.jvp(layer, (torch.ones(3),), (torch.ones(3),)))
    assert used.peak_bytes > 0
