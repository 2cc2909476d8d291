"""How often `gradbench compare` cries wolf, and what it finds, beside other tools' rules.

Four things are recorded, each appended to a file as soon as it is measured; called again with the
same file, a script goes on where it was, so that several sittings make one record:

    python tools/gate_quality.py --executed 20 --slowdown 0 --slowdown 0.01 --minutes 30 --save FILE
    python tools/gate_quality.py --replicates 17 --save FILE           # what rules are asked about
    python tools/gate_quality.py --replicates 17 --apart --save FILE   # in pairs of processes
    python tools/gate_quality.py --counts 5 --save FILE    # instructions, as other tools judge them
    python tools/gate_quality.py --exact 50 --save FILE                # bytes, run after run
    python tools/gate_doc.py FILE... > docs/gate-quality.md

--executed runs whole comparisons, from the first process to the verdict. --replicates takes
replicates of equal sides and, with --real, of ones whose candidate really executes more work (else
the candidate's times are multiplied); then each rule is asked about tables drawn from the record.
The models are ones that the rule's constants were not chosen on; --tuned takes those of old.
"""

import argparse
import itertools
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gate_records as records
import gate_subjects as subjects
import numpy as np
from gate_records import Line, Sitting
from scipy import stats

from gradbench.comparison import checkouts, versions
from gradbench.comparison.budget import Budget
from gradbench.comparison.effort import Effort
from gradbench.comparison.instruction_counts import InstructionCounter
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.gate import decide
from gradbench.gate.figure_verdicts import FigureVerdict
from gradbench.process_tree import ProcessTree
from gradbench.runner.bench import Bench
from gradbench.selfcheck import faults, gate as proof, trials
from gradbench.selfcheck.checks import thrashing
from gradbench.stats import table_rule, uneven_steps
from gradbench.stats.replicate import Replicate
from gradbench.stats.table_rule import TableRule
from gradbench.stats.verdicts import Verdict
from gradbench.workloads.models import MODELS

MODES = ("global_on", "no_grad", "inference_mode")
INJECTED = (0.01, 0.02, 0.03, 0.05, 0.10)
BESIDE = {
    "nothing": "nothing beside it",
    "thrashing": "a neighbour thrashing memory",
    "mix": "an ordinary mix of work beside it",
    "busy": "a busy machine",
}
TOGETHER, APART = "one process, weights shared", "pairs of processes"
MIX = """
while :; do
  "{python}" -m compileall -q -f -j 1 -d x "{source}"
  tar -C "{source}" -cf - . | gzip > archive.gz
  "{python}" -c "import torch, numpy; torch.randn(300, 300) @ torch.randn(300, 300)"
done
"""
"""What installs and builds do: compile, pack, import, write."""


def main() -> None:
    given = arguments()
    for measure, wanted in (
        (executed, given.executed),
        (recorded, given.replicates),
        (counted, given.counts),
        (exact, given.exact),
    ):
        if wanted:
            measure(given)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--executed", type=int, default=0, help="whole comparisons of each kind")
    parser.add_argument("--replicates", type=int, default=0, help="to record of each slowdown")
    parser.add_argument("--counts", type=int, default=0, help="of instructions, of each slowdown")
    parser.add_argument("--exact", type=int, default=0, help="runs whose exact figures are gated")
    parser.add_argument("--apart", action="store_true", help="--replicates in pairs of processes")
    parser.add_argument("--real", action="store_true", help="--replicates of executed slowdowns")
    parser.add_argument("--slowdown", type=float, action="append", help="of these alone: 0, 0.01")
    common(parser)
    given = parser.parse_args()
    if not (given.executed or given.replicates or given.counts or given.exact):
        parser.error("nothing to do: give --executed, --replicates, --counts or --exact")
    return given


