"""How often `gradbench compare` cries wolf, and what it finds, beside other tools' rules.

Records replicates of base and candidate as compare takes them: equal ones, and (--real) ones whose
candidate really executes more work. Then asks each rule about tables drawn from the record. Without
--real, slowdowns are simulated: the candidate's times of equal replicates are multiplied.

    python tools/gate_quality.py --replicates 40 --real --save quiet.json
    python tools/gate_quality.py --replicates 40 --real --beside thrashing --save noisy.json
    python tools/gate_quality.py --replicates 40 --apart --save pairs.json  # pairs of processes
    python tools/gate_quality.py --replay quiet.json --trials 4000
    python tools/gate_quality.py --executed 8 --save whole.json       # comparisons, start to end
    python tools/gate_quality.py --exact 200 --save exact.json        # bytes, run after run
    python tools/gate_doc.py quiet.json noisy.json whole.json exact.json > docs/gate-quality.md

The models are ones that the rule's constants were not chosen on; --tuned takes those of old.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gate_subjects as subjects
import numpy as np
import psutil
from scipy import stats

from gradbench.comparison import checkouts, versions
from gradbench.comparison.replication import Replication, Replicator
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.gate import decide
from gradbench.gate.figure_verdicts import FigureVerdict
from gradbench.process_tree import ProcessTree
from gradbench.runner import environment
from gradbench.runner.bench import Bench
from gradbench.selfcheck import faults, gate as proof, trials
from gradbench.selfcheck.checks import thrashing
from gradbench.stats import table_rule
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
}
MIX = """
while :; do
  "{python}" -m compileall -q -f -j 1 -d x "{source}"
  tar -C "{source}" -cf - . | gzip > archive.gz
  "{python}" -c "import torch, numpy; torch.randn(300, 300) @ torch.randn(300, 300)"
done
"""
"""What installs and builds do: compile, pack, import, write."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a rule said of one cell, and which way the change pointed."""

    verdict: Verdict
    slower: bool

    @property
    def changed(self) -> bool:
        """Whether it calls the cell slower or faster."""
        return self.verdict in (Verdict.WORSE, Verdict.BETTER, Verdict.WITHIN)

    @property
    def found(self) -> bool:
        """Whether it calls the cell slower."""
        return self.changed and self.slower


Pool = dict[float, dict[str, list[Replicate]]]  # slowdown -> cell -> replicates, as they were taken
Table = Mapping[str, Sequence[Replicate]]
Rule = Callable[[Table, random.Random], dict[str, Asked]]
Tables = list[dict[str, Asked]]


def main() -> None:
    given = arguments()
    began = time.monotonic()
    if given.executed:
        outcome = executed(given)
    elif given.exact:
        outcome = exact(given)
    else:
        outcome = load(given.replay) if given.replay else record(given)
        print_table(outcome, given)
    print(f"{time.monotonic() - began:.0f} s")
    if given.save:
        given.save.write_text(json.dumps(outcome), "utf-8")


def here(given: argparse.Namespace, **results: Any) -> dict[str, Any]:
    """Return what was found, with where and how."""
    facts = environment.capture(["cpu"]).facts
    names = ("cpu", "cores", "torch", "python")
    return {
        "where": ", ".join(f"{name} {facts[name]}" for name in names),
        "beside": given.beside,
        "load": round(psutil.getloadavg()[2], 1),
        **results,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=20, help="to record of each slowdown")
    parser.add_argument("--apart", action="store_true", help="in pairs of processes")
    parser.add_argument("--real", action="store_true", help="execute slowdowns, not simulate them")
    parser.add_argument("--trials", type=int, default=1000, help="tables drawn of each slowdown")
    parser.add_argument("--executed", type=int, default=0, help="run that many whole comparisons")
    parser.add_argument("--slowdown", type=float, action="append", help="of these alone: 0, 0.01")
    parser.add_argument("--exact", type=int, default=0, help="gate that many runs' exact figures")
    parser.add_argument("--threshold", type=float, default=table_rule.THRESHOLD)
    parser.add_argument("--replay", type=Path)
    common(parser)
    given = parser.parse_args()
    least = TableRule().most
    if not (given.executed or given.exact or given.replay) and given.replicates < least:
        parser.error(f"--replicates {given.replicates}: a cell may take {least}")
    return given


