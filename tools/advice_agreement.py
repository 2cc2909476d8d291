"""How often a study's verdicts contradict those of a full run, on every built-in model.

A verdict contradicts another where they are not equal and neither is ``inconclusive``. Exits 1 on
the first contradiction. It takes some minutes a model on a quiet machine.
"""

import sys
from tempfile import TemporaryDirectory

from gradbench import MODELS, Cell, Store, runner
from gradbench.advisor import Question, study
from gradbench.analysis.advice import FORGOTTEN, MODES, Advice
from gradbench.experiment.presets import PRESETS
from gradbench.records.advice import Study
from gradbench.stats.verdicts import Verdict

BATCH = 8
PAIRS = (*((mode, FORGOTTEN) for mode in MODES), MODES[::-1])
METERS = ("step_time", "peak_transient")


def main(names: list[str]) -> int:
    """Compare the models named, or all; print a line for each verdict that is not the same."""
    compared = open_ends = contradictions = 0
    for name in names or list(MODELS):
        cell = Cell(model=name, workload="inference", grad_mode=FORGOTTEN, batch_size=BATCH)
        with TemporaryDirectory() as folder:
            short = study(
                Question(cell=cell, model=MODELS[name]), Store(folder), say=lambda _: None
            )
            plan = PRESETS["full"].plan
            full = Store(folder).save(runner.run(short.cells, plan=plan, meters=METERS))
        views = Advice(short), Advice(Study(run=full, cells=short.cells))
        for mode, other in PAIRS:
            for meter in METERS:
                said = [view.verdict(mode, other, meter) for view in views]
                compared += 1
                open_ends += Verdict.INCONCLUSIVE in said
                if said[0] != said[1] and Verdict.INCONCLUSIVE not in said:
                    contradictions += 1
                    print(
                        f"{name}: {meter} of {mode} against {other}: {said[0]}, in full {said[1]}"
                    )
    print(f"{compared} verdicts compared: {contradictions} contradict, {open_ends} inconclusive")
    return 1 if contradictions else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
