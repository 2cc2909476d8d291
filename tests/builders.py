"""Records and runs made by hand: small, and every number in them chosen."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import PROTOCOL
from gradbench.records.measurements import (
    PARTS,
    Breakdown,
    Ended,
    Environment,
    Measurement,
    Outcome,
    Record,
    Skipped,
    Started,
)
from gradbench.records.run import Run
from gradbench.store.jsonl import Writer

TORCH_SAYS = "element 0 of tensors does not require grad and does not have a grad_fn"


def cell(grad_mode: str = "global_on", **axes) -> Cell:
    return Cell(
        **{"model": "mlp_tiny", "workload": "inference", "grad_mode": grad_mode, "batch_size": 8}
        | axes
    )


def block(modes: Sequence[str] = GRAD_MODES, **axes) -> list[Cell]:
    return [cell(mode, **axes) for mode in modes]


def net_source(*, activation: str = "torch.tanh", before: str = "pass") -> str:
    """Return a module of a small model and its factory; each forward does ``before`` first."""
    return f"""
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
    def forward(self, x):
        {before}
        return self.last({activation}(self.first(x)))

def make():
    return Net()
"""


def quick_effort():
    """Return an effort of `compare` that ends soon; imported here, for it imports torch."""
    from gradbench.comparison.effort import Effort
    from gradbench.comparison.replicate_effort import Replication

    return Effort(
        processes=3,
        replication=Replication(
            turns=4,
            least_turns=3,
            slice_s=0.001,
            warm_up_s=0.0,
            limit_s=60,
            cell_s=0.01,
            least_rounds=4,
        ),
    )


def started(cells: Iterable[Cell], *, meters: Sequence[str] = ("step_time",), **fields) -> Started:
    return Started(
        **{
            "protocol": PROTOCOL,
            "started_at": "2026-01-02T03:04:05+00:00",
            "command": ("gradbench", "run"),
            "cells": tuple(cells),
            "meters": tuple(meters),
            "plan": {"budget_s": 1.0, "seed": 0},
        }
        | fields
    )


def environment(**facts) -> Environment:
    return Environment(facts={"torch": "2.13.0", "cores": 2, "turbo": False, "load": 0.25} | facts)


def timed(cell: Cell, values: Sequence[int], *, iterations: int = 1, **notes) -> Measurement:
    return Measurement(
        cell=cell,
        meter="step_time",
        unit="ns",
        values=tuple(values),
        iterations=iterations,
        exact=False,
        notes=notes,
    )


def counted(cell: Cell, size: int, *, meter: str = "peak_transient") -> Measurement:
    return Measurement(
        cell=cell, meter=meter, unit="bytes", values=(size,), iterations=1, exact=True
    )


def broken_down(cell: Cell, **parts: int) -> Breakdown:
    """Return a breakdown of a step that rises to these parts in ``forward`` and falls again."""
    peak = dict.fromkeys(PARTS, 0) | parts
    return Breakdown(
        cell=cell,
        parts=peak,
        first_parts=peak,
        timeline={part: (0, size, size // 2) for part, size in peak.items()},
        phases=("prepare", "forward", "backward"),
        modules={"0": parts.get("saved", 0)},
    )


def sequence(
    cell: Cell, *, tokens: int = 4, token: int = 10, saved: int = 0, left: int = 0
) -> Breakdown:
    """Return a breakdown of ``generate``: each token adds bytes to the cache, and saved ones."""
    phases = ["prepare", "prefill", *(f"token {number}" for number in range(2, tokens + 1))]
    phases.append(phases[-1])  # the end
    made = [0, *range(1, tokens + 1), 0]
    sizes = {
        "parameters": (1000,) * len(made),
        "cache": tuple(token * count for count in made),
        "saved": tuple(saved * count for count in made),
        "other": (*(5 * bool(count) for count in made[:-1]), left),
    }
    timeline = dict.fromkeys(PARTS, (0,) * len(made)) | sizes
    peak = {part: moments[-2] for part, moments in timeline.items()}
    return Breakdown(
        cell=cell,
        parts=peak,
        first_parts=peak,
        timeline=timeline,
        phases=tuple(phases),
        modules={},
    )


def skipped(
    cell: Cell,
    *,
    meter: str = "step_time",
    cause: str = "cannot_train",
    reason: str = TORCH_SAYS,
) -> Skipped:
    return Skipped(cell=cell, meter=meter, cause=cause, reason=reason)


def ended(**seconds: float) -> Ended:
    return Ended(seconds=seconds or {"timing": 3.0, "harness": 1.0}, load_after=0.5)


def run(outcomes: Iterable[Outcome], *, name: str = "20260102T030405Z-abcd", **fields) -> Run:
    """Return a sealed run of these outcomes; its design is just what they hold."""
    outcomes = tuple(outcomes)
    first = started(
        dict.fromkeys(o.cell for o in outcomes),
        meters=tuple(dict.fromkeys(o.meter for o in outcomes)),
    )
    return run_of([first, environment(), *outcomes, ended()], name=name, **fields)


def run_of(records: Iterable[Record], *, name: str = "20260102T030405Z-abcd", **fields) -> Run:
    return Run(**{"name": name, "records": tuple(records), "sealed": True} | fields)


def measured_block(
    modes: Sequence[str] = GRAD_MODES,
    *,
    step_ns: Mapping[str, int] | None = None,
    rounds: int = 12,
    iterations: int = 10,
    **axes,
) -> list[Outcome]:
    """Return a time and a memory outcome for each mode of one block.

    A round is slower than the one before by 1% in every mode alike, so ratios have no spread.
    """
    step_ns = {"global_on": 2000, "global_off": 1500, "no_grad": 1500, "inference_mode": 1000} | (
        dict(step_ns or {})
    )
    outcomes: list[Outcome] = []
    for member in block(modes, **axes):
        base = step_ns[member.grad_mode] * iterations
        values = [base * (100 + number) // 100 for number in range(rounds)]
        outcomes += [
            timed(member, values, iterations=iterations, load=0.1),
            counted(member, 4096 if member.grad_mode == "global_on" else 1024),
        ]
    return outcomes


def refused_block(reason: str = TORCH_SAYS, **axes) -> list[Outcome]:
    """Return a training block that no mode could run."""
    return [
        skipped(member, meter=meter, reason=reason)
        for member in block(**{"workload": "training"} | axes)
        for meter in ("step_time", "peak_transient")
    ]


def run_at(number: int, outcomes: Iterable[Outcome] | None = None, *, command=(), **facts) -> Run:
    """Return a sealed run of commit ``number``, started in the hour of that number."""
    outcomes = tuple(measured_block() if outcomes is None else outcomes)
    day, hour = divmod(number, 24)
    first = started(
        dict.fromkeys(o.cell for o in outcomes),
        meters=tuple(dict.fromkeys(o.meter for o in outcomes)),
        started_at=f"2026-{1 + day // 28:02}-{1 + day % 28:02}T{hour:02}:00:00+00:00",
        command=tuple(command) or ("gradbench", "run"),
    )
    known = {"git_commit": f"{number:040x}", "git_dirty": False, "host": "here", "protocol": 1}
    return run_of(
        [first, environment(**known | facts), *outcomes, ended()],
        name=f"20260101T{number:06}Z-aaaa",
    )


def write_run(run: Run, folder: Path) -> Path:
    """Write a run as a sealed file of its name; return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f"{run.name}.jsonl.part"
    with Writer(part, part.open("w", encoding="utf-8", newline="\n")) as writer:
        for record in run.records:
            writer.write(record)
        return writer.seal()


