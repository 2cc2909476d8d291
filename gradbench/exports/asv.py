"""airspeed velocity's results (version 2): one file a commit and machine, a benchmark a figure.

asv takes lower for better everywhere, so throughput stays at home; a figure that is a reason here
is null there, which asv draws as missing.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np

from ..analysis import dataframes
from ..errors import StoreError
from ..experiment.matrix import GRAD_MODES, Block
from ..records.run import Run
from ..stats import estimates
from ..stats.estimates import Estimate
from ..store.comparability import processor
from .numbers import (
    Exported,
    Figure,
    commit,
    devices,
    figures,
    json_text,
    machine_mark,
    slug,
    without_number,
)

COLUMNS: Final = (
    "result",
    "params",
    "version",
    "started_at",
    "duration",
    "stats_ci_99_a",
    "stats_ci_99_b",
    "stats_q_25",
    "stats_q_75",
    "stats_number",
    "stats_repeat",
)
TYPES: Final[Mapping[str, tuple[str, str, float]]] = {
    "ns": ("time", "seconds", 1e-9),
    "bytes": ("peakmemory", "bytes", 1),
    "uJ": ("track", "µJ", 1),
    "instructions": ("track", "instructions", 1),
    "ppt": ("track", "relative difference", 1e-12),
}
"""The record's unit -> asv's type and unit, and what one of ours is in it."""
GOAL: Final = 0.99
"""The confidence that asv's two interval columns are named after."""

Benchmarks = dict[str, list[Figure]]


def export(runs: Sequence[Run]) -> Exported:
    """Return ``benchmarks.json`` and, a folder a machine, ``machine.json`` and results a commit.

    Put them into asv's ``results_dir`` and run ``asv publish``. A benchmark is one figure of one
    block, its parameter the grad mode. Machines differ by what their times depend on, not
    by name alone. The date of a result is when it was measured. Raise `StoreError` for a run
    without a commit, without a number, or for two runs of one commit on one machine.
    """
    if not runs:
        raise StoreError("asv: there is no run to export")
    files: dict[str, str] = {}
    described: dict[str, dict[str, Any]] = {}
    left_out: list[str] = []
    for run in sorted(runs, key=lambda run: run.header.started_at):
        benchmarks = _benchmarks(run)
        for name, members in benchmarks.items():
            described[name] = _describe(name, members, run)  # the latest protocol is shown
        machine, sha = _machine(run), commit(run, "asv")
        path = f"{machine['machine']}/{sha[:8]}-{_environment(run)}.json"
        if path in files:
            raise StoreError(
                f"asv keeps one result a commit and machine: {run.name} is the second of "
                f"commit {sha[:8]} on {machine['machine']}; leave one out"
            )
        files[f"{machine['machine']}/machine.json"] = json_text(machine | {"version": 1})
        files[path] = json_text(_results(run, benchmarks, machine, sha))
        left_out += without_number(run)
    if not described:
        raise StoreError("asv: these runs hold no number: there is nothing to export")
    files["benchmarks.json"] = json_text({**described, "version": 2})
    return Exported(files, left_out)


def _benchmarks(run: Run) -> Benchmarks:
    benchmarks: Benchmarks = {}
    for figure in figures(run):
        benchmarks.setdefault(_name(figure.cell.block, figure.name), []).append(figure)
    return benchmarks


def _name(block: Block, figure: str) -> str:
    return f"{block.cell.workload}.{slug(block.setting)}.{figure}"


def _describe(name: str, members: Sequence[Figure], run: Run) -> dict[str, Any]:
    type_, unit, _ = TYPES[members[0].unit]
    return {
        "name": name,
        "pretty_name": f"{members[0].cell.block} {members[0].name}",
        "code": f"# gradbench, protocol {run.header.protocol}: {members[0].cell.block}",
        "param_names": ["grad_mode"],
        "params": [_modes()],
        "timeout": 0,
        "type": type_,
        "unit": unit,
        "version": _version(run),
    }


def _modes() -> list[str]:
    return [repr(mode) for mode in GRAD_MODES]


def _version(run: Run) -> str:
    """asv shows only results whose version is the benchmark's: protocols never meet."""
    return f"protocol-{run.header.protocol}"


def _results(
    run: Run, benchmarks: Benchmarks, machine: Mapping[str, Any], sha: str
) -> dict[str, object]:
    facts = run.environment.facts
    milliseconds = int(datetime.fromisoformat(run.header.started_at).timestamp() * 1000)
    python = ".".join(str(facts.get("python", "")).split(".")[:2])
    torch = str(facts.get("torch", ""))
    return {
        "version": 2,
        "commit_hash": sha,
        "env_name": _environment(run),
        "date": milliseconds,
        "params": {**machine, "python": python, "torch": torch},
        "python": python,
        "requirements": {"torch": torch},
        "env_vars": {},
        "result_columns": list(COLUMNS),
        "results": {
            name: _row(members, _version(run), milliseconds) for name, members in benchmarks.items()
        },
        "durations": {},
    }


def _row(members: Iterable[Figure], version: str, milliseconds: int) -> list[object]:
    by_mode = {figure.cell.grad_mode: figure for figure in members}
    ordered = [by_mode.get(mode) for mode in GRAD_MODES]
    columns = [_statistics(figure) for figure in ordered]
    return [
        [column.get("value") for column in columns],
        [_modes()],
        version,
        milliseconds,
        None,
        *(
            [column.get(key) for column in columns]
            for key in ("low", "high", "q25", "q75", "number", "repeat")
        ),
    ]


def _statistics(figure: Figure | None) -> dict[str, float]:
    """Return what asv keeps of a figure, in asv's unit; nothing for one that is not there."""
    if figure is None:
        return {}
    scale = TYPES[figure.unit][2]
    value = figure.estimate.point * scale
    if figure.estimate.exact:
        return {"value": value}
    steps = dataframes.per_step(figure.measurement) * scale
    interval = _interval(figure)
    iterations = figure.measurement.iterations
    number = iterations if isinstance(iterations, int) else round(float(np.mean(iterations)))
    return {
        "value": value,
        "low": interval.low * scale,
        "high": interval.high * scale,
        "q25": float(np.quantile(steps, 0.25)),
        "q75": float(np.quantile(steps, 0.75)),
        "number": number,
        "repeat": len(steps),
    }


def _interval(figure: Figure) -> Estimate:
    steps = dataframes.per_step(figure.measurement)
    if figure.name.startswith("latency_p"):
        q = int(figure.name.removeprefix("latency_p")) / 100
        return estimates.quantile(steps, q=q, confidence=GOAL)
    return estimates.median(steps, confidence=GOAL)


def _machine(run: Run) -> dict[str, str]:
    facts = run.environment.facts
    memory = facts.get("memory_bytes")
    processors = (processor(facts, device) for device in devices(run) if device != "cpu")
    gpus = dict.fromkeys(str(gpu) for gpu in processors if gpu is not None)
    return {
        "machine": f"{slug(str(facts.get('host', 'unknown')))}-{machine_mark(run)}",
        "os": str(facts.get("os", "")),
        "arch": str(facts.get("os", "")).partition("-with-")[0].rpartition("-")[2],
        "cpu": str(facts.get("cpu", "")),
        "num_cpu": str(facts.get("cores", "")),
        "ram": str(memory) if isinstance(memory, int) else "",
        "gpu": ", ".join(gpus),
    }


def _environment(run: Run) -> str:
    facts = run.environment.facts
    return slug(f"py{facts.get('python', '')}-torch{facts.get('torch', '')}")
