"""What a block on Ray costs beyond its phases, and whether a time read there is that read here.

    python tools/cluster_cost.py [--blocks 8] [--turns 6] [--budget 1]

Runs the same blocks here, on a Ray that it starts on this machine, and here again, in turns. Prints
the harness's seconds a block of both, each run's first block apart (a process loads meanwhile), and
the ratios of a cell's time on Ray to its time here, beside those of two runs here. Takes about
TURNS x 3 x (BLOCKS x (BUDGET + 1) + 5) seconds.
"""

import argparse
import statistics
import time
from dataclasses import dataclass, field

from gradbench.cluster.on_ray import OnRay
from gradbench.cluster.ray_fleet import RayFleet
from gradbench.experiment.matrix import Block, Cell, Matrix, by_block
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.runner.block_runner import BlockRunner, OneAfterAnother, Progress
from gradbench.workloads.models import MODELS

METERS = ("step_time",)
LOW = 0.1  # the quantile of a run's rounds that the gate compares, too

Times = dict[Cell, float]


@dataclass
class Costs:
    """Seconds that blocks took beyond their phases."""

    first: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{statistics.median(self.warm):.3f} s a block at the median of {len(self.warm)} warm "
            f"ones, {max(self.warm):.3f} s at most; {statistics.median(self.first):.2f} s the first"
        )


def main() -> None:
    options = _options()
    plan = Plan(budget_s=options.budget)
    sizes = [2**power for power in range(options.blocks)]
    matrix = Matrix(models=["mlp_tiny"], grad_modes=["no_grad"], batch_sizes=sizes)
    blocks = by_block(matrix)
    here, there = Costs(), Costs()
    local: list[float] = []
    across: list[float] = []
    with RayFleet(None) as fleet:
        for turn in range(options.turns):
            runs = []
            for costs in (here, there, here):
                runner: BlockRunner = (
                    OnRay(fleet, plan=plan, models=MODELS, meters=METERS)
                    if costs is there
                    else OneAfterAnother(plan=plan, meters=METERS)
                )
                with runner:
                    runs.append(_measured(blocks, runner, costs))
            across += [runs[1][cell] / runs[0][cell] for cell in runs[0]]
            local += [runs[2][cell] / runs[0][cell] for cell in runs[0]]
            print(f"turn {turn + 1} of {options.turns}", flush=True)
    print(f"harness here:   {here}\nharness on Ray: {there}")
    print(f"here over here: {_spread(local)}\nRay over here:  {_spread(across)}")


def _measured(blocks: dict[Block, list[Cell]], runner: BlockRunner, costs: Costs) -> Times:
    """Measure the blocks, a cell each; return its time by cell, and note what each block cost."""
    begun_s: dict[Block, float] = {}

    def progress(event: Progress) -> None:
        begun_s.setdefault(event.block, time.perf_counter())

    times: Times = {}
    phases_s = 0.0
    for record in runner.measure(blocks, progress=progress):
        if not isinstance(record, Measurement):
            continue
        spent_s = time.perf_counter() - begun_s[record.cell.block]
        in_phases_s = sum(s for phase, s in runner.ended().seconds.items() if phase != "harness")
        cost_s = spent_s - (in_phases_s - phases_s)
        (costs.warm if times else costs.first).append(cost_s)
        phases_s = in_phases_s
        rounds = sorted(record.per_step())
        times[record.cell] = rounds[int(LOW * len(rounds))]
    return times


def _spread(ratios: list[float]) -> str:
    off = sorted(abs(ratio - 1) for ratio in ratios)
    return (
        f"median {statistics.median(ratios):.4f} of {len(ratios)} cells, nine in ten within "
        f"{off[int(0.9 * (len(off) - 1))]:.2%} of 1"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--budget", type=float, default=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
