"""Ask how often change points of made-up series are false, missed or found, and write it down.

    python tools/history_quality.py --seed 2 --doc docs/history.md   # what docs/history.md shows
    python tools/history_quality.py --seed 1 --rule penalty=2,alpha=0.003   # another rule

Beside ours: ruptures with its textbook penalty, and apache-otava where ``--otava`` names a Python
that has it (its pins keep it out of this environment). The rule's defaults
were chosen on series of other seeds.
"""

import argparse
import json
import math
import platform
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Final

import numpy as np
import ruptures
from numpy.typing import NDArray

from gradbench.stats.changepoints import RULE, Rule, shifts

Floats = NDArray[np.float64]
Made = tuple[Floats, tuple[int, ...]]  # values (points,), and where they really change

POINTS: Final = 200
LONG: Final = 500
NEAR: Final = 8
STEPS: Final = (0.05, 0.10)
MOST_FALSE: Final = {"white 2%": 0.05, "white 5%": 0.05, "spikes 3%": 0.10}
"""The share of series without a change that may have an alarm; other kinds have no target."""
OTAVA: Final = """
import json, sys
from otava.analysis import compute_change_points
changes = [compute_change_points(series)[0] for series in json.load(sys.stdin)]
print(json.dumps([[int(change.index) for change in own] for own in changes]))
"""


def white(rng: np.random.Generator, points: int, *, sd: float) -> Floats:
    """Independent, normal on the log scale."""
    return rng.normal(0, sd, points)


def spiky(rng: np.random.Generator, points: int, *, sd: float) -> Floats:
    """The same, and one point in twenty is 10 to 50% slower."""
    logs = rng.normal(0, sd, points)
    hit = rng.random(points) < 0.05
    logs[hit] += np.log1p(rng.uniform(0.1, 0.5, hit.sum()))
    return logs


def drifting(rng: np.random.Generator, points: int, *, sd: float, r: float = 0.6) -> Floats:
    """A first-order autoregression: each point remembers the last."""
    fresh = rng.normal(0, sd * math.sqrt(1 - r**2), points + 50)
    logs = np.zeros(points + 50)
    for at in range(1, points + 50):
        logs[at] = r * logs[at - 1] + fresh[at]
    return logs[50:]


KINDS: Final[dict[str, Callable[[np.random.Generator, int], Floats]]] = {
    "white 2%": partial(white, sd=0.02),
    "white 5%": partial(white, sd=0.05),
    "spikes 3%": partial(spiky, sd=0.03),
    "AR 0.6, 3%": partial(drifting, sd=0.03),
}


def quiet(kind: str, rng: np.random.Generator) -> Made:
    return np.exp(KINDS[kind](rng, POINTS)), ()


def stepped(kind: str, rng: np.random.Generator, *, step: float) -> Made:
    """One rise, with 60 points before it at least and ten after."""
    logs = KINDS[kind](rng, POINTS)
    at = int(rng.integers(60, POINTS - 10))
    logs[at:] += math.log1p(step)
    return np.exp(logs), (at,)


def batch(kind: str, rng: np.random.Generator) -> Made:
    """Five changes of 5 to 20%, up or down, thirty points apart or more."""
    logs = KINDS[kind](rng, LONG)
    places = rng.choice(np.arange(1, 12), 5, replace=False)
    cuts = sorted(int(40 * place + rng.integers(0, 11)) for place in places)
    for at in cuts:
        logs[at:] += math.log1p(rng.uniform(0.05, 0.2)) * rng.choice([-1, 1])
    return np.exp(logs), tuple(cuts)


def gradbench_shifts(values: Floats, rule: Rule = RULE) -> list[int]:
    return [shift.index for shift in shifts(values, rule=rule)]


def plain_ruptures(values: Floats) -> list[int]:
    """Least squares with the penalty 2 s² log n, s from differences: its user guide's advice."""
    if len(values) < 10:
        return []
    logs = np.log(values)
    penalty = 2 * math.log(len(logs)) * float(np.var(np.diff(logs))) / 2
    ends = ruptures.KernelCPD(kernel="linear", min_size=5).fit(logs).predict(pen=penalty)
    return [int(cut) for cut in ends[:-1]]


def ever(values: Floats, rule: Rule = RULE) -> bool:
    """Whether any alarm is raised as the series grows, one run of the detector a point."""
    return any(gradbench_shifts(values[:end], rule) for end in range(10, len(values) + 1))


def in_time(made: Made, rule: Rule = RULE) -> int:
    """After how many points a step is first seen within `NEAR` points of where it is; 0: never."""
    values, (at,) = made
    for end in range(at + 1, len(values) + 1):
        if hits(gradbench_shifts(values[:end], rule), (at,)):
            return end - at
    return 0


