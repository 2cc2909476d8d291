"""How far equal trees differ from process to process: in one process, and in pairs of processes.

Two equal trees are compared over and over, in three ways: both in one process with the weights
shared, the same with weights of their own, and in pairs of processes. For each way and cell stand
the standard deviation of the ratio between replicates, the half-width within one, the half-width
that five leave, and the seconds that a replicate takes.

    python tools/process_spread.py --replicates 20 --save FILE     # goes on from what FILE holds
    python tools/process_spread.py --show FILE                     # the tables, as Markdown
"""

import argparse
import itertools
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import gate_quality as quality
import gate_records as records
import numpy as np
from gate_records import Line, Sitting

from gradbench.analysis import format_units
from gradbench.comparison.one_process import in_turns
from gradbench.comparison.replicate_effort import Replication
from gradbench.stats import estimates, table_rule
from gradbench.stats.replicate import Replicate

WAYS: Mapping[str, Replication] = {
    quality.TOGETHER: Replication(),
    "one process, weights apart": Replication(share=False),
    quality.APART: Replication(one_process=False),
}
LENGTHS = (1, 2, 4, 8, 16)
DRAWS = 200
"""Sets of five replicates that are drawn to see what five leave open."""
OURS = {"kind": "replicate", "study": "spread"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=20, help="of each way")
    parser.add_argument("--show", type=Path, help="a record: print its tables")
    quality.common(parser)
    given = parser.parse_args()
    if given.show:
        lines = [one for one in records.read([given.show]) if OURS.items() <= one.items()]
        print("\n".join(tables(lines)))
    else:
        record(given)


def record(given: argparse.Namespace) -> None:
    """Take one replicate of each way in turn, so that all see the same machine."""
    there = {way: len(quality.of_this_kind(given, way=way, **OURS)) for way in WAYS}
    wanted = [
        (way, number) for number in range(given.replicates) for way in WAYS if number >= there[way]
    ]
    sitting = Sitting(given.minutes, len(wanted))
    with tempfile.TemporaryDirectory() as folder, quality.neighbour(given):
        versions = quality.sides(Path(folder))
        replicators = {
            way: quality.replicator(given, versions, WAYS[way], seed=number)
            for way, number in dict(reversed(wanted)).items()
        }
        for way, number in wanted:
            if not sitting.allows():
                return
            seconds = quality.keep_replicate(given, replicators[way], slowdown=0.0, way=way, **OURS)
            sitting.done(f"{way}, replicate {number + 1}", seconds=seconds)


def tables(lines: Sequence[Line]) -> Iterator[str]:
    """Yield lines of one kind of surroundings as Markdown tables."""
    ways = by_way(lines)
    yield "| way | cell | step | replicates | sd between | within | five leave |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for way, of_cells in ways.items():
        for cell, replicates in of_cells.items():
            yield row(way, cell, replicates)
    yield ""
    yield "| way | median sd between | largest | median of what five leave | s a replicate |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for way, of_cells in ways.items():
        spreads = [spread(replicates) for replicates in of_cells.values()]
        left = np.median([five_leave(replicates) for replicates in of_cells.values()])
        took = np.median([line["seconds"] for line in lines if line["way"] == way])
        yield (
            f"| {way} | {np.median(spreads):.2%} | {max(spreads):.2%} | ±{left:.2%} | {took:.1f} |"
        )
    together = ways.get(quality.TOGETHER, {})
    if together:
        yield f"\n| {quality.TOGETHER}: rounds a turn | median sd between | largest |"
        yield "| ---: | ---: | ---: |"
    for length in LENGTHS if together else ():
        regrouped = [
            spread([in_turns_of(length, one) for one in some]) for some in together.values()
        ]
        yield f"| {length} | {np.median(regrouped):.2%} | {max(regrouped):.2%} |"
    apart = {cell: why for line in lines for cell, why in line["apart"].items()}
    for cell, why in apart.items():
        yield f"\n{cell} could not be in one process: {why}"


def by_way(lines: Sequence[Line]) -> dict[str, dict[str, list[Replicate]]]:
    """Return the replicates by way and cell."""
    found: dict[str, dict[str, list[Replicate]]] = {}
    for line in lines:
        for cell, times in sorted(line["times"].items()):
            found.setdefault(line["way"], {}).setdefault(cell, []).append(Replicate(*times))
    return found


def row(way: str, cell: str, replicates: Sequence[Replicate]) -> str:
    step = format_units.duration(float(np.median([one.typical_ns[0] for one in replicates])))
    within = np.median([half_width(one) for one in replicates])
    return (
        f"| {way} | {cell} | {step} | {len(replicates)} | {spread(replicates):.2%} "
        f"| ±{within:.2%} | ±{five_leave(replicates):.2%} |"
    )


def in_turns_of(length: int, one: Replicate) -> Replicate:
    """Return the replicate as if so many of its rounds had been a turn."""
    sides = (list(itertools.chain(*side)) for side in (one.base_ns, one.candidate_ns))
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
