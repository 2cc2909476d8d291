"""How often the verdicts of a study contradict those of a full run, on built-in models.

    python tools/advice_agreement.py --doc docs/advise.md          # every model, minutes each
    python tools/advice_agreement.py mlp_tiny cnn_small --budget 5

A verdict contradicts another where they are not equal and neither is ``inconclusive``. Exits 1 if
any does. A full run is the plan of the preset ``full``, or of another budget.
"""

import argparse
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gradbench import MODELS, Cell, Store, runner
from gradbench.advisor.study import PLAN
from gradbench.analysis.advice import FORGOTTEN, MODES, Advice
from gradbench.experiment.matrix import GRAD_MODES
from gradbench.experiment.plan import Plan
from gradbench.experiment.presets import PRESETS
from gradbench.records.advice import Study
from gradbench.stats.verdicts import Verdict

BATCH = 8
PAIRS = (*((mode, FORGOTTEN) for mode in MODES), MODES[::-1])
METERS = ("step_time", "peak_transient")
BEGIN, END = "<!-- tools/advice_agreement.py -->\n", "<!-- end -->"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the two runs of one model say."""

    name: str
    advised: tuple[tuple[str, ...], tuple[str, ...]]  # modes, by the study and by the full run
    verdicts: tuple[tuple[Verdict | None, Verdict | None], ...]
    floors: tuple[float, float]

    @property
    def contradictions(self) -> int:
        """Verdicts of which both are sure, and that are not the same."""
        return sum(a != b and Verdict.INCONCLUSIVE not in (a, b) for a, b in self.verdicts)

    @property
    def open_ends(self) -> int:
        """Verdicts of which one is not sure."""
        return sum(Verdict.INCONCLUSIVE in pair for pair in self.verdicts)

    @property
    def row(self) -> str:
        """The model's row of the table."""
        study, full = (" or ".join(modes) for modes in self.advised)
        small, large = (f"{floor:.1%}" for floor in self.floors)
        return (
            f"| {self.name} | {study} | {full} | {len(self.verdicts)} | {self.open_ends} "
            f"| {self.contradictions} | {small} | {large} |"
        )


def advice(name: str, plan: Plan) -> Advice:
    """Measure a model's block by a plan; return what it advises."""
    cells = tuple(
        Cell(model=name, workload="inference", grad_mode=mode, batch_size=BATCH)
        for mode in GRAD_MODES
    )
    with TemporaryDirectory() as folder:
        run = Store(folder).save(runner.run(cells, plan=plan, meters=METERS))
    return Advice(Study(run=run, cells=cells))


def agreements(names: list[str], plan: Plan) -> Iterator[Agreement]:
    """Yield what the study's plan and another say of each model."""
    for name in names:
        views = advice(name, PLAN), advice(name, plan)
        one, other = views
        yield Agreement(
            name,
            (one.modes, other.modes),
            tuple(
                (one.verdict(*pair, meter), other.verdict(*pair, meter))
                for pair in PAIRS
                for meter in METERS
            ),
            (one.floor(), other.floor()),
        )


def table(found: list[Agreement], plan: Plan, command: str) -> str:
    """Return the lines that stand in the docs."""
    total = sum(len(one.verdicts) for one in found)
    contradict = sum(one.contradictions for one in found)
    open_ends = sum(one.open_ends for one in found)
    lines = [
        f"Printed by `{command}` on {datetime.now(UTC):%Y-%m-%d} (torch {torch.__version__}, "
        f"Python {platform.python_version()}, inference at batch {BATCH}; {PLAN.budget_s:g} s of "
        f"timing a study, {plan.budget_s:g} s a full run): {total} verdicts, of time and memory, "
        f"between three pairs of modes; {contradict} contradict, {open_ends} are inconclusive in "
        "one of the two.",
        "",
        "| model | a study advises | a full run advises | verdicts | inconclusive in one "
        "| contradict | noise floor | in full |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(one.row for one in found),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(MODELS), help="or all that are built in")
    parser.add_argument("--budget", type=float, help="seconds of timing of a full run's block")
    parser.add_argument("--doc", type=Path, help="put the table into this page, too")
    given = parser.parse_args()
    plan = PRESETS["full"].plan
    plan = replace(plan, budget_s=given.budget) if given.budget else plan
    found = []
    for one in agreements(given.models, plan):
        found.append(one)
        print(one.row, flush=True)
    command = f"python {' '.join(sys.argv)}"
    text = table(found, plan, command)
    print(text)
    if given.doc is not None:
        page = given.doc.read_text("utf-8")
        between = re.compile(f"(?<={BEGIN}).*?(?={END})", re.DOTALL)
        given.doc.write_text(between.sub(lambda _: f"\n{text}\n", page), "utf-8")
    return 1 if any(one.contradictions for one in found) else 0


if __name__ == "__main__":
    sys.exit(main())
