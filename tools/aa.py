"""Repeat one quick block and count how often its A/A control's interval holds 1.

``global_off`` and ``no_grad`` set the same flag, so their true ratio is 1, and a 95% interval
should hold it in about 19 of 20 blocks.

    python tools/aa.py --model mlp_tiny --batch-size 1 --blocks 20
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import gradbench


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mlp_tiny", choices=gradbench.MODELS)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--workload", default="inference", choices=gradbench.WORKLOADS)
    parser.add_argument("--budget", type=float, default=gradbench.PRESETS["quick"].plan.budget_s)
    parser.add_argument("--blocks", type=int, default=20)
    given = parser.parse_args()

    matrix = gradbench.Matrix(
        models=[given.model], workloads=[given.workload], batch_sizes=[given.batch_size]
    )
    print(f"{given.workload} {given.model} b{given.batch_size}, {given.budget:g} s a block")
    held = 0
    with TemporaryDirectory() as folder:
        for block in range(given.blocks):
            plan = gradbench.Plan(budget_s=given.budget, seed=block)
            records = gradbench.run(matrix, plan=plan, meters=["step_time"])
            run = gradbench.Store(Path(folder)).save(records)
            table = gradbench.changes(run, reference="no_grad")
            control = table[table.grad_mode == "global_off"].iloc[0]
            holds = control.low <= 1 <= control.high
            held += holds
            print(
                f"{block + 1:3}  {control.ratio:.4f} [{control.low:.4f}, {control.high:.4f}]"
                f"  {control.rounds:4} rounds  load {psutil.getloadavg()[0]:.2f}"
                f"  {'' if holds else 'excludes 1'}",
                flush=True,
            )
    print(f"the interval holds 1 in {held} of {given.blocks} blocks")


if __name__ == "__main__":
    main()
