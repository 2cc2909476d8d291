"""How often `gradbench compare` cries wolf, and what it finds, beside two other tools' rules.

Records pairs of processes, base and candidate in turns as compare has them, over nine cells: equal
ones, and (--real) ones whose candidate really executes 3, 5 and 10% more work. Then asks each rule
about pairs drawn from the record. Without --real, slowdowns are simulated: the candidate's times
of equal pairs are multiplied.

    python tools/gate_quality.py --pairs 40 --real --save quiet.json
    python tools/gate_quality.py --pairs 40 --real --neighbour --save noisy.json
    python tools/gate_quality.py --replay quiet.json --trials 4000
    python tools/gate_quality.py --executed 8 --save whole.json       # comparisons, start to end
    python tools/gate_quality.py --exact 200 --save exact.json        # bytes, run after run
    python tools/gate_doc.py quiet.json noisy.json whole.json exact.json > docs/gate-quality.md
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from scipy import stats

from gradbench.comparison import checkouts, versions
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import Cell, Matrix
from gradbench.experiment.model_source import ModelSource
from gradbench.gate import decide
from gradbench.runner import environment
from gradbench.runner.bench import Bench
from gradbench.selfcheck import faults, gate as proof, trials
from gradbench.selfcheck.checks import thrashing
from gradbench.stats import pair_rule
from gradbench.stats.pair_rule import Pair
from gradbench.stats.verdicts import Verdict
from gradbench.workloads.models import MODELS

MODES = ("global_on", "no_grad", "inference_mode")
SHAPES = {"mlp_tiny": (64,), "mlp_wide": (784,), "cnn_small": (3, 32, 32)}
BATCH = {"mlp_tiny": 1, "mlp_wide": 8, "cnn_small": 8}
INJECTED = (0.03, 0.05, 0.10)

SUBJECT = '''
"""The models of gradbench, each step followed by turns of an empty loop: how many, a file says."""
import itertools, json
from collections import deque
from pathlib import Path
import torch
from torch import nn
from gradbench.workloads.models import MODELS

TURNS = json.loads((Path(__file__).parent / "turns.json").read_text())

class Padded(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.inner, self.turns = MODELS[name].build(), TURNS.get(name, {})
    def forward(self, x):
        out = self.inner(x)
        mode = "inference_mode" if torch.is_inference_mode_enabled() else (
            "global_on" if torch.is_grad_enabled() else "no_grad")
        deque(itertools.repeat(None, 10 + self.turns.get(mode, 0)), maxlen=0)
        return out

def mlp_tiny(): return Padded("mlp_tiny")
def mlp_wide(): return Padded("mlp_wide")
def cnn_small(): return Padded("cnn_small")
'''

Pool = dict[float, dict[str, list[Pair]]]  # slowdown -> cell -> pairs, in the order they were taken
Rule = Callable[[Sequence[Pair], random.Random], Verdict]


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
        "neighbour": given.neighbour,
        "load": round(psutil.getloadavg()[2], 1),
        **results,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20, help="pairs to record of each slowdown")
    parser.add_argument("--real", action="store_true", help="execute slowdowns, not simulate them")
    parser.add_argument("--neighbour", action="store_true", help="thrash memory on the other core")
    parser.add_argument("--trials", type=int, default=1000, help="draws a cell and slowdown")
    parser.add_argument("--executed", type=int, default=0, help="run that many whole comparisons")
    parser.add_argument("--exact", type=int, default=0, help="gate that many runs' exact figures")
    parser.add_argument("--cells", type=int, default=9, help="take that many of the nine")
    parser.add_argument("--threshold", type=float, default=pair_rule.THRESHOLD)
    parser.add_argument("--save", type=Path)
    parser.add_argument("--replay", type=Path)
    return parser.parse_args()


def cells(given: argparse.Namespace) -> list[Cell]:
    every = [
        cell
        for name, size in BATCH.items()
        for cell in Matrix(models=[f"subject:{name}"], batch_sizes=[size], grad_modes=MODES)
    ]
    return every[: given.cells]


def sides(folder: Path) -> tuple[checkouts.Version, checkouts.Version]:
    """Write the two trees; return them as versions. The candidate's padding is set later."""
    for name in checkouts.SIDES:
        (folder / name).mkdir()
        (folder / name / "subject.py").write_text(SUBJECT, "utf-8")
        pad(folder / name, {})
    package = Path(versions.__file__).parent.parent
    base, candidate = (
        checkouts.Version(
            name=name, python=sys.executable, paths=(folder / name, package), tree=folder / name
        )
        for name in checkouts.SIDES
    )
    return base, candidate


