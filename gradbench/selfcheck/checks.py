"""Validates the measurement on the user's machine: A/A tests, injected slowdowns, arithmetic."""

import json
import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import psutil
from scipy import stats

from .. import output_files, own_python
from ..experiment.matrix import GRAD_MODES, Matrix
from ..experiment.plan import Plan
from ..plurals import counted
from ..process_tree import ProcessTree
from ..records.measurements import Measurement, Skipped
from ..records.selfcheck import OPENING, Check
from ..runner import host_system, processes
from ..runner.bench import Bench
from ..runner.environment import capture
from ..runner.fork_server import MallocProfile
from ..runner.processes import Processes
from ..stats.estimates import Estimate
from ..workloads.models import MODELS
from . import trials
from .effort import CNN, LIMIT_S, TINY, Effort, Subject, paired_ratio
from .peers import peers

HOSTILE_MIB: Final = 64
ENOUGH: Final = 200  # trials from which a share is judged as it is; below, by its own interval


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the trials of one injection came to."""

    injected: float
    trials: int
    detected: int  # intervals that exclude 1 (of A/A: false alarms)
    half_width: float  # median over trials
    estimate: float  # median over trials of the estimated effect


def run(
    effort: Effort, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Check], dict[str, Any]]:
    """Run every check; return them and the environment they were run in."""
    checks: list[Check] = []
    load_before = psutil.getloadavg()[0]
    server = processes.start("time")
    try:
        for subject in effort.subjects:
            more = sum(subject.injected.values())
            say(f"{subject.name}: {subject.equal} A/A trials, {more} injected")
            checks += _trials(server, subject, "")
        for subject in effort.neighbour:
            say(f"{subject.name} beside a memory-thrashing neighbour: {subject.equal} A/A trials")
            with thrashing():
                checks += _trials(server, subject, " beside a memory-thrashing neighbour")
        say("memory against arithmetic")
        checks += list(_memory())
        say("the timing loop's own cost")
        checks += list(_overhead(server))
        say("interleaved against long separate blocks")
        checks.append(_bias(server, effort))
        say("torch.utils.benchmark.Timer on the same step")
        checks.append(_agreement(server, effort))
        say("identical processes, alive together")
        checks += list(_processes(effort))
        say("the same questions to Timer and pytest-benchmark, in sequence")
        checks += list(peers(server, effort))
    finally:
        server.close()
    facts = dict(capture(["cpu"]).facts)
    facts |= {
        "load_before": round(load_before, 2),
        "load_after": round(psutil.getloadavg()[0], 2),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return checks, facts


def save(checks: Sequence[Check], facts: dict[str, Any], path: Path) -> None:
    """Write checks and environment as JSON."""
    content = {"facts": facts, "checks": [asdict(check) for check in checks]}
    text = json.dumps(content, indent=1)
    output_files.write(path, text.encode("utf-8"), like=OPENING, what="self-check")


def summarise(injected: float, ratios: Sequence[Estimate]) -> Outcome:
    """Return what the trials of one injection came to."""
    return Outcome(
        injected,
        len(ratios),
        sum(not ratio.low <= 1 <= ratio.high for ratio in ratios),
        statistics.median(ratio.half_width for ratio in ratios),
        statistics.median(ratio.point for ratio in ratios) - 1,
    )


def _trials(server: Processes, subject: Subject, where: str) -> Iterator[Check]:
    ratios: dict[float, list[Estimate]] = {}
    wanted = {0.0: subject.equal, **subject.injected}
    plan = Plan(
        budget_s=subject.trial_s,
        precision_short=1e-9,
        precision_long=1e-9,
        max_rounds=1_000_000,
        min_rounds=6,
        limit_s=LIMIT_S,
    )
    seed = 0
    while any(len(ratios.get(injected, [])) < count for injected, count in wanted.items()):
        left = {i: n - len(ratios.get(i, [])) for i, n in wanted.items()}
        asked = [injected for injected, count in left.items() if count > 0]
        count = min(10, *(left[injected] for injected in asked))
        for trial in server.run(  # a fresh process every few trials: layout is part of the noise
            trials.compare_with_itself,
            subject.cell,
            MODELS[subject.cell.model],
            replace(plan, seed=seed),
            asked,
            count,
            limit_s=LIMIT_S,
        ):
            assert isinstance(trial, trials.Trial)
            ratios.setdefault(trial.injected, []).append(paired_ratio(trial))
        seed += 1
    for injected, estimates in sorted(ratios.items()):
        yield _subject_check(subject, summarise(injected, estimates), where)
    widths = [ratio.half_width for estimates in ratios.values() for ratio in estimates]
    yield _width(subject, widths, where)


def _width(subject: Subject, widths: Sequence[float], where: str) -> Check:
    target, width = subject.half_width, statistics.median(widths)
    return Check(
        f"half-width: {subject.name}, {subject.trial_s:g} s{where}",
        width,
        "share",
        f"median over {len(widths)} trials",
        f"<= {target:.1%}" if target is not None else "",
        width <= target if target is not None else None,
    )


def _subject_check(subject: Subject, outcome: Outcome, where: str) -> Check:
    share = outcome.detected / outcome.trials
    low, high = stats.binomtest(outcome.detected, outcome.trials).proportion_ci(method="wilson")
    name = f"{subject.name}, {subject.trial_s:g} s{where}"
    detail = (
        f"{outcome.detected} of {outcome.trials} intervals exclude 1 "
        f"[{low:.1%}, {high:.1%}]; half-width {outcome.half_width:.2%}"
    )
    if outcome.injected == 0:
        enough = outcome.trials >= ENOUGH
        return Check(
            f"A/A false alarms: {name}",
            share,
            "share",
            detail,
            target="2-7% (nominal 5%)" if enough else "lower end <= 7% (nominal 5%)",
            passed=0.02 <= share <= 0.07 if enough else bool(low <= 0.07),
        )
    off = outcome.estimate - outcome.injected
    return Check(
        f"+{outcome.injected:.1%} detected: {name}",
        share,
        "share",
        f"{detail}; estimated {outcome.estimate:+.2%}, error {off * 100:+.2f} points",
        target=">= 95%" if outcome.injected in (0.005, 0.02) else "",
        passed=share >= 0.95 if outcome.injected in (0.005, 0.02) else None,
    )


def _memory() -> Iterator[Check]:
    widths, batch = [64] * 9 + [10], 8
    cells = list(Matrix(models=["mlp_tiny"], batch_sizes=[batch]))
    meters = ["peak_allocated", "peak_transient", "saved_for_backward"]
    name, target = "memory: mlp_tiny forward against arithmetic", "0 B"
    with Bench(plan=Plan(), meters=meters) as bench:
        outcomes = [outcome for some in bench.measure(cells) for outcome in some]
    without = [one for one in outcomes if isinstance(one, Skipped)]
    if without:
        why = f"{without[0].cell} {without[0].meter}: {without[0].reason}"
        yield Check(name, None, "bytes", why, target, passed=False)
        return
    read = {
        (one.cell.grad_mode, one.meter): one.values[0]
        for one in outcomes
        if isinstance(one, Measurement)
    }
    hidden = sum(widths[1:-1])
    resident = 4 * sum(a * b + b for a, b in pairwise(widths)) + batch * (4 * widths[0] + 8)
    off = []
    for mode in GRAD_MODES:
        records = mode == "global_on"
        transient = 4 * batch * (hidden + widths[-2] if records else 2 * widths[-2])
        off += [
            read[mode, "peak_transient"] - transient,
            read[mode, "peak_allocated"] - resident - transient,
            read[mode, "saved_for_backward"] - (4 * batch * hidden if records else 0),
        ]
    yield Check(
        name,
        float(max(map(abs, off))),
        "bytes",
        f"largest error of {counted(len(off), 'figure')} in four modes",
        target,
        not any(off),
    )


def _overhead(server: Processes) -> Iterator[Check]:
    ((each, batch),) = server.run(trials.overheads, limit_s=LIMIT_S)
    yield Check("loop overhead a call", float(each), "ns", "beyond the call", "<= 5 ns", each <= 5)
    yield Check(
        "loop overhead a batch", float(batch), "ns", "two clock readings", "<= 100 ns", batch <= 100
    )


def _bias(server: Processes, effort: Effort) -> Check:
    cells = [replace(TINY, grad_mode=mode) for mode in ("no_grad", "global_on")]
    plan = Plan(budget_s=effort.bias_s, precision_short=1e-9, max_rounds=1_000_000)
    (answer,) = server.run(
        trials.interleaved_and_separate, cells, MODELS["mlp_tiny"], plan, 20, limit_s=LIMIT_S
    )
    together, apart = map(paired_ratio, answer)
    difference = abs(together.point - apart.point)
    return Check(
        "bias of interleaving: global_on / no_grad, tiny MLP",
        difference,
        "points",
        f"{_with_interval(together)} interleaved, {_with_interval(apart)} in "
        f"{counted(apart.rounds, 'pair')} of long separate blocks",
        "<= 0.5 points",
        difference <= 0.005,
    )


def _with_interval(ratio: Estimate) -> str:
    return f"{ratio.point:.4f} [{ratio.low:.4f}, {ratio.high:.4f}]"


def _agreement(server: Processes, effort: Effort) -> Check:
    plan = Plan(budget_s=0.25)
    pairs = list(
        server.run(
            trials.against_timer, TINY, MODELS["mlp_tiny"], plan, effort.turns, limit_s=LIMIT_S
        )
    )
    ratio = statistics.median(own_ns / timer_ns for own_ns, timer_ns in pairs)
    return Check(
        "difference from torch.utils.benchmark.Timer",
        abs(ratio - 1),
        "share",
        f"our median step / Timer's is {ratio:.4f}, {len(pairs)} turns",
        "<= 2%",
        abs(ratio - 1) <= 0.02,
    )


def _processes(effort: Effort) -> Iterator[Check]:
    kinds: tuple[tuple[MallocProfile, str], ...] = (
        ("time", "pinned malloc"),
        ("system", "default malloc"),
    )
    for kind, name in kinds:
        if not host_system.here().forks:
            why = "processes are kept alive by forking one, which this system cannot"
            yield Check.unreadable(f"identical live processes, sd: {name}", why)
            continue
        server = processes.start(kind)
        try:
            (medians,) = server.run(
                trials.live_processes,
                CNN,
                MODELS[CNN.model],
                Plan(),
                effort.processes,
                effort.turns,
                limit_s=LIMIT_S,
            )
        finally:
            server.close()
        logs = [math.log(value) for value in medians]
        spread = statistics.stdev(logs)
        pinned = kind == "time"
        yield Check(
            f"identical live processes, sd: {name}",
            spread,
            "share",
            f"{counted(effort.processes, 'process')} of the small CNN, {effort.turns} turns each",
            "<= 1%" if pinned else "",
            spread <= 0.01 if pinned else None,
        )


@contextmanager
def thrashing() -> Iterator[None]:
    """Keep another process copying memory, on the cores that timed steps are not pinned to."""
    cores = host_system.usable_cores()
    others = cores[:-1] or cores
    copies = f"a = bytearray({HOSTILE_MIB} << 20); b = bytearray(a)\nwhile True: b[:] = a"
    command = own_python.calling(host_system.__name__, f"bind({others}); {copies}")
    with ProcessTree(command, env={**os.environ, own_python.VARIABLE: own_python.loading_path()}):
        yield
