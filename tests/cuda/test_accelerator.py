"""`torch.accelerator` is enough for memory: asked of CUDA, whose answers are known."""

import pytest
import torch
from simulated_gpu.stand_in import in_child

from gradbench.devices import Unreadable
from gradbench.devices.accelerator import Accelerator
from gradbench.selfcheck import device_memory

pytestmark = pytest.mark.simulated_cuda


class Plain(Accelerator):
    """CUDA as any accelerator."""

    __slots__ = ()
    family = "cuda"


@pytest.mark.parametrize(
    "ask",
    [
        device_memory.counters,
        device_memory.known_blocks,
        device_memory.traces,
        device_memory.memory_runs_out,
    ],
    ids=lambda ask: ask.__name__,
)
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
@in_child
def test_what_is_asked_about_memory_is_ok(name, ask):
    device = Plain(name)
    device.check()
    device.prepare()
    checks = list(ask(device))
    assert checks
    assert {check.status for check in checks} == {"ok"}, checks


@in_child
def test_what_it_does_not_offer_is_a_reason():
    device = Plain("cuda")
    device.prepare()
    assert device.in_use is False or device.probe_bytes > 0
    device.warm_up()
    assert device.in_use
    with pytest.raises(Unreadable, match="hold the queue of cuda back"):
        device.device_clock()


@in_child
def test_the_busiest_of_two_is_known_by_its_counters():
    block = torch.empty(1024, device="cuda:1")
    assert Plain("cuda").busiest().name == "cuda:1"
    del block
    assert Plain("cuda:1").busiest().name == "cuda"
