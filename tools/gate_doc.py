"""Write how good `gradbench compare` and `gate` are, from whatever has been recorded.

    python tools/gate_doc.py > docs/gate-quality.md           # of what is in tools/gate_figures
    python tools/gate_doc.py FILE... > docs/gate-quality.md   # of these files
    python tools/gate_doc.py --figure docs/gate-threshold.svg # verdicts around the threshold

Files are what tools/gate_quality.py and tools/process_spread.py save. A part that nothing is
recorded of says so, and each figure stands beside the commands that recorded it.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

import gate_quality as quality
import gate_records as records
import gate_subjects as subjects
import numpy as np
import process_spread
from gate_quality import INJECTED, Asked, Pool, Rule
from gate_records import Line
from scipy import stats

from gradbench.selfcheck.checks import HOSTILE_MIB
from gradbench.stats import table_rule
from gradbench.stats.verdicts import Verdict

TEXT = Path(__file__).with_name("gate_doc.md")
FIGURES = Path(__file__).with_name("gate_figures")
CHANGED = ("worse", "better", "slower", "faster")
"""Words of a verdict that calls a cell slower or faster."""
SLOWER = ("worse", "slower")
NONE = "Nothing is recorded yet."
AROUND = tuple(round(0.0025 * step, 4) for step in range(25))
"""Slowdowns at which the verdicts around the threshold are drawn."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", type=Path, nargs="*", default=sorted(FIGURES.glob("*.jsonl.gz")))
    parser.add_argument("--trials", type=int, default=300, help="tables drawn of each slowdown")
    parser.add_argument("--figure", type=Path, help="draw it there, instead of the text")
    given = parser.parse_args()
    lines = records.read(given.files)
    if given.figure:
        draw(verdicts_around(rule_lines(lines), given.trials), given.figure)
    else:
        sys.stdout.write(text(lines, given.trials))


def text(lines: Sequence[Line], trials: int) -> str:
    whole = of(lines, "comparison")
    return TEXT.read_text("utf-8").format(
        where="; ".join(dict.fromkeys(line["where"] for line in lines)) or "nowhere yet",
        mib=HOSTILE_MIB,
        models=len(subjects.UNSEEN),
        trials=f"{trials:,}",
        first=table_rule.FIRST,
        alpha=f"{table_rule.ALPHA:.0%}",
        threshold=f"{table_rule.THRESHOLD:.0%}",
        spread=parts(lines, "replicate", process_spread.tables, study="spread"),
        tables=parts(
            lines,
            "replicate",
            lambda some: drawn(quality.rules(), quality.pool(some), trials),
            study="rules",
        ),
        counts=parts(
            lines,
            "counts",
            lambda some: drawn(quality.rules_of_counts(), quality.pool_of_counts(some), trials),
        ),
        around="\n".join(around(rule_lines(lines), trials)),
        whole="\n".join(counted(whole)) if whole else NONE,
        targets="\n".join(judged(whole)) or f"| {NONE} | | | |",
        exact="\n".join(exact(of(lines, "exact"))) or NONE,
    )


def of(lines: Iterable[Line], kind: str, **fields: object) -> list[Line]:
    wanted = {"kind": kind, **fields}
    return [line for line in lines if wanted.items() <= line.items()]


def alike(lines: Iterable[Line], *names: str) -> Iterator[tuple[Line, list[Line]]]:
    """Yield lines in groups that agree in these fields, each with its first line."""

    def key(line: Line) -> tuple[str, ...]:
        return tuple(str(line[name]) for name in names)

    for _, group in groupby(sorted(lines, key=key), key):
        some = list(group)
        yield some[0], some


def parts(
    lines: Sequence[Line],
    kind: str,
    table: Callable[[Sequence[Line]], Iterable[str]],
    **fields: object,
) -> str:
    """Return the tables of what was recorded, one for each size of table and surroundings."""
    names = ("beside", "size", *(["way"] if fields.get("study") == "rules" else []))
    found = []
    for first, some in alike(of(lines, kind, **fields), *names):
        words = [f"**{quality.BESIDE[first['beside']].capitalize()}**, {first['size']} cells"]
        if "way" in names:
            words.append(f"{len(some)} replicates of {first['way']}")
        found.append("\n".join([", ".join(words) + f" ({made_by(some)}):\n", *table(some)]))
    return "\n\n".join(found) or NONE


