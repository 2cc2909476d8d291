"""Print what it takes to put a model's state back between two visits, outside the timed window."""

import statistics
import time

import torch

from gradbench.workloads.models import MODELS
from gradbench.workloads.state import RandomNumbers, Snapshot


def cost_us(model: str, *, train: bool, repeats: int = 500) -> float:
    """Return the median time, in us, of putting back a model's state and random numbers."""
    torch.set_num_threads(1)
    module = MODELS[model].build().train(train)
    (x,) = MODELS[model].batch(2).args
    snapshot, numbers = Snapshot([module]), RandomNumbers([x]).used()
    module(x)
    snapshot.look()
    times_ns = []
    for _ in range(repeats):
        start_ns = time.perf_counter_ns()
        numbers.put_back()
        snapshot.put_back()
        times_ns.append(time.perf_counter_ns() - start_ns)
    return statistics.median(times_ns) / 1000


if __name__ == "__main__":
    for name in ("mlp_tiny", "mlp_deep", "mlp_wide", "cnn_small", "resnet18_32"):
        shown = [f"{cost_us(name, train=train):7.1f} us" for train in (False, True)]
        print(f"{name:12} eval {shown[0]}  train {shown[1]}")