def common(parser: argparse.ArgumentParser) -> None:
    """Add what every recording takes."""
    parser.add_argument("--cells", type=int, default=9, help="take that many, of 13")
    parser.add_argument("--tuned", action="store_true", help="of the models of old instead")
    surroundings = "on the other core; busy: with other people's work, on every core"
    parser.add_argument("--beside", choices=BESIDE, default="nothing", help=surroundings)
    parser.add_argument("--minutes", type=float, help="begin nothing that would end later")
    parser.add_argument("--save", type=Path, help="append to it, and go on from what it holds")


def of_this_kind(given: argparse.Namespace, **fields: Any) -> list[Line]:
    """Return the lines of the file that have been measured as is asked now."""
    wanted = {**fields, "beside": given.beside, "size": len(cells(given)), "tuned": given.tuned}
    there = records.read([given.save]) if given.save else []
    return [one for one in there if wanted.items() <= one.items()]


def save(given: argparse.Namespace, **line: Any) -> Line:
    size = len(cells(given))
    return records.append(given.save, **line, beside=given.beside, size=size, tuned=given.tuned)


def missing(
    given: argparse.Namespace, slowdowns: Sequence[float], count: int, **fields: Any
) -> list[tuple[float, int]]:
    """Return what is still to be measured, by slowdown and number, all slowdowns in turn."""
    there = {one: len(of_this_kind(given, slowdown=one, **fields)) for one in slowdowns}
    return [(one, number) for number in range(count) for one in slowdowns if number >= there[one]]


# Subjects


def cells(given: argparse.Namespace) -> list[Cell]:
    """Return the cells that are compared, one mode of each unseen model, or all of the old ones."""
    sizes = [
        (name, size)
        for name, of_model in subjects.BATCH_SIZES.items()
        for size in of_model
        if (name in subjects.TUNED) == given.tuned
    ]
    every = [
        Cell(
            model=f"subject:{name}",
            workload="inference",
            grad_mode=mode,
            batch_size=size,
        )
        for number, (name, size) in enumerate(sizes)
        for mode in (MODES if given.tuned else (MODES[number % len(MODES)],))
    ]
    return every[: given.cells]


def sides(folder: Path) -> tuple[checkouts.Version, checkouts.Version]:
    """Write the two trees; return them as versions. The candidate's padding is set later."""
    measuring = folder / "measuring"
    measuring.mkdir()
    (measuring / "gradbench").symlink_to(checkouts.PACKAGE, target_is_directory=True)
    for name in checkouts.SIDES:
        (folder / name).mkdir()
        shutil.copy(subjects.__file__, folder / name / "subject.py")
        pad(folder / name, {})
    base, candidate = (
        checkouts.Version(
            name=name, python=sys.executable, paths=(folder / name, measuring), tree=folder / name
        )
        for name in checkouts.SIDES
    )
    return base, candidate


def pad(tree: Path, turns: Mapping[str, Mapping[str, int]]) -> None:
    (tree / "turns.json").write_text(json.dumps(turns), "utf-8")


def turns_for(slowdown: float, equal: Mapping[Cell, Sequence[Replicate]]) -> dict[str, Any]:
    """Return how many turns of an empty loop make each cell's step so much longer."""
    if not slowdown:
        return {}
    each_ns = trials.measure_pad(time.perf_counter_ns).each_ns
    turns: dict[str, dict[str, int]] = {}
    for cell, replicates in equal.items():
        low = [one.typical_ns[0] for one in replicates]
        name = cell.model.partition(":")[2]
        turns.setdefault(name, {})[cell.grad_mode] = round(slowdown * np.median(low) / each_ns)
    return turns


def sources() -> dict[str, ModelSource]:
    return {
        f"subject:{name}": ModelSource(build=f"subject:{name}", input=(text,))
        for name, text in subjects.INPUTS.items()
    }


def replicator(
    given: argparse.Namespace,
    versions_: tuple[checkouts.Version, checkouts.Version],
    how: Replication,
    *,
    seed: int,
) -> Replicator:
    """Return what makes replicates, its cells looked at."""
    made = Replicator(*versions_, replication=how, sources=sources(), seed=seed)
    made.examine(cells(given))
    return made


