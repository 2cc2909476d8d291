"""Print how far the clocks of a CUDA device are from the truth, on the simulated CUDA runtime.

The device's truth is the time that the runtime gives to each kernel, the host's is what the step
itself read: PYTHONPATH=. VENV/bin/python tools/clock_accuracy.py
"""

import os
import statistics

KERNEL_NS = 40_000
os.environ["SIMULATED_CUDA_KERNEL_NS"] = str(KERNEL_NS)

import torch  # noqa: E402 # the runtime reads its settings as torch starts it

from gradbench.devices.cuda import CUDA  # noqa: E402 # brings torch
from gradbench.selfcheck.device_clocks import HostWork  # noqa: E402 # brings torch

KERNELS, STEPS, ROUNDS, DELAY_NS, HOLD_NS = 3, 10, 51, 200_000, 20_000_000


def main() -> None:
    cuda = CUDA("cuda")
    cuda.prepare()
    values = torch.zeros(8, device="cuda")

    def step() -> None:
        for _ in range(KERNELS):
            values.add_(1)

    step()
    on_device, on_host = cuda.device_clock(), cuda.host_clock()
    truth_ns = STEPS * KERNELS * KERNEL_NS
    device, host = [], []
    for _ in range(ROUNDS):
        if (read := on_device.read(step, STEPS, hold_ns=HOLD_NS)) is not None:
            device.append(read / truth_ns)
        work = HostWork(step, DELAY_NS)
        host.append(on_host.read(work, STEPS) / work.done_ns)
    load = os.getloadavg()[0]
    for name, ratios in (("device clock", device), ("host clock", host)):
        middle = statistics.median(ratios)
        print(
            f"{name}: {middle - 1:+.3%} off, {min(ratios) - 1:+.3%} to {max(ratios) - 1:+.3%} "
            f"in {len(ratios)} of {ROUNDS} readings; load {load:.1f}"
        )


if __name__ == "__main__":
    main()
