"""How thorough a self-check is: its subjects, trials and repetitions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from ..experiment.matrix import Cell
from ..stats import estimates
from ..stats.estimates import Estimate
from . import trials

LIMIT_S: Final = 7200.0


ALPHA: Final = 0.05


@dataclass(frozen=True, slots=True)
class Subject:
    """What is asked: a cell, seconds a trial, and how many trials of each injection."""

    name: str
    cell: Cell
    trial_s: float
    equal: int  # A/A trials
    injected: Mapping[float, int] = field(default_factory=dict)  # fraction of work -> trials
    half_width: float | None = None  # the target, if this subject has one


@dataclass(frozen=True, slots=True)
class Effort:
    """How thorough to be."""

    subjects: tuple[Subject, ...]
    neighbour: tuple[Subject, ...]
    peers: int  # trials of pytest-benchmark and Timer
    processes: int
    turns: int
    bias_s: float

    @property
    def trials_s(self) -> float:
        """How long all trials take together, their warm-up and everything else left out."""
        return sum(
            subject.trial_s * (subject.equal + sum(subject.injected.values()))
            for subject in (*self.subjects, *self.neighbour)
        )


def _cell(model: str, batch_size: int) -> Cell:
    return Cell(model=model, workload="inference", grad_mode="no_grad", batch_size=batch_size)


TINY, WIDE, CNN = _cell("mlp_tiny", 1), _cell("mlp_wide", 8), _cell("cnn_small", 8)


QUICK: Final = Effort(
    subjects=(
        Subject("tiny MLP", TINY, 0.25, 60, {0.01: 12, 0.02: 12, 0.05: 12}),
        Subject("small CNN", CNN, 1.0, 12, {0.05: 6}),
    ),
    neighbour=(),
    peers=6,
    processes=4,
    turns=8,
    bias_s=3.0,
)


THOROUGH: Final = Effort(
    subjects=(
        Subject("tiny MLP", TINY, 0.4, 200),
        Subject("tiny MLP", TINY, 1.0, 0, {0.005: 40, 0.01: 8, 0.05: 8}, half_width=0.001),
        Subject("wide MLP", WIDE, 0.6, 200),
        Subject("small CNN", CNN, 0.6, 200),
        Subject("small CNN", CNN, 8.0, 0, {0.02: 20}, half_width=0.01),
    ),
    neighbour=(Subject("tiny MLP", TINY, 0.25, 200), Subject("small CNN", CNN, 0.6, 80)),
    peers=10,
    processes=12,
    turns=10,
    bias_s=8.0,
)


def paired_ratio(trial: "trials.Trial") -> Estimate:
    """Return the ratio of a trial's variant to its base."""
    base, variant = (np.asarray(side, dtype=np.float64) for side in trial.batch_ns)
    return estimates.paired_ratio(variant, base)