def common(parser: argparse.ArgumentParser) -> None:
    """Add what every recording takes."""
    parser.add_argument("--cells", type=int, default=9, help="take that many")
    parser.add_argument("--tuned", action="store_true", help="of the models of old instead")
    parser.add_argument("--beside", choices=BESIDE, default="nothing", help="on the other core")
    parser.add_argument("--save", type=Path)


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
    each_ns = trials.measure_pad(time.perf_counter_ns).each_ns
    turns: dict[str, dict[str, int]] = {}
    for cell, replicates in equal.items():
        low = [one.typical_ns[0] for one in replicates]
        name = cell.model.partition(":")[2]
        turns.setdefault(name, {})[cell.grad_mode] = round(slowdown * np.median(low) / each_ns)
    return turns


def neighbour(given: argparse.Namespace) -> AbstractContextManager[None]:
    """Return what keeps the other work going that was asked for."""
    return {"nothing": nullcontext, "thrashing": thrashing, "mix": mixed}[given.beside]()


@contextmanager
def mixed() -> Iterator[None]:
    """Keep a loop of what installs and builds do going."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        shutil.copytree(Path(json.__file__).parents[1] / "email", source)
        script = MIX.format(python=sys.executable, source=source)
        with ProcessTree(["bash", "-c", script], cwd=Path(folder)):
            yield


def record(given: argparse.Namespace) -> dict[str, Any]:
    """Take equal replicates, then ones of each slowdown if they are to be executed."""
    pool: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    equal: Mapping[Cell, Sequence[Replicate]] = {}
    with tempfile.TemporaryDirectory() as folder, neighbour(given):
        base, candidate = sides(Path(folder))
        for slowdown in (0.0, *(INJECTED if given.real else ())):
            if slowdown:
                pad(candidate.tree, turns_for(slowdown, equal))
            replicator = Replicator(
                base,
                candidate,
                replication=Replication(one_process=not given.apart),
                sources=sources(),
                seed=len(pool),
            )
            replicator.examine(cells(given))
            for number in range(given.replicates):
                replicator.replicate(cells(given))
                done = f"{number + 1} of {given.replicates}"
                print(f"+{slowdown:.0%}: replicate {done}", file=sys.stderr)
            made = replicator.results.replicates
            equal = equal or dict(made)
            pool[str(slowdown)] = {
                str(cell): [(one.base_ns, one.candidate_ns) for one in own]
                for cell, own in made.items()
            }
    return here(given, replicates=pool, apart=given.apart)


def sources() -> dict[str, ModelSource]:
    return {
        f"subject:{name}": ModelSource(build=f"subject:{name}", input=(text,))
        for name, text in subjects.INPUTS.items()
    }


def slowed(replicates: Sequence[Replicate], slowdown: float) -> list[Replicate]:
    return [
        Replicate(one.base_ns, [[ns * (1 + slowdown) for ns in turn] for turn in one.candidate_ns])
        for one in replicates
    ]


def compare_rule(threshold: float) -> Rule:
    """The rule of compare: first replicates, and fresh ones for what they leave open."""
    rule = TableRule(threshold=threshold)

    def table_of(table: Table, rng: random.Random) -> dict[str, Asked]:
        drawn = {
            cell: [one.log_ratio for one in rng.sample(list(own), min(rule.most, len(own)))]
            for cell, own in table.items()
        }
        suspects = rule.suspects(drawn.values())
        found = {}
        for cell, logs in drawn.items():
            count = rule.first
            while count < len(logs) and rule.more(logs[:count], suspects=suspects):
                count += 1
            verdict = rule.verdict(logs[:count], suspects=suspects)
            found[cell] = Asked(verdict.verdict, verdict.change.point > 1)
        return found

    return table_of


def each(judge: Callable[[Sequence[Replicate], random.Random], Verdict]) -> Rule:
    """Return the rule that judges every cell by itself."""
    return lambda table, rng: {
        cell: Asked(judge(own, rng), slower=True) for cell, own in table.items()
    }


def by_mean(limit: float) -> Rule:
    """pytest-benchmark's --benchmark-compare-fail=mean:5%: two runs, one after the other."""

    def verdict_of(replicates: Sequence[Replicate], rng: random.Random) -> Verdict:
        first, second = rng.sample(list(replicates), 2)
        ratio = np.mean(flat(second.candidate_ns)) / np.mean(flat(first.base_ns))
        return Verdict.WORSE if ratio > 1 + limit else Verdict.SAME

    return each(verdict_of)


