"""How far equal trees differ from process to process: in one process, and in pairs of processes.

Two equal trees are compared over and over, in three ways: both in one process with the weights
shared, the same with weights of their own, and in pairs of processes. For each way and cell stand
the standard deviation of the ratio between replicates, the half-width within one, the half-width
that five leave, and the seconds that a replicate takes.

    python tools/process_spread.py --replicates 20 --save spread.json
    python tools/process_spread.py --replay spread.json     # the tables again, as Markdown
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gate_quality as quality
import numpy as np

from gradbench.analysis import format_units
from gradbench.comparison.replication import Replication, Replicator, in_turns
from gradbench.stats import estimates, table_rule
from gradbench.stats.replicate import Replicate

WAYS: Mapping[str, Replication] = {
    "one process, weights shared": Replication(),
    "one process, weights apart": Replication(share=False),
    "pairs of processes": Replication(one_process=False),
}
LENGTHS = (1, 2, 4, 8, 16)
DRAWS = 2000
"""Sets of five replicates that are drawn to see what five leave open."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=20, help="of each way")
    quality.common(parser)
    parser.add_argument("--replay", type=Path)
    given = parser.parse_args()
    record = json.loads(given.replay.read_text("utf-8")) if given.replay else recorded(given)
    if given.save:
        given.save.write_text(json.dumps(record), "utf-8")
    print("\n".join(tables(record)))


def recorded(given: argparse.Namespace) -> dict[str, Any]:
    """Take one replicate of each way in turn, so that all see the same machine."""
    cells = quality.cells(given)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        tempfile.TemporaryDirectory() as folder,
        quality.neighbour(given),
    ):
        base, candidate = quality.sides(Path(folder))
        replicators = {
            way: Replicator(
                base, candidate, replication=how, sources=quality.sources(), seed=number
            )
            for number, (way, how) in enumerate(WAYS.items())
        }
        for replicator in replicators.values():
            replicator.examine(cells)
        for number in range(given.replicates):
            for way, replicator in replicators.items():
                start = time.monotonic()
                replicator.replicate(cells)
                seconds[way].append(time.monotonic() - start)
            print(f"replicate {number + 1} of {given.replicates}", file=sys.stderr)
        ways = {
            way: {
                str(cell): [(one.base_ns, one.candidate_ns) for one in replicates]
                for cell, replicates in replicator.results.replicates.items()
            }
            for way, replicator in replicators.items()
        }
        apart = {
            str(cell): why
            for way, replicator in replicators.items()
            if WAYS[way].one_process
            for cell, why in replicator.results.apart.items()
        }
    return quality.here(given, ways=ways, seconds=seconds, apart=apart)


def tables(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the record as Markdown tables."""
    yield f"**{quality.beside(record).capitalize()}** (load {record['load']} over 15 minutes):\n"
    yield "| way | cell | step | replicates | sd between | within | five leave |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for way, of_cells in record["ways"].items():
        rows = {cell: [Replicate(*one) for one in some] for cell, some in of_cells.items()}
        for cell, replicates in rows.items():
            yield row(way, cell, replicates)
    yield ""
    yield "| way | median sd between | largest | median of what five leave | s a replicate |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for way, of_cells in record["ways"].items():
        rows = {cell: [Replicate(*one) for one in some] for cell, some in of_cells.items()}
        spreads = [spread(replicates) for replicates in rows.values()]
        left = np.median([five_leave(replicates) for replicates in rows.values()])
        took = np.median(record["seconds"][way])
        yield (
            f"| {way} | {np.median(spreads):.2%} | {max(spreads):.2%} | ±{left:.2%} | {took:.1f} |"
        )
    yield "\n| one process, weights shared: rounds a turn | median sd between | largest |"
    yield "| ---: | ---: | ---: |"
    for length in LENGTHS:
        regrouped = [
            spread([in_turns_of(length, Replicate(*one)) for one in some])
            for some in record["ways"][next(iter(WAYS))].values()
        ]
        yield f"| {length} | {np.median(regrouped):.2%} | {max(regrouped):.2%} |"
    for cell, why in record["apart"].items():
        yield f"\n{cell} could not be in one process: {why}"


def row(way: str, cell: str, replicates: Sequence[Replicate]) -> str:
    step = format_units.duration(float(np.median([one.typical_ns[0] for one in replicates])))
    within = np.median([half_width(one) for one in replicates])
    return (
        f"| {way} | {cell} | {step} | {len(replicates)} | {spread(replicates):.2%} "
        f"| ±{within:.2%} | ±{five_leave(replicates):.2%} |"
    )


def in_turns_of(length: int, one: Replicate) -> Replicate:
    """Return the replicate as if so many of its rounds had been a turn."""
    sides = ([ns for turn in side for ns in turn] for side in (one.base_ns, one.candidate_ns))
    return Replicate(*(in_turns(side, length) for side in sides))


def spread(replicates: Sequence[Replicate]) -> float:
    """Return the standard deviation of the ratio between replicates."""
    return float(np.std([one.log_ratio for one in replicates], ddof=1))


def half_width(one: Replicate) -> float:
    """Return half of the 95% interval of a replicate's own median ratio."""
    turns = zip(one.base_ns, one.candidate_ns, strict=True)
    logs = np.array([np.log(min(candidate) / min(base)) for base, candidate in turns])
    found = estimates.median(logs)
    return (found.high - found.low) / 2


def five_leave(replicates: Sequence[Replicate]) -> float:
    """Return the median half-width of the change that five replicates leave."""
    rng, logs = random.Random(0), [one.log_ratio for one in replicates]
    count = min(table_rule.FIRST, len(logs))
    widths = [table_rule.change(rng.sample(logs, count)).half_width for _ in range(DRAWS)]
    return float(np.median(widths))


if __name__ == "__main__":
    main()
