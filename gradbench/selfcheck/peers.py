"""The same questions put to other tools: torch's Timer and pytest-benchmark."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files

from scipy import stats

from .. import own_python, scratch
from ..experiment.plan import Plan
from ..process_end import how_it_ended
from ..process_tree import ProcessTree
from ..records.selfcheck import Check
from ..runner.processes import Processes
from ..workloads.models import MODELS
from . import trials
from .effort import ALPHA, LIMIT_S, TINY, Effort, paired_ratio


def peers(server: Processes, effort: Effort) -> Iterator[Check]:
    """Yield how often each tool calls equal work different, and finds injected work."""
    injections = [0.0, 0.02]
    plan = Plan(budget_s=0.5)
    calls: dict[str, dict[float, list[bool]]] = {
        "Timer": {},
        "pytest-benchmark": {},
        "gradbench": {},
    }
    for injected, base, variant in server.run(
        trials.timer_trials,
        TINY,
        MODELS["mlp_tiny"],
        plan,
        injections,
        effort.peers,
        limit_s=LIMIT_S,
    ):
        calls["Timer"].setdefault(injected, []).append(differ(base, variant))
    for injected, base, variant in _pytest_trials(effort.peers, plan.budget_s / 2, injections):
        calls["pytest-benchmark"].setdefault(injected, []).append(differ(base, variant))
    unhurried = replace(plan, precision_short=1e-9, max_rounds=1_000_000)
    for trial in server.run(
        trials.compare_with_itself,
        TINY,
        MODELS["mlp_tiny"],
        unhurried,
        injections,
        effort.peers,
        limit_s=LIMIT_S,
    ):
        assert isinstance(trial, trials.Trial)
        ratio = paired_ratio(trial)
        different = not ratio.low <= 1 <= ratio.high
        calls["gradbench"].setdefault(trial.injected, []).append(different)
    for tool, answers in calls.items():
        rule = (
            "95% interval" if tool == "gradbench" else "Welch's t test at 5%, two runs in sequence"
        )
        for injected, called in answers.items():
            question = (
                "A/A called different" if injected == 0 else f"+{injected:.0%} called different"
            )
            yield Check(
                f"side by side, {tool}: {question}",
                sum(called) / len(called),
                "share",
                f"{sum(called)} of {len(called)} in {plan.budget_s:g} s each, tiny MLP; {rule}",
            )


def differ(base: Sequence[float], variant: Sequence[float]) -> bool:
    """Return whether Welch's t test at 5% calls two samples of times different."""
    return bool(stats.ttest_ind(base, variant, equal_var=False).pvalue < ALPHA)


def _pytest_trials(
    count: int, seconds: float, injections: Sequence[float]
) -> Iterator[tuple[float, list[float], list[float]]]:
    """Run pytest-benchmark as its users do, in a session of its own, and yield its raw rounds."""
    with scratch.folder() as folder:
        peer_tests = files(__package__).joinpath("peer_benchmarks.py")
        (folder / "test_peer.py").write_text(peer_tests.read_text("utf-8"), "utf-8")
        answer = folder / "answer.json"
        asked = json.dumps({"count": count, "injections": list(injections)})
        command = [
            *own_python.python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_peer.py"),
            f"--benchmark-json={answer}",
            "--benchmark-save-data",
            "--benchmark-autosave",
            f"--benchmark-max-time={seconds}",
            f"--benchmark-storage={folder}",
        ]
        log = folder / "log"
        environment = {**os.environ, "GRADBENCH_PEER": asked}
        with (
            log.open("wb") as file,
            ProcessTree(command, cwd=folder, env=environment, stdout=file, stderr=file) as process,
        ):
            code = process.wait()
        if code:
            raise RuntimeError(how_it_ended(code, log.read_text("utf-8", errors="replace")))
        rows = json.loads(answer.read_text("utf-8"))["benchmarks"]
    sides = {
        (row["extra_info"]["trial"], row["extra_info"]["injected"], row["extra_info"]["side"]): row[
            "stats"
        ]["data"]
        for row in rows
    }
    for trial in range(count):
        for injected in injections:
            yield injected, sides[trial, injected, "base"], sides[trial, injected, "variant"]