def pad(tree: Path, turns: Mapping[str, Mapping[str, int]]) -> None:
    (tree / "turns.json").write_text(json.dumps(turns), "utf-8")


def turns_for(slowdown: float, equal: Mapping[Cell, Sequence[Pair]]) -> dict[str, dict[str, int]]:
    """Return how many turns of an empty loop make each cell's step so much longer."""
    each_ns = trials.measure_pad(time.perf_counter_ns).each_ns
    turns: dict[str, dict[str, int]] = {}
    for cell, pairs in equal.items():
        low = [pair.typical_ns[0] for pair in pairs]
        name = cell.model.partition(":")[2]
        turns.setdefault(name, {})[cell.grad_mode] = round(slowdown * np.median(low) / each_ns)
    return turns


def record(given: argparse.Namespace) -> dict[str, Any]:
    """Take equal pairs, then pairs of each slowdown if they are to be executed."""
    pool: dict[str, dict[str, list[tuple[Any, Any]]]] = {}
    equal: dict[Cell, list[Pair]] = {}
    where = thrashing() if given.neighbour else nullcontext()
    with tempfile.TemporaryDirectory() as folder, where:
        base, candidate = sides(Path(folder))
        for slowdown in (0.0, *(INJECTED if given.real else ())):
            if slowdown:
                pad(candidate.tree, turns_for(slowdown, equal))
            comparison = versions.Comparison(
                base, candidate, effort=versions.Effort(seed=len(pool)), sources=sources()
            )
            for number in comparison.pairs(cells(given), given.pairs):
                print(f"+{slowdown:.0%}: pair {number} of {given.pairs}", file=sys.stderr)
            equal = equal or dict(comparison.results.pairs)
            pool[str(slowdown)] = {
                str(cell): [(pair.base_ns, pair.candidate_ns) for pair in pairs]
                for cell, pairs in comparison.results.pairs.items()
            }
    return here(given, pairs=pool)


def sources() -> dict[str, ModelSource]:
    return {
        f"subject:{name}": ModelSource(
            build=f"subject:{name}", input=(",".join(map(str, ("B", *shape))),)
        )
        for name, shape in SHAPES.items()
    }


def slowed(pairs: Sequence[Pair], slowdown: float) -> list[Pair]:
    return [Pair(p.base_ns, (np.asarray(p.candidate_ns) * (1 + slowdown)).tolist()) for p in pairs]


def compare_rule(threshold: float) -> Rule:
    """The rule of compare: first pairs, and fresh ones for what they leave undecided."""

    def verdict_of(pairs: Sequence[Pair], rng: random.Random) -> Verdict:
        most = 2 * pair_rule.PAIRS + pair_rule.EXTRA
        left = [pair.log_ratio for pair in rng.sample(pairs, most)]
        first, fresh = [left.pop() for _ in range(pair_rule.PAIRS)], list[float]()
        while pair_rule.more(first, fresh, threshold=threshold):
            fresh.append(left.pop())
        return pair_rule.rule(first, fresh, threshold=threshold).verdict

    return verdict_of


def by_mean(limit: float) -> Rule:
    """pytest-benchmark's --benchmark-compare-fail=mean:5%: two runs, one after the other."""

    def verdict_of(pairs: Sequence[Pair], rng: random.Random) -> Verdict:
        one = rng.randrange(len(pairs) - 1)
        ratio = np.mean(pairs[one + 1].candidate_ns) / np.mean(pairs[one].base_ns)
        return Verdict.WORSE if ratio > 1 + limit else Verdict.SAME

    return verdict_of


def by_asv(factor: float) -> Rule:
    """asv continuous: medians beyond the factor, and samples that Mann-Whitney tells apart.

    Two processes a side, interleaved, pooled; p below 0.002 (asv/commands/compare.py and
    asv_runner/statistics.py).
    """

    def verdict_of(pairs: Sequence[Pair], rng: random.Random) -> Verdict:
        two = rng.sample(pairs, 2)
        base = np.concatenate([np.ravel(pair.base_ns) for pair in two])
        candidate = np.concatenate([np.ravel(pair.candidate_ns) for pair in two])
        differ = stats.mannwhitneyu(base, candidate).pvalue < 0.002
        beyond = np.median(candidate) / np.median(base) > factor
        return Verdict.WORSE if differ and beyond else Verdict.SAME

    return verdict_of


def rules(threshold: float = pair_rule.THRESHOLD) -> dict[str, Rule]:
    """Return each rule by its name, ours first."""
    return {
        f"`gradbench compare`, threshold {threshold:.0%}": compare_rule(threshold),
        "pytest-benchmark, `mean:5%`": by_mean(0.05),
        "asv `continuous`, factor 1.1": by_asv(1.1),
        "asv `continuous`, factor 1.05": by_asv(1.05),
    }