def bound(rng: np.random.Generator, *, sd: float, step: float, most: float = 0.05) -> float:
    """What share of rises is seen within `NEAR` points by a detector that knows all but when.

    Page's CUSUM, given the level, the noise, that the change is a rise, and its size: of rules that
    are false as rarely none is quicker at its worst (Moustakides 1986, Optimal Stopping Times for
    Detecting Changes in Distributions). Its threshold is set so that a share ``most`` of series
    without a rise raises an alarm in `POINTS` points.
    """
    size, series = math.log1p(step) / sd, 20_000

    def statistic(values: Floats) -> Floats:
        sums = np.zeros_like(values)
        for at in range(values.shape[1]):
            before = sums[:, at - 1] if at else 0.0
            sums[:, at] = np.maximum(0, before + size * (values[:, at] - size / 2))
        return sums

    threshold = np.quantile(statistic(rng.normal(size=(series, POINTS))).max(axis=1), 1 - most)
    risen = rng.normal(size=(series, 60 + NEAR))
    risen[:, 60:] += size
    return float((statistic(risen)[:, 60:].max(axis=1) >= threshold).mean())


def hits(detected: Sequence[int], true: Sequence[int]) -> int:
    """How many of the true changes are found within `NEAR` points, each find used once."""
    left, count = list(detected), 0
    for at in true:
        near = [cut for cut in left if abs(cut - at) <= NEAR]
        if near:
            left.remove(min(near, key=lambda cut: abs(cut - at)))
            count += 1
    return count


def otava(python: str, made: Sequence[Made]) -> list[list[int]]:
    answer = subprocess.run(
        [python, "-c", OTAVA],
        input=json.dumps([values.tolist() for values, _ in made]),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[int]] = json.loads(answer.stdout)
    return found


def share(count: float, of: float) -> str:
    return f"{count / of:.1%}" if of else "-"


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    met = (least is None or value >= least) and (most is None or value <= most)
    return "met" if met else "**missed**"


@dataclass(frozen=True)
class Sample:
    """Series of one kind: without a change, with a step of each size, and with several."""

    kind: str
    calm: list[Made]
    steps: dict[float, list[Made]]
    long: list[Made]

    @classmethod
    def drawn(cls, kind: str, *, seed: int, size: int) -> "Sample":
        def make(draw: Callable[[np.random.Generator], Made], *name: int) -> list[Made]:
            number = list(KINDS).index(kind)
            seeds = ([seed, number, *name, trial] for trial in range(size))
            return [draw(np.random.default_rng(one)) for one in seeds]

        return cls(
            kind,
            make(partial(quiet, kind), 0),
            {step: make(partial(stepped, kind, step=step), 1, int(step * 100)) for step in STEPS},
            make(partial(batch, kind), 2),
        )


Detector = Callable[[list[Made]], list[list[int]]]


@dataclass(frozen=True)
class Detected:
    """How often a detector that sees whole series is right about a sample."""

    false: int
    steps: dict[float, int]
    precision: float
    recall: float

    @classmethod
    def by(cls, detect: Detector, sample: Sample) -> "Detected":
        def right(made: list[Made], detected: list[list[int]]) -> int:
            pairs = zip(made, detected, strict=True)
            return sum(hits(cuts, true) for (_, true), cuts in pairs)

        cuts = detect(sample.long)
        claimed, there = sum(map(len, cuts)), sum(len(true) for _, true in sample.long)
        return cls(
            false=sum(map(bool, detect(sample.calm))),
            steps={step: right(made, detect(made)) for step, made in sample.steps.items()},
            precision=right(sample.long, cuts) / max(claimed, 1),
            recall=right(sample.long, cuts) / there,
        )

    def row(self, sample: Sample, name: str) -> str:
        size = len(sample.calm)
        return (
            f"| {sample.kind} | {name} | {share(self.false, size)} | "
            + " | ".join(share(self.steps[step], size) for step in STEPS)
            + f" | {self.precision:.2f} | {self.recall:.2f} |"
        )


@dataclass(frozen=True)
class Growing:
    """How often gradbench is right that is asked again at every point, as it is in use."""

    alarms: int
    soon: dict[float, int]
    medians: dict[float, str]

    @classmethod
    def by(cls, rule: Rule, sample: Sample, pool: Executor) -> "Growing":
        delays = {
            step: list(pool.map(partial(in_time, rule=rule), made, chunksize=5))
            for step, made in sample.steps.items()
        }
        calm = [values for values, _ in sample.calm]
        return cls(
            alarms=sum(pool.map(partial(ever, rule=rule), calm, chunksize=5)),
            soon={step: sum(0 < delay <= NEAR for delay in of) for step, of in delays.items()},
            medians={
                step: f"{np.median([delay for delay in of if delay]):.0f}" if any(of) else "-"
                for step, of in delays.items()
            },
        )

    def row(self, sample: Sample) -> str:
        size = len(sample.calm)
        seen = (f"{share(self.soon[step], size)} | {self.medians[step]}" for step in STEPS)
        return f"| {sample.kind} | {share(self.alarms, size)} | {' | '.join(seen)} |"