def made_by(lines: Sequence[Line]) -> str:
    """Return which commands recorded lines, at what load."""
    commands = ", ".join(f"`{one}`" for one in dict.fromkeys(line["by"] for line in lines))
    loads = [line["load"] for line in lines]
    return f"{commands}; load {min(loads)} to {max(loads)}"


def drawn(rules: Mapping[str, Rule], pool: Pool, trials: int) -> Iterator[str]:
    """Yield a table of what each rule says of tables drawn from a pool."""
    slowdowns = [one for one in INJECTED if one in pool]
    yield "| | tables with a false alarm | inconclusive |" + "".join(
        f" +{slowdown:.0%} found |" for slowdown in slowdowns
    )
    yield "| --- | ---: | ---: |" + " ---: |" * len(slowdowns)
    for name, rule in rules.items():
        tables = quality.asked(rule, pool, trials)
        found = " | ".join(
            f"{quality.share(tables[slowdown], quality.found):.1%} "
            f"({quality.share(tables[slowdown], quality.inconclusive):.1%})"
            for slowdown in slowdowns
        )
        equal = tables.get(0.0)
        alarms = f"{quality.tables_with_changes(equal):.1%}" if equal else "–"
        unsure = f"{quality.share(equal, quality.inconclusive):.1%}" if equal else "–"
        yield f"| {name} | {alarms} | {unsure} | {found} |"


# Verdicts around the threshold


def rule_lines(lines: Sequence[Line]) -> list[Line]:
    """Return the replicates that the verdicts around the threshold are drawn from."""
    return of(lines, "replicate", study="rules", way=quality.TOGETHER, beside="nothing")