def pools(record: Mapping[str, Any]) -> Pool:
    """Return the recorded pairs; where slowdowns were not executed, they are simulated."""
    pool = {
        float(slowdown): {cell: [Pair(*pair) for pair in pairs] for cell, pairs in of.items()}
        for slowdown, of in record["pairs"].items()
    }
    for slowdown in INJECTED:
        simulated = {cell: slowed(pairs, slowdown) for cell, pairs in pool[0.0].items()}
        pool.setdefault(slowdown, simulated)
    return pool


def print_table(record: Mapping[str, Any], given: argparse.Namespace) -> None:
    print(f"{how(record)}, {given.trials} draws a cell")
    print(f"{'':42} {'false':>7} {'inconcl.':>8}", end="")
    print("".join(f"{f'+{slowdown:.0%}':>7}{'incl.':>7}" for slowdown in INJECTED))
    pool = pools(record)
    for number, (name, rule) in enumerate(rules(given.threshold).items()):
        verdicts = asked(rule, pool, given.trials)
        print_row(name, {slowdown: pooled(of) for slowdown, of in verdicts.items()})
        for cell in pool[0.0] if number == 0 else ():
            print_row(f"  {cell}", {slowdown: of[cell] for slowdown, of in verdicts.items()})


def how(record: Mapping[str, Any]) -> str:
    """Return in words what was recorded, and how."""
    equal = record["pairs"]["0.0"]
    beside = "a neighbour thrashing memory" if record["neighbour"] else "nothing beside it"
    return (
        f"{len(equal)} cells, {min(map(len, equal.values()))} pairs of each kind, {beside}, "
        f"slowdowns {'executed' if len(record['pairs']) > 1 else 'simulated'}"
    )


def print_row(name: str, verdicts: Mapping[float, Sequence[Verdict]]) -> None:
    print(f"{name:42} {share(verdicts[0.0], Verdict.WORSE):7.2%}", end="")
    print(f" {share(verdicts[0.0], Verdict.INCONCLUSIVE):8.1%}", end="")
    for slowdown in INJECTED:
        print(f"{share(verdicts[slowdown], Verdict.WORSE):7.1%}", end="")
        print(f"{share(verdicts[slowdown], Verdict.INCONCLUSIVE):7.1%}", end="")
    print()


def asked(rule: Rule, pool: Pool, trials_: int) -> dict[float, dict[str, list[Verdict]]]:
    """Return the verdicts on so many draws, by slowdown and cell.

    Of equal sides it is drawn anew which is called the base: one record's sides are not
    the rule's, and there are more draws to be had.
    """
    rng = random.Random(0)

    def drawn(slowdown: float, pairs: Sequence[Pair]) -> Verdict:
        if not slowdown:
            pairs = [Pair(p.candidate_ns, p.base_ns) if rng.random() < 0.5 else p for p in pairs]
        return rule(pairs, rng)

    return {
        slowdown: {cell: [drawn(slowdown, p) for _ in range(trials_)] for cell, p in of.items()}
        for slowdown, of in pool.items()
    }


def pooled(verdicts: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
    return [verdict for of_cell in verdicts.values() for verdict in of_cell]


def share(verdicts: Sequence[Verdict], wanted: Verdict) -> float:
    return verdicts.count(wanted) / len(verdicts)


def executed(given: argparse.Namespace) -> dict[str, Any]:
    """Run whole comparisons, equal and slowed down, and count their verdicts."""
    effort = versions.Effort(threshold=given.threshold)
    where = thrashing() if given.neighbour else nullcontext()
    counted: dict[str, dict[str, int]] = {}
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder, where:
        base, candidate = sides(Path(folder))
        equal = versions.Comparison(base, candidate, effort=effort, sources=sources())
        for _ in equal.pairs(cells(given), 3):
            pass
        for slowdown in (0.0, *INJECTED):
            pad(candidate.tree, turns_for(slowdown, equal.results.pairs) if slowdown else {})
            verdicts = []
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
                verdicts += [j.verdict for j in decision.figure_verdicts if j.meter == "step_time"]
            counted[str(slowdown)] = {str(v): verdicts.count(v) for v in Verdict}
            print(f"+{slowdown:.0%}: {counted[str(slowdown)]}", flush=True)
    print(f"{min(seconds):.0f} to {max(seconds):.0f} s each")
    return here(given, cells=len(cells(given)), executed=counted, seconds=seconds)


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
