"""Print how much longer a step takes where a model's state is put back before each visit.

Two arms are one and the same but for that, and take turns in each round, as in a run: the state is
put back outside the timed window, and the ratio says whether it shows inside. 1 is expected, within
the noise floor. Needs a machine with nothing else to do.
"""

import argparse
import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from gradbench import devices
from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.runner.attempts import settle
from gradbench.runner.interleave import Arm, Interleaving, warm_up
from gradbench.runner.meters import StepTime
from gradbench.runner.visits import Start, VisitedArm, start
from gradbench.stats.estimates import MIN_DETECTABLE_EFFECT, Estimate, paired_ratio
from gradbench.workloads.models import MODELS, Model
from gradbench.workloads.steps import Step

SMALL: dict[str, Callable[[], nn.Module]] = {
    "no_parameters": nn.ReLU,
    "batch_norm": lambda: nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 4)),
    "one_layer": lambda: nn.Linear(16, 2),
}
"""Ordinary modules that people have: their steps are so short that any cost would show."""

BUILT_IN = ("mlp_tiny", "mlp_deep", "mlp_wide", "cnn_small", "resnet18_32")


@dataclass(frozen=True, slots=True)
class WithoutRestoring:
    """An arm whose visits begin with whatever the last one left."""

    visited: VisitedArm

    @property
    def step(self) -> Step:
        return self.visited.step

    def held(self) -> AbstractContextManager[object]:
        return self.visited.arm.held()


def ratio(name: str, model: Model, *, workload: str, budget_s: float) -> Estimate:
    """Return the time of a step with the state put back over that without."""
    mode = "no_grad" if workload == "inference" else "global_on"
    cell = Cell(model=name, workload=workload, grad_mode=mode, batch_size=8)
    plan = Plan(budget_s=budget_s, precision_short=0.001, precision_long=0.001)
    device, rng = devices.find("cpu"), random.Random(0)
    settle(cell)
    begun = start(cell, model, device, plan)
    assert isinstance(begun, Start), begun
    visited = begun.first_steps(cell)
    assert isinstance(visited, VisitedArm), visited
    arms: list[Arm] = [visited, WithoutRestoring(visited)]
    clock = StepTime.of(device)
    rounds = Interleaving(
        arms, clock, plan=plan, rng=rng, warmth=warm_up(arms, clock, plan=plan, rng=rng)
    )
    for _ in rounds:
        pass
    restored, left = (np.asarray(ns, dtype=np.float64) for ns in rounds.so_far().batch_ns)
    return paired_ratio(restored, left)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds a row")
    parser.add_argument("--model", action="append", help="only these")
    asked = parser.parse_args()
    models = {
        **{name: Model(build, lambda size: torch.randn(size, 16)) for name, build in SMALL.items()},
        **{name: MODELS[name] for name in BUILT_IN},
    }
    print(f"with the state put back / without; noise floor ±{MIN_DETECTABLE_EFFECT:.1%} at least")
    began = time.monotonic()
    for name, model in models.items():
        if asked.model and name not in asked.model:
            continue
        for workload in ("inference", "training"):
            if workload == "training" and not list(model.build().parameters()):
                continue
            found = ratio(name, model, workload=workload, budget_s=asked.budget)
            print(
                f"{name:14} {workload:10} {found.point:.4f} [{found.low:.4f}, {found.high:.4f}]"
                f"  {found.rounds} rounds",
                flush=True,
            )
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