def steps(
    given: argparse.Namespace, versions_: tuple[checkouts.Version, checkouts.Version]
) -> Mapping[Cell, Sequence[Replicate]]:
    """Return replicates of equal sides, by which slowdowns are made to measure."""
    made = replicator(given, versions_, Replication(), seed=0)
    made.replicate(cells(given))
    return made.results.replicates


def neighbour(given: argparse.Namespace) -> AbstractContextManager[None]:
    """Return what keeps the other work going that was asked for."""
    return {"thrashing": thrashing, "mix": mixed}.get(given.beside, nullcontext)()


@contextmanager
def mixed() -> Iterator[None]:
    """Keep a loop of what installs and builds do going."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(Path(json.__file__).parents[1] / "email", source)
        script = MIX.format(python=sys.executable, source=source)
        with ProcessTree(["bash", "-c", script], cwd=Path(folder)):
            yield


# Recording


@contextmanager
def slowed_down(
    given: argparse.Namespace, count: int, *, kind: str
) -> Iterator[tuple[Any, Any, Sitting, Iterator[tuple[float, int]]]]:
    """Yield two sides, the sitting, and what it has time for: a slowdown and a number each.

    The candidate executes the slowdown from the moment that it is drawn.
    """
    slowdowns = given.slowdown or [0.0, *INJECTED]
    wanted = missing(given, slowdowns, count, kind=kind)
    sitting = Sitting(given.minutes, len(wanted))
    with tempfile.TemporaryDirectory() as folder, neighbour(given):
        base, candidate = sides(Path(folder))
        equal = steps(given, (base, candidate)) if any(slowdowns) and wanted else {}

        def turns() -> Iterator[tuple[float, int]]:
            for slowdown, number in wanted:
                if not sitting.allows():
                    return
                pad(candidate.tree, turns_for(slowdown, equal))
                yield slowdown, number

        yield base, candidate, sitting, turns()


def executed(given: argparse.Namespace) -> None:
    """Run whole comparisons, equal and slowed down, and keep their verdicts."""
    with slowed_down(given, given.executed, kind="comparison") as (base, candidate, sitting, turns):
        for slowdown, number in turns:
            began = time.monotonic()
            decision = versions.compare(
                cells(given),
                base=base,
                candidate=candidate,
                effort=Effort(seed=number),
                sources=sources(),
            )
            seconds = time.monotonic() - began
            timed = [one for one in decision.figure_verdicts if one.meter == "step_time"]
            words = {str(one.cell): in_a_word(one) for one in timed}
            save(
                given,
                kind="comparison",
                slowdown=slowdown,
                seed=number,
                seconds=round(seconds, 1),
                verdicts=words,
                means_judged=True,
                changes={
                    str(one.cell): [round(end, 5) for end in (one.change.low, one.change.high)]
                    for one in timed
                    if one.change is not None
                },
            )
            every = list(words.values())
            came = ", ".join(f"{every.count(word)} {word}" for word in sorted(set(every)))
            sitting.done(f"+{slowdown:.0%}, comparison {number + 1}: {came}", seconds=seconds)


def in_a_word(one: FigureVerdict) -> str:
    """Return a verdict, and of one within tolerance which way it points."""
    if one.verdict is not Verdict.WITHIN or one.change is None:
        return str(one.verdict)
    return "slower" if one.change.point > 1 else "faster"


def recorded(given: argparse.Namespace) -> None:
    """Take replicates of equal sides, and with --real of each slowdown."""
    slowdowns = given.slowdown or [0.0, *(INJECTED if given.real else ())]
    fields = {"kind": "replicate", "study": "rules", "way": APART if given.apart else TOGETHER}
    wanted = missing(given, slowdowns, given.replicates, **fields)
    sitting = Sitting(given.minutes, len(wanted))
    how = Replication(one_process=not given.apart)
    with tempfile.TemporaryDirectory() as folder, neighbour(given):
        base, candidate = sides(Path(folder))
        equal = steps(given, (base, candidate)) if any(slowdowns) and wanted else {}
        made = {
            slowdown: replicator(given, (base, candidate), how, seed=number)
            for slowdown, number in dict(reversed(wanted)).items()
        }
        for slowdown, number in wanted:
            if not sitting.allows():
                return
            pad(candidate.tree, turns_for(slowdown, equal))
            seconds = keep_replicate(given, made[slowdown], slowdown=slowdown, **fields)
            sitting.done(f"+{slowdown:.0%}, replicate {number + 1}", seconds=seconds)


def keep_replicate(given: argparse.Namespace, made: Replicator, **fields: Any) -> float:
    """Take another replicate of every cell; return the seconds it took."""
    made.results.replicates.clear()
    began = time.monotonic()
    made.replicate(cells(given))
    seconds = time.monotonic() - began
    newest = {str(cell): own[0] for cell, own in made.results.replicates.items()}
    times = {cell: [whole(one.base_ns), whole(one.candidate_ns)] for cell, one in newest.items()}
    apart = {str(cell): why for cell, why in made.results.apart.items() if why != "as asked"}
    save(given, seconds=round(seconds, 1), times=times, apart=apart, **fields)
    return seconds


def whole(turns: Sequence[Sequence[float]]) -> list[list[int]]:
    """Return times without parts of a nanosecond, which say nothing."""
    return [[round(ns) for ns in turn] for turn in turns]


def counted(given: argparse.Namespace) -> None:
    """Count instructions of both sides, each in a process of its own, as two jobs in CI do."""
    with slowed_down(given, given.counts, kind="counts") as (base, candidate, sitting, turns):
        for slowdown, number in turns:
            began = time.monotonic()
            made = Replicator(
                base, candidate, replication=Replication(), sources=sources(), seed=number
            )
            made.results.apart.update(dict.fromkeys(cells(given), "as asked"))
            InstructionCounter(
                made, budget=Budget(), say=lambda words: print(words, file=sys.stderr)
            ).count(cells(given))
            counts = {
                str(cell): [one["instructions"] for one in two]
                for cell, two in made.results.operations.items()
            }
            seconds = time.monotonic() - began
            save(given, kind="counts", slowdown=slowdown, seconds=round(seconds, 1), counts=counts)
            sitting.done(f"+{slowdown:.0%}, count {number + 1}", seconds=seconds)


def exact(given: argparse.Namespace) -> None:
    """Gate exact figures, run after run: of one model, and with one more tensor of 4 KiB saved."""
    models = {
        "as it is": MODELS[proof.MODEL],
        "with one tensor of 4 KiB more saved": faults.injected(MODELS[proof.MODEL], faults.Saving),
    }
    meters = [meter for meter in proof.METERS if meter != "step_time"]
    there = {name: len(of_this_kind(given, kind="exact", model=name)) for name in models}
    wanted = [name for number in range(given.exact) for name in models if number >= there[name]]
    sitting = Sitting(given.minutes, len(wanted))
    with Bench(plan=proof.PLAN, models=models, meters=meters) as bench, neighbour(given):
        facts = bench.environment(["cpu"])
        base = proof.measure(bench, "as it is", facts)
        for name in wanted:
            if not sitting.allows():
                return
            began = time.monotonic()
            decision = decide.decide([base], [proof.measure(bench, name, facts)])
            regression = decision.status() is ExitStatus.REGRESSION
            save(given, kind="exact", model=name, regression=regression)
            sitting.done(
                f"{name}: {'a regression' if regression else 'none'}",
                seconds=time.monotonic() - began,
            )


# Rules, asked about tables drawn from what was recorded


@dataclass(frozen=True)
class Side:
    """One side's times of a replicate, all turns together."""

    ns: np.ndarray

    @cached_property
    def mean(self) -> float:
        return float(self.ns.mean())

    @cached_property
    def deviation(self) -> float:
        return float(self.ns.std(ddof=1))


