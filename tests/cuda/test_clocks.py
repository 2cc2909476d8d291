"""The clocks of a CUDA device read the times that the simulated runtime keeps."""

import pytest
import torch
from simulated_gpu import stand_in
from simulated_gpu.stand_in import in_child

from gradbench.devices.cuda import CUDA

pytestmark = pytest.mark.simulated_cuda

KERNEL_NS = 40_000
TRIES_NS = (100_000_000, 1_000_000_000, 10_000_000_000)  # how long the stream is held back


@pytest.fixture(autouse=True)
def _known_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_NS", str(KERNEL_NS))


class Step:
    """A step of so many kernels, each of which adds 1."""

    def __init__(self, kernels: int) -> None:
        self.kernels = kernels
        self.values = torch.zeros(8, device="cuda")

    def __call__(self) -> None:
        for _ in range(self.kernels):
            self.values.add_(1)


def device_time_ns(step: Step, iterations: int) -> int:
    clock = CUDA("cuda").device_clock()
    for hold_ns in TRIES_NS:
        if (time_ns := clock.read(step, iterations, hold_ns=hold_ns)) is not None:
            return time_ns
    pytest.fail("enqueuing took longer than the stream was held back")


@in_child
def test_device_time_is_that_of_the_kernels() -> None:
    assert device_time_ns(Step(3), 10) == pytest.approx(30 * KERNEL_NS, abs=500)


@in_child
def test_an_injected_kernel_is_seen_by_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after = Step(3), Step(4)
    assert device_time_ns(after, 10) - device_time_ns(before, 10) == pytest.approx(
        10 * KERNEL_NS, abs=500
    )
    launch_ns = 1_000_000  # so much that what Python takes is small against it
    monkeypatch.setenv("SIMULATED_CUDA_LAUNCH_NS", str(launch_ns))
    clock = CUDA("cuda").host_clock()
    launched = stand_in.launches()
    assert clock.read(before, 10) >= 30 * launch_ns
    assert clock.read(after, 10) >= 40 * launch_ns
    assert stand_in.launches() - launched == 70


@in_child
def test_a_step_that_waits_for_the_device_has_no_device_time() -> None:
    step, clock = Step(1), CUDA("cuda").device_clock()

    def waiting() -> None:
        step()
        step.values.sum().item()

    assert clock.read(waiting, 1, hold_ns=TRIES_NS[0]) is None


@in_child
def test_host_time_does_not_wait_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    step, clock = Step(1), CUDA("cuda").host_clock()
    clock.read(step, 1)
    device_ns = 20_000_000_000
    monkeypatch.setenv("SIMULATED_CUDA_KERNEL_NS", str(device_ns))
    clock = type(clock)(lambda: None)  # the device is not drained: it would take that long
    assert clock.read(step, 1) < device_ns
