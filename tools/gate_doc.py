"""Write how good `gradbench compare` and `gate` are, from what tools/gate_quality.py saved.

python tools/gate_doc.py quiet.json noisy.json whole.json exact.json > docs/gate-quality.md
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gate_quality as quality
import numpy as np
from gate_quality import INJECTED

from gradbench.analysis import format_units
from gradbench.selfcheck.checks import HOSTILE_MIB
from gradbench.stats import pair_rule
from gradbench.stats.verdicts import Verdict

TEXT = Path(__file__).with_name("gate_doc.md")


Asked = Mapping[str, Mapping[float, Mapping[str, Sequence[Verdict]]]]
HEAD = (
    "| | step | pairs' sd | false alarms | inconclusive |"
    + "".join(f" +{slowdown:.0%} found |" for slowdown in INJECTED)
    + "\n| --- | ---: | ---: | ---: | ---: |"
    + " ---: |" * len(INJECTED)
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--trials", type=int, default=2000, help="draws a cell and slowdown")
    given = parser.parse_args()
    records = [quality.load(path) for path in given.files]
    recorded = [one for one in records if "pairs" in one]
    asked = [
        {
            name: quality.asked(rule, quality.pools(one), given.trials)
            for name, rule in quality.rules().items()
        }
        for one in recorded
    ]
    sys.stdout.write(
        TEXT.read_text("utf-8").format(
            where=records[0]["where"],
            mib=HOSTILE_MIB,
            trials=f"{given.trials:,}",
            pairs=pair_rule.PAIRS,
            tables="\n\n".join(
                "\n".join(table(one, verdicts))
                for one, verdicts in zip(recorded, asked, strict=True)
            ),
            targets="\n".join(judged(recorded, asked)),
            whole="\n".join(whole([one for one in records if "executed" in one])),
            exact="\n".join(exact([one for one in records if "exact" in one])),
        )
    )


def table(record: Mapping[str, Any], asked: Asked) -> Iterator[str]:
    yield f"**{quality.how(record).capitalize()}** (load {record['load']} over 15 minutes):\n"
    yield HEAD
    equal = quality.pools(record)[0.0]
    for number, (name, verdicts) in enumerate(asked.items()):
        yield row([name, "", ""], {s: quality.pooled(of) for s, of in verdicts.items()})
        for cell, pairs in equal.items() if number == 0 else ():
            spread = np.std([pair.log_ratio for pair in pairs], ddof=1)
            step = format_units.duration(np.median([pair.typical_ns[0] for pair in pairs]))
            first = [f"- {cell}", step, f"{spread:.1%}"]
            yield row(first, {s: of[cell] for s, of in verdicts.items()})


def row(first: Sequence[str], verdicts: Mapping[float, Sequence[Verdict]]) -> str:
    false, unsure = (
        quality.share(verdicts[0.0], verdict) for verdict in (Verdict.WORSE, Verdict.INCONCLUSIVE)
    )
    cells = [*first, f"{false:.2%}", f"{unsure:.1%}"]
    for slowdown in INJECTED:
        detected, unsure = (
            quality.share(verdicts[slowdown], v) for v in (Verdict.WORSE, Verdict.INCONCLUSIVE)
        )
        cells.append(f"{detected:.1%} ({unsure:.1%})")
    return "| " + " | ".join(cells) + " |"


def judged(recorded: Sequence[Mapping[str, Any]], asked: Sequence[Asked]) -> Iterator[str]:
    """Yield a row for each target; a cell that reads inconclusive counts as not found."""
    for record, verdicts in zip(recorded, asked, strict=True):
        rule = next(iter(verdicts.values()))
        beside = "beside a neighbour" if record["neighbour"] else "without a neighbour"
        false = quality.share(quality.pooled(rule[0.0]), Verdict.WORSE)
        yield target(f"false alarms a cell, {beside}", false, most=0.001)
        least = (
            {0.10: 0.98, 0.05: 0.85}
            if record["neighbour"]
            else {0.10: 0.98, 0.05: 0.97, 0.03: 0.90}
        )
        for slowdown, wanted in least.items():
            caught = quality.share(quality.pooled(rule[slowdown]), Verdict.WORSE)
            yield target(f"+{slowdown:.0%} found, {beside}", caught, least=wanted)


def target(name: str, value: float, *, least: float = 0.0, most: float = 1.0) -> str:
    asked = f"≥ {least:.0%}" if least else f"≤ {most:.1%}"
    met = "met" if least <= value <= most else "missed"
    return f"| {name} | {asked} | {value:.2%} | {met} |"


def whole(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| beside it | candidate | worse | better | same | inconclusive |"
    yield "| --- | --- | ---: | ---: | ---: | ---: |"
    for one in records:
        beside = "a neighbour" if one["neighbour"] else "nothing"
        for slowdown, counts in one["executed"].items():
            name = f"+{float(slowdown):.0%}" if float(slowdown) else "equal"
            order = (Verdict.WORSE, Verdict.BETTER, Verdict.SAME, Verdict.INCONCLUSIVE)
            yield f"| {beside} | {name} | " + " | ".join(str(counts[str(v)]) for v in order) + " |"
    yield ""
    for one in records:
        beside = "beside a neighbour" if one["neighbour"] else "with nothing beside them"
        low, high = min(one["seconds"]), max(one["seconds"])
        met = "met" if high < 90 else "missed"
        yield (
            f"{len(one['seconds'])} comparisons of {one['cells']} cells {beside} took {low:.0f} to "
            f"{high:.0f} s each, confirmation included (asked: under 90 s; {met})."
        )


def exact(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for one in records:
        for name, count in one["exact"].items():
            yield (
                f"- A small model {name}: {count} of {one['runs']} runs gated as a regression "
                "(`tools/gate_quality.py --exact`)."
            )


if __name__ == "__main__":
    main()