def as_rows(figures):
    """Return figures as sorted rows, numbers as they are and None for what is not there."""
    from gradbench.history.sqlite_index import COLUMNS  # brings pandas

    frame = figures.frame[[*COLUMNS]]
    rows = frame.astype(object).where(frame.notna(), None).assign(exact=frame["exact"].astype(bool))
    return sorted(map(repr, rows.to_numpy().tolist()))


MACHINE = {
    "protocol": 1,
    "torch": "2.13.0+cpu",
    "cpu_capability": "AVX2",
    "cpu": "some CPU",
    "host": "a",
    "cores": 2,
    "python": "3.11.7",
}


def run_on_a_machine(
    outcomes, *, name="20260102T030405Z-abcd", when="2026-01-02T03:04:05+00:00", **facts
):
    """Return a sealed run whose facts say where it was measured."""
    outcomes = tuple(outcomes)
    first = started(
        dict.fromkeys(o.cell for o in outcomes),
        meters=tuple(dict.fromkeys(o.meter for o in outcomes)),
        started_at=when,
    )
    return run_of([first, environment(**MACHINE | facts), *outcomes, ended()], name=name)


def run_on_machines(outcomes, *, name="20260102T030405Z-abcd", **facts):
    """Return a sealed run on several machines, given what was read on each and its own facts."""
    read = [replace(one, machine=host) for host, some in outcomes.items() for one in some]
    first = started(
        dict.fromkeys(o.cell for o in read), meters=tuple(dict.fromkeys(o.meter for o in read))
    )
    environments = [
        Environment(facts={**MACHINE, "host": host, **facts.get(host, {})}, machine=host)
        for host in outcomes
    ]
    return run_of([first, *environments, *read, ended()], name=name)