def by_asv(factor: float) -> Rule:
    """asv continuous: medians beyond the factor, and samples that Mann-Whitney tells apart.

    Two processes a side, interleaved, pooled; p below 0.002 (asv/commands/compare.py and
    asv_runner/statistics.py).
    """

    def verdict_of(replicates: Sequence[Replicate], rng: random.Random) -> Verdict:
        two = rng.sample(list(replicates), 2)
        base = np.concatenate([flat(one.base_ns) for one in two])
        candidate = np.concatenate([flat(one.candidate_ns) for one in two])
        differ = stats.mannwhitneyu(base, candidate).pvalue < 0.002
        beyond = np.median(candidate) / np.median(base) > factor
        return Verdict.WORSE if differ and beyond else Verdict.SAME

    return each(verdict_of)


def by_interval() -> Rule:
    """hyperfine and the like: means of two runs whose intervals of one deviation do not meet."""

    def verdict_of(replicates: Sequence[Replicate], rng: random.Random) -> Verdict:
        first, second = rng.sample(list(replicates), 2)
        base, candidate = flat(first.base_ns), flat(second.candidate_ns)
        apart = candidate.mean() - base.mean() > candidate.std(ddof=1) + base.std(ddof=1)
        return Verdict.WORSE if apart else Verdict.SAME

    return each(verdict_of)


def flat(turns: Sequence[Sequence[float]]) -> np.ndarray:
    return np.array([ns for turn in turns for ns in turn])


def rules(threshold: float = table_rule.THRESHOLD) -> dict[str, Rule]:
    """Return each rule by its name, ours first."""
    return {
        f"`gradbench compare`, threshold {threshold:.0%}": compare_rule(threshold),
        "pytest-benchmark, `mean:5%`": by_mean(0.05),
        "asv `continuous`, factor 1.1": by_asv(1.1),
        "asv `continuous`, factor 1.05": by_asv(1.05),
        "means ± one deviation, as hyperfine prints them": by_interval(),
    }


def pools(record: Mapping[str, Any]) -> Pool:
    """Return the recorded replicates; where slowdowns were not executed, they are simulated."""
    pool = {
        float(slowdown): {cell: [Replicate(*one) for one in own] for cell, own in of.items()}
        for slowdown, of in record["replicates"].items()
    }
    for slowdown in INJECTED:
        simulated = {cell: slowed(own, slowdown) for cell, own in pool[0.0].items()}
        pool.setdefault(slowdown, simulated)
    return pool


def print_table(record: Mapping[str, Any], given: argparse.Namespace) -> None:
    print(f"{how(record)}, {given.trials} tables of each")
    print(f"{'':50} {'tables':>7} {'inconcl.':>8}", end="")
    print("".join(f"{f'+{slowdown:.0%}':>7}{'incl.':>7}" for slowdown in INJECTED))
    for name, rule in rules(given.threshold).items():
        tables = asked(rule, pools(record), given.trials)
        print(f"{name:50} {tables_with_changes(tables[0.0]):7.2%}", end="")
        print(f" {share(tables[0.0], inconclusive):8.1%}", end="")
        for slowdown in INJECTED:
            print(f"{share(tables[slowdown], found):7.1%}", end="")
            print(f"{share(tables[slowdown], inconclusive):7.1%}", end="")
        print()


def how(record: Mapping[str, Any]) -> str:
    """Return in words what was recorded, and how."""
    equal = record["replicates"]["0.0"]
    way = "pairs of processes" if record["apart"] else "processes with both versions"
    return (
        f"{len(equal)} cells, {min(map(len, equal.values()))} {way} of each kind, "
        f"{beside(record)}, slowdowns "
        f"{'executed' if len(record['replicates']) > 1 else 'simulated'}"
    )


