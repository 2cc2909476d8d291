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
    from . import semantics as semantics
    from .callables import compare as compare
    from .estimates import Estimate as Estimate
    from .foretold import Fit as Fit, Prediction as Prediction
    from .memory.predict import Predictor as Predictor
    from .memory.usage import Usage as Usage, memory_usage as memory_usage
    from .meters import METERS as METERS
    from .models import MODELS as MODELS, Model as Model
    from .modes import MODES as MODES
    from .observation import Observation as Observation, observe as observe
    from .report import Report as Report, render as render
    from .runner import Progress as Progress, run as run
    from .tables import (
        breakdowns as breakdowns,
        changes as changes,
        rounds as rounds,
        scaling as scaling,
        summary as summary,
    )
    from .workloads import WORKLOADS as WORKLOADS

# Public name -> the module that has it, for names whose modules import torch or pandas:
# `import gradbench` costs neither. "" where the name is a package of its own.
_LAZY = {
    "Estimate": "estimates",
    "Fit": "foretold",
    "METERS": "meters",
    "MODELS": "models",
    "MODES": "modes",
    "Model": "models",
    "Observation": "observation",
    "Prediction": "foretold",
    "Predictor": "memory.predict",
    "Progress": "runner",
    "Report": "report",
    "Usage": "memory.usage",
    "WORKLOADS": "workloads",
    "breakdowns": "tables",
    "changes": "tables",
    "compare": "callables",
    "memory_usage": "memory.usage",
    "observe": "observation",
    "render": "report",
    "rounds": "tables",
    "run": "runner",
    "scaling": "tables",
    "semantics": "",
    "summary": "tables",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LAZY[name] or name}", __name__)
    return getattr(module, name) if _LAZY[name] else module


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