@dataclass(frozen=True)
class Sample:
    """What rules see of a replicate."""

    replicate: Replicate

    @classmethod
    def of(cls, base_ns: Any, candidate_ns: Any) -> "Sample":
        return cls(Replicate(base_ns, candidate_ns))

    @cached_property
    def base(self) -> Side:
        return Side(np.array(list(itertools.chain(*self.replicate.base_ns)), dtype=float))

    @cached_property
    def candidate(self) -> Side:
        return Side(np.array(list(itertools.chain(*self.replicate.candidate_ns)), dtype=float))

    @cached_property
    def log(self) -> float:
        return self.replicate.log_ratio

    @cached_property
    def swapped(self) -> "Sample":
        """The same with the sides called the other way round."""
        return Sample.of(self.replicate.candidate_ns, self.replicate.base_ns)

    def slowed(self, slowdown: float) -> "Sample":
        """Return it as if the candidate had taken so much longer."""
        turns = self.replicate.candidate_ns
        longer = [[ns * (1 + slowdown) for ns in turn] for turn in turns]
        return Sample.of(self.replicate.base_ns, longer)


@dataclass(frozen=True, slots=True)
class Counts:
    """Instructions of base and candidate, each counted in a process of its own."""

    base: int
    candidate: int

    @property
    def swapped(self) -> "Counts":
        """The same with the sides called the other way round."""
        return Counts(self.candidate, self.base)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rule said of one cell, and which way the change pointed."""

    verdict: Verdict
    slower: bool = True

    @property
    def changed(self) -> bool:
        """Whether it calls the cell slower or faster."""
        return self.verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.WITHIN)

    @property
    def found(self) -> bool:
        """Whether it calls the cell slower."""
        return self.changed and self.slower


Pool = dict[float, dict[str, list[Any]]]  # slowdown -> cell -> samples or counts
Table = Mapping[str, Sequence[Any]]
Rule = Callable[[Table, random.Random], dict[str, Asked]]
Tables = list[dict[str, Asked]]


def compare_rule(threshold: float) -> Rule:
    """The rule of compare: first replicates, and fresh ones for what they leave open."""
    rule = TableRule(threshold=threshold)

    def table_of(table: Table, rng: random.Random) -> dict[str, Asked]:
        drawn = {cell: rng.sample(own, min(rule.most, len(own))) for cell, own in table.items()}
        logs_of = {cell: [one.log for one in own] for cell, own in drawn.items()}
        suspects = rule.suspects(logs_of.values())
        found = {}
        for cell, logs in logs_of.items():
            count = rule.first
            while count < len(logs) and rule.more(logs[:count], suspects=suspects):
                count += 1
            verdict = uneven_steps.judged(
                rule.verdict(logs[:count], suspects=suspects),
                [one.replicate.log_ratio for one in drawn[cell][:count]],
                [one.replicate.mean_log_ratio for one in drawn[cell][:count]],
                threshold=threshold,
                cells=len(table),
            )
            slower = verdict.verdict is Verdict.WORSE or verdict.change.point > 1
            found[cell] = Asked(verdict.verdict, slower)
        return found

    return table_of


def each(takes: int, is_worse: Callable[..., bool]) -> Rule:
    """Return the rule that judges every cell by itself, by so many replicates."""

    def table_of(table: Table, rng: random.Random) -> dict[str, Asked]:
        return {
            cell: Asked(Verdict.WORSE if is_worse(*rng.sample(own, takes)) else Verdict.SAME)
            for cell, own in table.items()
        }

    return table_of


def by_mean(limit: float) -> Rule:
    """pytest-benchmark's --benchmark-compare-fail=mean:5%: two runs, one after the other."""
    return each(2, lambda first, second: second.candidate.mean / first.base.mean > 1 + limit)


