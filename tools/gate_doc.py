"""Write how good `gradbench compare` and `gate` are, from what the tools named here saved.

    python tools/gate_doc.py spread.json quiet.json whole.json exact.json > docs/gate-quality.md

``spread.json`` is of tools/process_spread.py, the others are of tools/gate_quality.py.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gate_quality as quality
import gate_subjects as subjects
import numpy as np
import process_spread
from gate_quality import INJECTED, Tables

from gradbench.selfcheck.checks import HOSTILE_MIB
from gradbench.stats import table_rule

TEXT = Path(__file__).with_name("gate_doc.md")
CHANGED = ("worse", "better", "slower", "faster")
"""Words of a verdict that calls a cell slower or faster."""
SLOWER = ("worse", "slower")
NONE = "Not recorded for this page: the scripts were not run."

Asked = Mapping[str, Mapping[float, Tables]]
Record = Mapping[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--trials", type=int, default=1000, help="tables drawn of each slowdown")
    given = parser.parse_args()
    records = [quality.load(path) for path in given.files]
    recorded = [one for one in records if "replicates" in one]
    whole = [one for one in records if "executed" in one]
    sys.stdout.write(
        TEXT.read_text("utf-8").format(
            where=records[0]["where"],
            mib=HOSTILE_MIB,
            models=len(subjects.UNSEEN),
            trials=f"{given.trials:,}",
            first=table_rule.FIRST,
            alpha=f"{table_rule.ALPHA:.0%}",
            spread="\n\n".join(
                "\n".join(process_spread.tables(one)) for one in records if "ways" in one
            ),
            tables="\n\n".join("\n".join(drawn(one, given.trials)) for one in recorded),
            whole="\n".join(counted(whole)) if whole else NONE,
            targets="\n".join(judged(whole)) or f"| {NONE} | | | |",
            exact="\n".join(exact([one for one in records if "exact" in one])) or NONE,
        )
    )


def drawn(record: Record, trials: int) -> Iterator[str]:
    """Yield a table of what each rule says of tables drawn from a record."""
    yield f"**{quality.how(record).capitalize()}** (load {record['load']} over 15 minutes):\n"
    yield "| | tables with a false alarm | inconclusive |" + "".join(
        f" +{slowdown:.0%} found |" for slowdown in INJECTED
    )
    yield "| --- | ---: | ---: |" + " ---: |" * len(INJECTED)
    for name, rule in quality.rules().items():
        tables = quality.asked(rule, quality.pools(record), trials)
        found = " | ".join(
            f"{quality.share(tables[slowdown], quality.found):.1%} "
            f"({quality.share(tables[slowdown], quality.inconclusive):.1%})"
            for slowdown in INJECTED
        )
        alarms = quality.tables_with_changes(tables[0.0])
        unsure = quality.share(tables[0.0], quality.inconclusive)
        yield f"| {name} | {alarms:.1%} | {unsure:.1%} | {found} |"


def counted(records: Sequence[Record]) -> Iterator[str]:
    """Yield what whole comparisons came to."""
    words = ("worse", "slower", "same", "inconclusive", "faster", "better")
    yield "| beside it | candidate | tables | " + " | ".join(words) + " |"
    yield "| --- | --- | ---: |" + " ---: |" * len(words)
    for one in records:
        for slowdown, tables in one["executed"].items():
            every = [word for table in tables for word in table]
            counts = " | ".join(str(every.count(word)) for word in words)
            name = f"+{float(slowdown):.0%}" if float(slowdown) else "equal"
            yield f"| {quality.beside(one)} | {name} | {len(tables)} | {counts} |"
    yield ""
    for one in records:
        low, high = min(one["seconds"]), max(one["seconds"])
        yield (
            f"{len(one['seconds'])} comparisons of {one['cells']} cells, {quality.beside(one)}, "
            f"took {low:.0f} to {high:.0f} s each."
        )


def judged(records: Sequence[Record]) -> Iterator[str]:
    """Yield the targets of whole comparisons; what reads inconclusive counts as not found."""
    for one in records:
        quiet, where = one["beside"] == "nothing", quality.beside(one)
        if "0.0" in one["executed"]:
            tables = one["executed"]["0.0"]
            alarms = sum(any(word in CHANGED for word in table) for table in tables)
            end = quality.at_most(alarms, len(tables))
            yield target(f"tables with a false alarm, {where}", alarms / len(tables), most=0.01)
            name = f"the same, upper end of the 95% interval of {len(tables)} tables"
            yield target(name, end, most=0.03)
            unsure = share(tables, ("inconclusive",))
            yield target(f"inconclusive when equal, {where}", unsure, most=0.02 if quiet else 0.10)
        least = {"0.01": 0.80, "0.02": 0.95} if quiet else {"0.02": 0.80}
        for slowdown, wanted in least.items():
            if slowdown in one["executed"]:
                found = share(one["executed"][slowdown], SLOWER)
                yield target(f"+{float(slowdown):.0%} found, {where}", found, least=wanted)
        width = float(np.median(one["widths"]))
        if quiet:
            yield target(f"half-width of the change, median, {where}", width, most=0.005)


def share(tables: Sequence[Sequence[str]], wanted: Sequence[str]) -> float:
    every = [word for table in tables for word in table]
    return sum(word in wanted for word in every) / len(every)


def target(name: str, value: float, *, least: float = 0.0, most: float = 1.0) -> str:
    asked = f"≥ {least:.0%}" if least else f"≤ {most:.1%}"
    met = "met" if least <= value <= most else "missed"
    return f"| {name} | {asked} | {value:.2%} | {met} |"


def exact(records: Sequence[Record]) -> Iterator[str]:
    for one in records:
        for name, count in one["exact"].items():
            yield (
                f"- A small model {name}: {count} of {one['runs']} runs gated as a regression "
                "(`tools/gate_quality.py --exact`)."
            )


if __name__ == "__main__":
    main()
