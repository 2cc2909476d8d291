"""Print as JSON where a gradbench shows an axis ``backend``; run with a copy that has the row."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
from builders import environment, measured_block, run, skipped

from gradbench.analysis import dataframes
from gradbench.cli.request import Request
from gradbench.errors import GradbenchError
from gradbench.experiment import toml_config
from gradbench.experiment.matrix import Cell, Matrix
from gradbench.exports.formats import FORMATS, export
from gradbench.history import figures, parquet_write
from gradbench.report import render
from gradbench.store.jsonl import load

FILE = """
[[matrix]]
models = ["m"]
grad_modes = ["no_grad"]
backends = [{}]
"""


def main(folder: Path, reference: Path) -> None:
    plain = Cell(model="m", workload="inference", grad_mode="no_grad")
    other = replace(plain, backend="aot")
    good, bad = folder / "good.toml", folder / "bad.toml"
    good.write_text(FILE.format('"eager", "aot"'), "utf-8")
    bad.write_text(FILE.format('"aott"'), "utf-8")
    failed = skipped(other, cause="failed", reason="x")
    first, here, *rest = run([*measured_block(), *measured_block(backend="aot"), failed]).records
    here = environment(git_commit="1" * 40, git_date="2026-01-02T03:04:05+00:00", git_dirty=False)
    both = replace(run([]), records=(first, here, *rest))
    parquet_write.pack([both], str(folder / "pack"), rounds=False)
    options = {option.name: option.annotation for option in Request.parameters()}
    chosen = toml_config.choose(preset="tiny", selections={"backend": ["aot"]})
    answer = {
        "cell": [plain.backend, str(plain), str(other)],
        "refused": refusal(lambda: replace(plain, backend="aott")),
        "matrix": [c.backend for c in Matrix(models=["m"], backends=["eager", "aot"])][::4],
        "toml": [c.backend for c in toml_config.read(good)],
        "toml refused": refusal(lambda: toml_config.read(bad)).replace(str(bad), "FILE"),
        "option": options["backend"].__metadata__[0].help,
        "chosen": sorted({c.backend for c in chosen.cells}),
        "page": render(both),
        "page without": render(run(measured_block())),
        "frame": sorted(dataframes.summary(both)["backend"].unique()),
        "pack": sorted(pd.read_parquet(folder / "pack")["backend"].astype(str).unique()),
        "exports": {name: "aot" in str(export(name, [both]).files) for name in FORMATS},
        "key": json.loads(figures.key(other)),
    }
    old = load(reference).header.cells
    answer |= {"old keys": list(map(figures.key, old)), "old names": list(map(str, old))}
    sys.stdout.write(json.dumps(answer))


def refusal(make: Callable[[], object]) -> str:
    try:
        make()
    except GradbenchError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
