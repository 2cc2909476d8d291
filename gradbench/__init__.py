"""What PyTorch's grad modes cost, in memory and in time, on your model and your machine."""

from importlib import import_module

TYPE_CHECKING = False  # as type checkers read it; importing typing takes its time

if TYPE_CHECKING:
    from . import semantics as semantics
    from ._version import __version__ as __version__
    from .advisor import Advised as Advised, advise as advise
    from .analysis.dataframes import (
        breakdowns as breakdowns,
        changes as changes,
        rounds as rounds,
        scaling as scaling,
        summary as summary,
    )
    from .comparison.callables import compare as compare
    from .errors import GradbenchError as GradbenchError
    from .experiment.matrix import Cell as Cell, Matrix as Matrix
    from .experiment.plan import Plan as Plan
    from .experiment.presets import PRESETS as PRESETS
    from .memory.predict import Predictor as Predictor
    from .memory.usage import Usage as Usage, memory_usage as memory_usage
    from .observation import Observation as Observation, observe as observe
    from .records.measurements import (
        Breakdown as Breakdown,
        Ended as Ended,
        Environment as Environment,
        Measurement as Measurement,
        Skipped as Skipped,
        Started as Started,
    )
    from .records.predictions import Fit as Fit, Prediction as Prediction
    from .records.run import Run as Run
    from .report import Report as Report, render as render
    from .runner import Progress as Progress, run as run
    from .runner.meters import METERS as METERS
    from .stats.estimates import Estimate as Estimate
    from .store.jsonl import Store as Store
    from .workloads.generation import Generation as Generation
    from .workloads.grad_modes import MODES as MODES
    from .workloads.models import MODELS as MODELS, Model as Model
    from .workloads.steps import WORKLOADS as WORKLOADS
    from .workloads.trees import Batch as Batch

# Public name -> the module that has it: `import gradbench` costs nothing, torch and pandas least of
# all, and Ctrl-C in the first moments of a command meets no import. "" where the name is a package.
_LAZY = {
    "Advised": "advisor",
    "Batch": "workloads.trees",
    "Breakdown": "records.measurements",
    "Cell": "experiment.matrix",
    "Ended": "records.measurements",
    "Environment": "records.measurements",
    "Generation": "workloads.generation",
    "GradbenchError": "errors",
    "Matrix": "experiment.matrix",
    "Measurement": "records.measurements",
    "PRESETS": "experiment.presets",
    "Plan": "experiment.plan",
    "Run": "records.run",
    "Skipped": "records.measurements",
    "Started": "records.measurements",
    "Store": "store.jsonl",
    "Estimate": "stats.estimates",
    "Fit": "records.predictions",
    "METERS": "runner.meters",
    "MODELS": "workloads.models",
    "MODES": "workloads.grad_modes",
    "Model": "workloads.models",
    "Observation": "observation",
    "Prediction": "records.predictions",
    "Predictor": "memory.predict",
    "Progress": "runner",
    "Report": "report",
    "Usage": "memory.usage",
    "WORKLOADS": "workloads.steps",
    "__version__": "_version",
    "advise": "advisor",
    "breakdowns": "analysis.dataframes",
    "changes": "analysis.dataframes",
    "compare": "comparison.callables",
    "memory_usage": "memory.usage",
    "observe": "observation",
    "render": "report",
    "rounds": "analysis.dataframes",
    "run": "runner",
    "scaling": "analysis.dataframes",
    "semantics": "",
    "summary": "analysis.dataframes",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f".{_LAZY[name] or name}", __name__)
    return getattr(module, name) if _LAZY[name] else module


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
