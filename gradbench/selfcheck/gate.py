"""Proof on this machine that a gate can tell: the same must come out same, faults must be found."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from .. import runner
from ..experiment.matrix import Matrix
from ..experiment.plan import Plan
from ..gate import decide
from ..gate.result import GateResult
from ..plurals import counted
from ..records.measurements import Environment
from ..records.run import Run
from ..records.selfcheck import Check
from ..runner.bench import Bench
from ..stats.verdicts import Verdict
from ..workloads.models import MODELS
from .faults import Retaining, Saving, Slowed, injected

MODEL: Final = "mlp_tiny"
METERS: Final = ("step_time", "peak_allocated", "peak_transient", "saved_for_backward")
PLAN: Final = Plan(budget_s=1.0, warmup_s=0.1, limit_s=60)


def prove(say: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """Measure a model twice, slowed down, and retaining its graph; yield what the gate says."""
    plain = MODELS[MODEL]
    asked = {
        "as it is": plain,
        "once more": plain,
        "slowed down to half its speed": injected(plain, Slowed),
        "while it retains its last graph": injected(plain, Retaining),
        "with one more tensor saved": injected(plain, Saving),
    }
    runs = {}
    with Bench(plan=PLAN, models=asked, meters=METERS) as bench:
        here = bench.environment(["cpu"])
        for name in asked:
            say(f"measuring a model {name}")
            runs[name] = measure(bench, name, here)
    base, *others = runs.values()
    again, slow, retaining, saving = (decide.decide([base], [other]) for other in others)
    yield _share("A/A: bytes come out same", again, _exact, Verdict.SAME)
    yield _share("A/A: times come out same", again, _timed, Verdict.SAME)
    yield _share("half the speed: times come out worse", slow, _timed, Verdict.WORSE)
    yield _share(
        "a retained graph: the peak comes out worse",
        retaining,
        lambda meter, mode: meter == "peak_allocated" and mode == "global_on",
        Verdict.WORSE,
    )
    yield _share(
        "4 KiB more saved: bytes saved come out worse",
        saving,
        lambda meter, mode: meter == "saved_for_backward" and mode == "global_on",
        Verdict.WORSE,
    )


def measure(bench: Bench, name: str, here: Environment) -> Run:
    """Measure under the fault's name; return a run in which the model has one name for all."""
    cells = list(Matrix(models=[name], batch_sizes=[8]))
    outcomes = [
        replace(outcome, cell=replace(outcome.cell, model=MODEL))
        for outcomes in bench.measure(cells)
        for outcome in outcomes
    ]
    named = [replace(cell, model=MODEL) for cell in cells]
    first = runner.started(named, plan=PLAN, meters=METERS)
    return Run(name, (first, here, *outcomes), sealed=True)


def _exact(meter: str, _mode: str) -> bool:
    return meter in METERS and meter != "step_time"


def _timed(meter: str, _mode: str) -> bool:
    return meter == "step_time"


def _share(
    name: str, decision: GateResult, about: Callable[[str, str], bool], wanted: Verdict
) -> Check:
    verdicts = [j for j in decision.figure_verdicts if about(j.meter, j.cell.grad_mode)]
    right = [j for j in verdicts if j.verdict is wanted]
    wrong = [
        f"{j.cell.grad_mode} {j.meter} {j.verdict}: {j.reason}" for j in verdicts if j not in right
    ]
    return Check(
        name,
        len(right) / len(verdicts) if verdicts else 0.0,
        "share",
        f"{len(right)} of {counted(len(verdicts), 'figure')}" + (f"; {wrong[0]}" if wrong else ""),
        "100%",
        bool(verdicts) and not wrong,
    )