def targets(sample: Sample, whole: Detected, growing: Growing) -> Iterator[str]:
    """Yield a row for each target that holds for a kind of series."""
    kind, size = sample.kind, len(sample.calm)
    most = MOST_FALSE.get(kind)
    if most is None:
        return
    for how, alarms in (("whole", whole.false), ("as it grew", growing.alarms)):
        rate = alarms / size
        about = f"{kind}: series with any false alarm, {how}"
        yield f"| {about} | {rate:.1%} | ≤ {most:.0%} | {verdict(rate, most=most)} |"
    seen = (
        ("of its place, whole", whole.steps[0.10]),
        ("after it", growing.soon[0.10]),
    )
    for how, count in seen:
        rate = count / size
        about = f"{kind}: +10% found within {NEAR} points {how}"
        yield f"| {about} | {rate:.1%} | ≥ 98% | {verdict(rate, least=0.98)} |"
    for what, value in (("precision", whole.precision), ("recall", whole.recall)):
        about = f"{kind}: {what}, n = {LONG}"
        yield f"| {about} | {value:.2f} | ≥ 0.90 | {verdict(value, least=0.90)} |"


def table(given: argparse.Namespace, rule: Rule) -> list[str]:
    """Return the report's lines: the table of detectors, then the targets."""
    rows: list[str] = []
    grown: list[str] = []
    met: list[str] = []
    with ProcessPoolExecutor(given.jobs) as pool:

        def own(made: list[Made]) -> list[list[int]]:
            detect = partial(gradbench_shifts, rule=rule)
            return list(pool.map(detect, [values for values, _ in made], chunksize=10))

        others: dict[str, Detector] = {
            "ruptures": lambda made: [plain_ruptures(values) for values, _ in made]
        }
        if given.otava:
            others["otava"] = partial(otava, given.otava)
        for kind in KINDS:
            sample = Sample.drawn(kind, seed=given.seed, size=given.series)
            whole, growing = Detected.by(own, sample), Growing.by(rule, sample, pool)
            rows.append(whole.row(sample, "gradbench"))
            rows += [Detected.by(one, sample).row(sample, name) for name, one in others.items()]
            grown.append(growing.row(sample))
            met += targets(sample, whole, growing)
    oracle = bound(np.random.default_rng([given.seed, 99]), sd=0.05, step=0.10)
    return [
        "| series | detector | false alarm in 200 points | +5% found | +10% found "
        "| precision, n = 500 | recall |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        "Asked again at every commit, as it is in use (gradbench only):",
        "",
        f"| series | any false alarm in 200 commits | +5% seen within {NEAR} points "
        f"| median delay | +10% seen within {NEAR} points | median delay |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *grown,
        "",
        f"For scale: a CUSUM that knows level, noise (5%) and step (+10%), but not the moment, "
        f"sees {share(oracle, 1)} within {NEAR} points, with alarms in 5% of series without one.",
        "",
        "| target | value | asked | |",
        "| --- | ---: | ---: | --- |",
        *met,
    ]


BEGIN: Final = "<!-- begin: written by tools/history_quality.py --doc -->\n"
END: Final = "<!-- end -->"


def with_figures(text: str, figures: str) -> str:
    """Return the document with these figures in the place of those between the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit("the document has no place for the figures: see BEGIN and END")
    return f"{before}{begin}{figures}\n{end}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--series", type=int, default=400, help="of each kind")
    parser.add_argument("--rule", default="", help="name=value, comma separated")
    parser.add_argument("--otava", default="", metavar="PYTHON", help="a Python with apache-otava")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--doc", type=Path, help="put the figures into this document")
    given = parser.parse_args()

    kinds = {field.name: field.type for field in fields(Rule)}
    pairs = (pair.split("=") for pair in given.rule.split(",") if pair)
    rule = Rule(**{name: kinds[name](value) for name, value in pairs})  # type: ignore[operator] # int and float
    lines = table(given, rule)
    print("\n".join(lines))
    if given.doc is None:
        return
    how = (
        f"python tools/history_quality.py --seed {given.seed} --series {given.series}"
        + (" --otava …/bin/python" if given.otava else "")
        + f" --doc {given.doc}"
    )
    where = f"Python {platform.python_version()}, ruptures {metadata.version('ruptures')}" + (
        ", apache-otava " + _otava_version(given.otava) if given.otava else ""
    )
    said = f"{given.series} made-up series of each kind, printed by `{how}` ({where})."
    figures = "\n".join([said, "", *lines])
    given.doc.write_text(with_figures(given.doc.read_text("utf-8"), figures), "utf-8")


def _otava_version(python: str) -> str:
    code = "from importlib.metadata import version; print(version('apache-otava'))"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return answer.stdout.strip()


if __name__ == "__main__":
    main()