def verdicts_around(lines: Sequence[Line], trials: int) -> dict[float, dict[str, float]]:
    """Return the shares of verdicts of cells that are slower by so much, for each size of that."""
    if not lines:
        return {}
    equal = quality.pool(lines)[0.0]
    slower: Pool = {
        slowdown: {
            cell: [either.slowed(slowdown) for one in own for either in (one, one.swapped)]
            for cell, own in equal.items()
        }
        for slowdown in AROUND
    }
    tables = quality.asked(quality.compare_rule(table_rule.THRESHOLD), slower, max(trials // 3, 1))
    return {
        slowdown: {str(verdict): quality.share(some, is_called(verdict)) for verdict in Verdict}
        for slowdown, some in tables.items()
    }


def is_called(verdict: Verdict) -> Callable[[Asked], bool]:
    return lambda one: one.verdict is verdict


def around(lines: Sequence[Line], trials: int) -> Iterator[str]:
    found = verdicts_around(lines, trials)
    if not found:
        yield NONE
        return
    names = (Verdict.SAME, Verdict.INCONCLUSIVE, Verdict.WITHIN, Verdict.WORSE)
    yield "| really slower by | " + " | ".join(names) + " |"
    yield "| ---: |" + " ---: |" * len(names)
    for slowdown, shares in list(found.items())[::2]:
        yield f"| {slowdown:.1%} | " + " | ".join(f"{shares[name]:.1%}" for name in names) + " |"


def draw(found: Mapping[float, Mapping[str, float]], path: Path) -> None:
    """Draw the shares of verdicts over the true slowdown."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "gate"  # so that equal figures are equal files
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    slowdowns = 100 * np.array(list(found))
    for verdict, colour in (
        (Verdict.SAME, "#666666"),
        (Verdict.WITHIN, "#0072b2"),
        (Verdict.WORSE, "#d55e00"),
        (Verdict.INCONCLUSIVE, "#cc79a7"),
    ):
        shares = [100 * of_one[verdict] for of_one in found.values()]
        axes.plot(slowdowns, shares, marker="o", markersize=3, color=colour, label=str(verdict))
    axes.axvline(100 * table_rule.THRESHOLD, color="#999999", linewidth=1, linestyle="--")
    axes.set_xlabel("really slower by, %  (dashed: the threshold)")
    axes.set_ylabel("cells with that verdict, %")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


# Whole comparisons


def counted(lines: Sequence[Line]) -> Iterator[str]:
    """Yield what whole comparisons came to."""
    words = ("worse", "slower", "same", "inconclusive", "faster", "better")
    yield (
        "| beside it | cells | candidate | tables | "
        + " | ".join(words)
        + " | half-width | s each |"
    )
    yield "| --- | ---: | --- | ---: |" + " ---: |" * (len(words) + 2)
    for first, some in alike(lines, "beside", "size", "slowdown"):
        every = [word for line in some for word in line["verdicts"].values()]
        counts = " | ".join(str(every.count(word)) for word in words)
        name = f"+{first['slowdown']:.0%}" if first["slowdown"] else "equal"
        seconds = [line["seconds"] for line in some]
        yield (
            f"| {quality.BESIDE[first['beside']]} | {first['size']} | {name} | {len(some)} "
            f"| {counts} | ±{half_width(some):.2%} | {min(seconds):.0f} to {max(seconds):.0f} |"
        )
    yield ""
    newer = [one for one in lines if one.get("means_judged")]
    alarms = sum(any(word in CHANGED for word in table) for table in verdicts(newer, 0))
    yield (
        f"In {len(newer)} of these tables the mean of all batches was judged, too "
        f"([gate.md](gate.md#gradbench-compare)): {alarms} of them with a false alarm. "
        "The others were judged by the fastest batches alone."
    )
    yield ""
    for first, some in alike(lines, "beside", "size"):
        yield f"{quality.BESIDE[first['beside']].capitalize()}: {made_by(some)}."


def half_width(lines: Sequence[Line]) -> float:
    """Return the median half-width of the change."""
    ends = [two for line in lines for two in line["changes"].values()]
    return float(np.median([(high - low) / (high + low) for low, high in ends]))


def judged(lines: Sequence[Line]) -> Iterator[str]:
    """Yield the targets of whole comparisons; what reads inconclusive counts as not found.

    Nothing but the false alarms is asked of a busy machine.
    """
    yield from false_alarms(lines, "whatever is beside it")
    for first, some in alike(lines, "beside", "size"):
        where = f"{quality.BESIDE[first['beside']]}, {first['size']} cells"
        yield from false_alarms(some, where)
        if first["beside"] == "busy":
            continue
        quiet = first["beside"] == "nothing"
        equal = verdicts(some, 0)
        if equal:
            unsure = share(equal, ("inconclusive",))
            yield target(f"inconclusive when equal, {where}", unsure, most=0.02 if quiet else 0.10)
        least = {0.01: 0.80, 0.02: 0.95} if quiet else {0.02: 0.80}
        for slowdown, wanted in least.items():
            slower = verdicts(some, slowdown)
            if slower:
                value, how = share(slower, SLOWER), f"of {sum(map(len, slower))} cells"
                yield target(f"+{slowdown:.0%} found, {where}", value, least=wanted, how=how)
        if quiet:
            name = f"half-width of the change, median, {where}"
            yield target(name, half_width(some), most=0.005)


def false_alarms(lines: Sequence[Line], where: str) -> Iterator[str]:
    equal = verdicts(lines, 0)
    if equal:
        alarms = sum(any(word in CHANGED for word in table) for table in equal)
        low, high = interval(alarms, len(equal))
        name = f"tables with a false alarm, {where}"
        yield target(name, alarms / len(equal), most=0.01, how=f"{alarms} of {len(equal)}")
        name = f"the same, upper end of the exact 95% interval, from {low:.1%}"
        yield target(name, high, most=0.03)


def verdicts(lines: Iterable[Line], slowdown: float) -> list[list[str]]:
    """Return the verdicts of each table whose candidate is slower by so much."""
    return [list(one["verdicts"].values()) for one in lines if one["slowdown"] == slowdown]


def interval(count: int, of_all: int) -> tuple[float, float]:
    """Return the exact 95% interval of a share (Clopper & Pearson 1934)."""
    found = stats.binomtest(count, of_all).proportion_ci(0.95, method="exact")
    return float(found.low), float(found.high)


def share(tables: Sequence[Sequence[str]], wanted: Sequence[str]) -> float:
    every = [word for table in tables for word in table]
    return sum(word in wanted for word in every) / len(every)


def target(name: str, value: float, *, least: float = 0.0, most: float = 1.0, how: str = "") -> str:
    asked = f"≥ {least:.0%}" if least else f"≤ {most:.1%}"
    met = "met" if least <= value <= most else "missed"
    return f"| {name} | {asked} | {value:.2%}{f' ({how})' if how else ''} | {met} |"


def exact(lines: Sequence[Line]) -> Iterator[str]:
    for first, some in alike(lines, "model"):
        count = sum(one["regression"] for one in some)
        low, high = interval(count, len(some))
        yield (
            f"- A small model {first['model']}: {count} of {len(some)} runs gated as a regression, "
            f"95% interval {low:.1%} to {high:.1%} ({made_by(some)})."
        )


if __name__ == "__main__":
    main()
