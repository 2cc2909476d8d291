"""Settings of a process that a package may change and that change what a step does."""

import functools
import gc
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from .bindings import Bindings, described

OWN_ENVIRONMENT: Final = frozenset(("PYTHONPATH", "PYTHONHASHSEED", "GRADBENCH_PADDING"))
"""Variables that differ between the sides because the comparison sets them."""
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def settings(bindings: Bindings | None = None) -> Mapping[str, str]:
    """Return the process's settings that a package may change and that change what a step does."""
    return {
        **{name: _read(read) for name, read in _SETTINGS.items()},
        **(dict(bindings.changes()) if bindings is not None else {}),
        **{
            f"environment variable {name}": value
            for name, value in os.environ.items()
            if name not in OWN_ENVIRONMENT
        },
    }


def _read(read: Callable[[], object]) -> str:
    try:
        return _ADDRESS.sub("", str(read()))
    except Exception as error:  # noqa: BLE001 # a backend that is not there
        return type(error).__name__


def _global_hooks() -> dict[str, int]:
    module = torch.nn.modules.module
    return {
        name: len(hooks)
        for name, hooks in vars(module).items()
        if name.startswith("_global") and isinstance(hooks, dict)
    }


def _flushes_denormals() -> bool:
    return bool(torch.tensor(5e-324, dtype=torch.float64).mul(1).eq(0))


def _numpy_errors() -> object:
    numpy: Any = sys.modules.get("numpy")
    return numpy.geterr() if numpy is not None else None


def loggers() -> dict[str, logging.Logger]:
    """Return the process's loggers by name, of which the first is ``root``."""
    named = {
        name: logger
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
    }
    return {"root": logging.getLogger(), **named}


def _logging() -> dict[str, object]:
    """Return the loggers whose level, or whether they pass on, somebody has set."""
    return {
        name: (logger.level, logger.disabled, logger.propagate)
        for name, logger in sorted(loggers().items())
        if logger.level not in (logging.NOTSET, logging.WARNING)
        or logger.disabled
        or not logger.propagate
    } | {"disabled": logging.root.manager.disable}


_BACKENDS: Final = (
    *("mkldnn.enabled", "mkldnn.deterministic", "cudnn.enabled", "cudnn.benchmark"),
    *("cudnn.deterministic", "cudnn.allow_tf32", "cuda.matmul.allow_tf32", "opt_einsum.enabled"),
    *("cuda.matmul.allow_fp16_reduced_precision_reduction", "fp32_precision"),
    *("mkldnn.matmul.fp32_precision", "mkldnn.conv.fp32_precision"),
)
_ENABLED: Final = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")


def _backend(path: str) -> Callable[[], object]:
    return lambda: functools.reduce(getattr, path.split("."), torch.backends)


_SETTINGS: Final[Mapping[str, Callable[[], object]]] = {
    "number of threads": lambda: (torch.get_num_threads(), torch.get_num_interop_threads()),
    "cores": lambda: sorted(os.sched_getaffinity(0)),
    "niceness": lambda: os.getpriority(os.PRIO_PROCESS, 0),
    "recursion limit": sys.getrecursionlimit,
    "engine of quantized operators": lambda: torch.backends.quantized.engine,
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "float32 matmul precision": torch.get_float32_matmul_precision,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "grad mode": torch.is_grad_enabled,
    "anomaly detection": torch.is_anomaly_enabled,
    "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    "flushing of denormal numbers": _flushes_denormals,
    "warning filters": lambda: warnings.filters,
    "loggers": _logging,
    "numpy's handling of errors": _numpy_errors,
    "import hooks": lambda: [described(hook) for hook in sys.path_hooks],
    "fast path of attention": torch.backends.mha.get_fastpath_enabled,
    "hooks of all modules": _global_hooks,
    "garbage collector": lambda: (gc.get_threshold(), len(gc.callbacks)),
    "trace function": lambda: (sys.gettrace() is not None, sys.getprofile() is not None),
    "switch interval": sys.getswitchinterval,
    **{f"torch.backends.{path}": _backend(path) for path in _BACKENDS},
    **{f"torch.backends.cuda.{name}": getattr(torch.backends.cuda, name) for name in _ENABLED},
}