def by_asv(factor: float) -> Rule:
    """asv continuous: medians beyond the factor, and samples that Mann-Whitney tells apart.

    Two processes a side, interleaved, pooled; p below 0.002 (asv/commands/compare.py and
    asv_runner/statistics.py).
    """

    def is_worse(*two: Sample) -> bool:
        base = np.concatenate([one.base.ns for one in two])
        candidate = np.concatenate([one.candidate.ns for one in two])
        if np.median(candidate) / np.median(base) <= factor:
            return False
        return bool(stats.mannwhitneyu(base, candidate).pvalue < 0.002)

    return each(2, is_worse)


def by_interval() -> Rule:
    """hyperfine and the like: means of two runs whose intervals of one deviation do not meet."""

    def is_worse(first: Sample, second: Sample) -> bool:
        base, candidate = first.base, second.candidate
        return candidate.mean - base.mean > candidate.deviation + base.deviation

    return each(2, is_worse)


def by_count(limit: float) -> Rule:
    """CodSpeed and the like: instructions of one run a side, with a threshold."""
    return each(1, lambda one: one.candidate / one.base > 1 + limit)


def rules() -> dict[str, Rule]:
    """Return the rules about times by name, ours first."""
    return {
        f"`gradbench compare`, threshold {table_rule.THRESHOLD:.0%}": compare_rule(
            table_rule.THRESHOLD
        ),
        "pytest-benchmark, `mean:5%`": by_mean(0.05),
        "asv `continuous`, factor 1.1": by_asv(1.1),
        "asv `continuous`, factor 1.05": by_asv(1.05),
        "means ± one deviation, as hyperfine prints them": by_interval(),
    }


