"""A small run with every kind of record, made up, and the names of an attacker's in its place."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.experiment.plan import PROTOCOL
from gradbench.records.measurements import (
    PARTS,
    Breakdown,
    Ended,
    Environment,
    Measurement,
    Record,
    Skipped,
    Started,
)
from gradbench.store.record_rows import row_of

STEP_NS = {"global_on": 2000, "global_off": 1500, "no_grad": 1500, "inference_mode": 1000}
METERS = ("step_time", "peak_transient", "peak_rss", "breakdown")


def records(*, text: str = "mlp_tiny", factor: float = 1.0, commit: int = 1) -> list[Record]:
    """Return a run's records; ``text`` stands wherever a file may hold words of its own."""
    cells = [Cell(model=text, workload="inference", grad_mode=mode) for mode in GRAD_MODES]
    refused = Cell(model=text, workload="training", grad_mode="no_grad")
    return [
        _header([*cells, refused], text=text, commit=commit),
        _environment(text=text, commit=commit),
        *(outcome for cell in cells for outcome in _outcomes(cell, text=text, factor=factor)),
        *(
            Skipped(cell=refused, meter=meter, cause="failed", reason=f"{text}\n{text}")
            for meter in METERS
        ),
        Ended(seconds={"timing": 3.0, text or "rest": 1.0}, load_after=0.5),
    ]


def _header(cells: Sequence[Cell], *, text: str, commit: int) -> Started:
    return Started(
        protocol=PROTOCOL,
        started_at=f"2026-01-{commit:02}T03:04:05+00:00",
        command=("gradbench", "run", "--model", text),
        cells=tuple(cells),
        meters=METERS,
        plan={"budget_s": 1.0, "seed": 0},
        places={str(cells[0]): f"{text}:3"},
    )


def _environment(*, text: str, commit: int) -> Environment:
    return Environment(
        facts={
            "protocol": PROTOCOL,
            "torch": "2.13.0+cpu",
            "python": "3.11.7",
            "cpu": text,
            "cpu_capability": "AVX2",
            "host": "host",
            "cores": 2,
            "load_before": 9.5,
            "git_commit": f"{commit:040x}",
            "git_dirty": False,
            f"not guaranteed: {text}": text,
            f"{text} gpu": text,
        }
    )


def _outcomes(cell: Cell, *, text: str, factor: float) -> list[Record]:
    """Return a number of each kind, and a reason in the place of one."""
    base, parts = round(STEP_NS[cell.grad_mode] * factor), dict.fromkeys(PARTS, 64)
    return [
        Measurement(
            cell=cell,
            meter="step_time",
            unit="ns",
            values=tuple(base * 10 + number for number in range(12)),
            iterations=10,
            exact=False,
            notes={"load": 0.1, "bound": f"host: {text}", "model_set": text},
        ),
        Measurement(
            cell=cell,
            meter="peak_transient",
            unit="bytes",
            values=(round(4096 * factor),),
            iterations=1,
            exact=True,
        ),
        Skipped(cell=cell, meter="peak_rss", cause="unreadable", reason=text),
        Breakdown(
            cell=cell,
            parts=parts,
            first_parts=parts,
            timeline=dict.fromkeys(PARTS, (0, 64, 32)),
            phases=("prepare", "forward", "backward"),
            modules={text: 64},
        ),
    ]


def rows(**how: Any) -> list[dict[str, Any]]:
    """Return the same as rows of a file."""
    return [json.loads(json.dumps(row_of(record))) for record in records(**how)]


def seal(path: Path, lines: Sequence[dict[str, Any] | bytes]) -> Path:
    """Write rows, or lines as they are, with a seal that fits them."""
    body = b"".join(
        (line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines
    )
    digest = hashlib.sha256(body).hexdigest()
    last = {"kind": "sealed", "records": body.count(b"\n"), "sha256": digest}
    path.write_bytes(body + json.dumps(last).encode() + b"\n")
    return path