def beside(record: Mapping[str, Any]) -> str:
    """Return in words what ran beside."""
    return BESIDE[record["beside"]]


def asked(rule: Rule, pool: Pool, trials_: int) -> dict[float, Tables]:
    """Return what a rule says of so many tables, by slowdown, in which every cell has it.

    Of equal sides it is drawn anew which is called the base: one record's sides are not
    the rule's, and there are more draws to be had.
    """
    rng = random.Random(0)

    def drawn(slowdown: float, table: Table) -> dict[str, Asked]:
        if not slowdown:
            table = {cell: [swapped(one, rng) for one in own] for cell, own in table.items()}
        return rule(table, rng)

    return {
        slowdown: [drawn(slowdown, of) for _ in range(trials_)] for slowdown, of in pool.items()
    }


def swapped(one: Replicate, rng: random.Random) -> Replicate:
    return Replicate(one.candidate_ns, one.base_ns) if rng.random() < 0.5 else one


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


def executed(given: argparse.Namespace) -> dict[str, Any]:
    """Run whole comparisons, equal and slowed down, and count their verdicts."""
    effort = versions.Effort(threshold=given.threshold)
    counted: dict[str, list[list[str]]] = {}
    seconds: list[float] = []
    widths: list[float] = []
    with tempfile.TemporaryDirectory() as folder, neighbour(given):
        base, candidate = sides(Path(folder))
        equal = Replicator(base, candidate, replication=Replication(), sources=sources())
        for _ in range(3):
            equal.replicate(cells(given))
        for slowdown in given.slowdown or (0.0, *INJECTED):
            made = equal.results.replicates
            pad(candidate.tree, turns_for(slowdown, made) if slowdown else {})
            tables: list[list[str]] = []
            for number in range(given.executed):
                began = time.monotonic()
                decision = versions.compare(
                    cells(given),
                    base=base,
                    candidate=candidate,
                    effort=replace(effort, seed=number),
                    sources=sources(),
                )
                seconds.append(time.monotonic() - began)
                timed = [one for one in decision.figure_verdicts if one.meter == "step_time"]
                tables.append([in_a_word(one) for one in timed])
                widths += [one.change.half_width for one in timed if one.change is not None]
            counted[str(slowdown)] = tables
            every = [word for table in tables for word in table]
            print(
                f"+{slowdown:.0%}: { {word: every.count(word) for word in sorted(set(every))} }",
                flush=True,
            )
    print(f"{min(seconds):.0f} to {max(seconds):.0f} s each, half-width ±{np.median(widths):.2%}")
    return here(given, cells=len(cells(given)), executed=counted, seconds=seconds, widths=widths)


def in_a_word(one: FigureVerdict) -> str:
    """Return a verdict, and of one within tolerance which way it points."""
    if one.verdict is not Verdict.WITHIN or one.change is None:
        return str(one.verdict)
    return "slower" if one.change.point > 1 else "faster"


def at_most(count: int, of: int) -> float:
    """Return the upper end of the exact 95% interval of a share (Clopper & Pearson 1934)."""
    return 1.0 if count == of else float(stats.beta.ppf(0.975, count + 1, of - count))


def exact(given: argparse.Namespace) -> dict[str, Any]:
    """Gate exact figures, run after run: of one model, and with one more tensor of 4 KiB saved."""
    models = {
        "as it is": MODELS[proof.MODEL],
        "with one tensor of 4 KiB more saved": faults.injected(MODELS[proof.MODEL], faults.Saving),
    }
    meters = [meter for meter in proof.METERS if meter != "step_time"]
    red = dict.fromkeys(models, 0)
    with Bench(plan=proof.PLAN, models=models, meters=meters) as bench:
        facts = bench.environment(["cpu"])
        base = proof.measure(bench, "as it is", facts)
        for _ in range(given.exact):
            for name in models:
                decision = decide.decide([base], [proof.measure(bench, name, facts)])
                red[name] += decision.status() is ExitStatus.REGRESSION
    for name, count in red.items():
        print(f"{name}: {count} of {given.exact} runs gated as a regression")
    return here(given, runs=given.exact, exact=red)


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


if __name__ == "__main__":
    main()
