"""Print as JSON what a gradbench shows that has all of CONTRIBUTING.md's recipes done to it."""

import json
import sys

from builders import measured_block, run as made, run_of

import gradbench
from gradbench.devices import available
from gradbench.experiment.matrix import GRAD_MODES
from gradbench.exports.formats import export
from gradbench.runner.passes import PASSES
from gradbench.semantics.claims import CLAIMS
from gradbench.semantics.examination import prove

MODES = ["no_grad", "context_off"]


def main() -> None:
    meters = ["peak_transient", "live_after"]
    axes = {"models": ["mine"], "workloads": ["evaluation"], "batch_sizes": [4]}
    matrix = gradbench.Matrix(**axes, grad_modes=MODES)
    found = run_of(gradbench.run(matrix, meters=meters))
    elsewhere = gradbench.Matrix(**axes, grad_modes=MODES, devices=["meta"])
    (claim,) = (claim for claim in CLAIMS if claim.id == "adds-up")
    answer = {
        "grad modes": GRAD_MODES,
        "cells": list(map(str, matrix)),
        "measured": {f"{o.cell.grad_mode} {o.meter}": o.values[0] for o in found.outcomes},
        "table": list(gradbench.summary(found)["meter"]),
        "page": gradbench.render(
            made(measured_block(MODES, step_ns={"no_grad": 1500, "context_off": 1600}))
        ),
        "passes": list(PASSES),
        "claim": prove(claim.proof).words,
        "devices": available(),
        "on meta": [
            o.values[0] if hasattr(o, "values") else o.reason
            for o in gradbench.run(elsewhere, meters=meters[:1])
            if hasattr(o, "meter")
        ],
        "export": export("names", [made(measured_block(["no_grad"]), name="a")]).files,
    }
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