def rules_of_counts() -> dict[str, Rule]:
    """Return the rules about instructions by name."""
    return {f"instructions, threshold {limit:.1%}": by_count(limit) for limit in (0.10, 0.05, 0.01)}


def pool(lines: Sequence[Line]) -> Pool:
    """Return the recorded replicates; where slowdowns were not executed, they are simulated."""
    found: Pool = {}
    for line in lines:
        of_slowdown = found.setdefault(line["slowdown"], {})
        for cell, sides_ns in line["times"].items():
            of_slowdown.setdefault(cell, []).append(Sample.of(*sides_ns))
    for slowdown in INJECTED:
        simulated = {
            cell: [one.slowed(slowdown) for one in own] for cell, own in found.get(0.0, {}).items()
        }
        if simulated:
            found.setdefault(slowdown, simulated)
    return found


def pool_of_counts(lines: Sequence[Line]) -> Pool:
    """Return the counts by slowdown and cell."""
    found: Pool = {}
    for line in lines:
        for cell, two in line["counts"].items():
            found.setdefault(line["slowdown"], {}).setdefault(cell, []).append(Counts(*two))
    return found


def asked(rule: Rule, drawn_from: Pool, trials_: int) -> dict[float, Tables]:
    """Return what a rule says of so many tables, by slowdown, in which every cell has it.

    Of equal sides it is drawn anew which is called the base: one record's sides are not
    the rule's, and there are more draws to be had.
    """
    rng = random.Random(0)

    def drawn(slowdown: float, table: Table) -> dict[str, Asked]:
        if not slowdown:
            table = {
                cell: [one.swapped if rng.random() < 0.5 else one for one in own]
                for cell, own in table.items()
            }
        return rule(table, rng)

    return {
        slowdown: [drawn(slowdown, of) for _ in range(trials_)]
        for slowdown, of in drawn_from.items()
    }


def tables_with_changes(tables: Tables) -> float:
    """Return the share of tables in which any cell is called slower or faster."""
    return sum(any(one.changed for one in table.values()) for table in tables) / len(tables)


def share(tables: Tables, wanted: Callable[[Asked], bool]) -> float:
    """Return the share of cells of which something holds."""
    cells_ = [wanted(one) for table in tables for one in table.values()]
    return sum(cells_) / len(cells_)


def found(one: Asked) -> bool:
    return one.found


def inconclusive(one: Asked) -> bool:
    return one.verdict is Verdict.INCONCLUSIVE


if __name__ == "__main__":
    main()
