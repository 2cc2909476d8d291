"""What PyTorch's grad modes cost, in memory and in time, on your model and your machine."""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import GradbenchError as GradbenchError
from .matrix import Cell as Cell, Matrix as Matrix
from .plan import Plan as Plan
from .presets import PRESETS as PRESETS
from .records import (
    Breakdown as Breakdown,
    Ended as Ended,
    Environment as Environment,
    Measurement as Measurement,
    Skipped as Skipped,
    Started as Started,
)
from .store import Run as Run, Store as Store

if TYPE_CHECKING:
    from .estimates import Estimate as Estimate
    from .meters import METERS as METERS
    from .models import MODELS as MODELS, Model as Model
    from .modes import MODES as MODES
    from .report import Report as Report, render as render
    from .runner import Progress as Progress, run as run
    from .tables import changes as changes, rounds as rounds, summary as summary
    from .workloads import WORKLOADS as WORKLOADS

# Public name -> the module that has it, for names whose modules import torch or pandas:
# `import gradbench` costs neither.
_LAZY = {
    "Estimate": "estimates",
    "METERS": "meters",
    "MODELS": "models",
    "MODES": "modes",
    "Model": "models",
    "Progress": "runner",
    "Report": "report",
    "WORKLOADS": "workloads",
    "changes": "tables",
    "render": "report",
    "rounds": "tables",
    "run": "runner",
    "summary": "tables",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LAZY[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
