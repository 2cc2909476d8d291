"""What a tree's code leaves in what two trees in one process would share; then they cannot.

A process that holds one tree looks at itself after the first steps: at compiled modules and
operators that the tree has registered, at its functions in others' modules, at what others' modules
and classes have under other names than before, and at settings. A worker loads this package by its
folder, so it uses torch, the standard library and itself alone.
"""

import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from .bindings import Bindings as Bindings
from .modules import Code as Code, is_others
from .places_of_code import strangers
from .process_settings import OWN_ENVIRONMENT as OWN_ENVIRONMENT, loggers, settings as settings
from .registrations import Registrations as Registrations, frames_compiled as frames_compiled


def obstacles(code: Code, registrations: Registrations, bindings: Bindings) -> Iterator[str]:
    """Yield in words what of the tree's two versions could not both be in one process.

    ``bindings`` are those before the tree was imported: nothing that had a name then is its code,
    and no thread that ran then is its own.
    """
    code.modules.update(
        (name, module) for name, module in list(sys.modules.items()) if code.owns(name, module)
    )
    for name in code.extensions():
        yield f"{name} is a compiled extension"
    for name in _libraries(code):
        yield f"it loads {name}, a compiled library"
    for what in dict.fromkeys(registrations.found):
        yield f"it calls {what}, which registers for the whole process"
    for mode in _modes():
        yield f"it enters {mode} for the whole process"
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread not in bindings.threads:
            yield f"its thread {thread.name} goes on beside the steps, of both sides"
    if frames_compiled() > registrations.frames_before:
        yield "it uses torch.compile, which keeps one cache of code and guards for a whole process"
    for name in _logged(code):
        yield f"it adds a handler or a filter to the logger {name}, which both sides would use"
    for place in strangers(code, bindings.known()):
        yield f"it puts its own code into {place}"


def outside(code: Code) -> Mapping[str, str]:
    """Return the modules whose files do not lie in the tree, with these, by name.

    What stands in a module's place may have a name of its own choice for a file: torch.classes has.
    """
    files = {
        name: getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if is_others(name, module)
    }
    return {
        name: file
        for name, file in files.items()
        if isinstance(file, str)
        and Path(file).is_absolute()
        and (not code.holds(file) or code.leads_out(file))
    }


def _libraries(code: Code) -> list[str]:
    """Return the compiled files of the tree's that are loaded and are no modules."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:  # not Linux
        return []
    mapped = dict.fromkeys(line.partition("/")[2] for line in lines if " r-xp " in line)
    modules = {getattr(module, "__file__", None) for module in code.modules.values()}
    return [
        Path(file).name
        for file in (f"/{rest}" for rest in mapped if rest)
        if file not in modules and code.holds(file)
    ]


def _modes() -> list[str]:
    """Return the names of modes that stand around everything, but for the default device's."""
    functions: Any = torch.overrides
    dispatch: Any = torch.utils._python_dispatch
    entered = [
        *_called(functions, "_get_current_function_mode_stack"),
        *_called(dispatch, "_get_current_dispatch_mode_stack"),
    ]
    names = [type(one).__name__ for one in entered if type(one).__name__ != "DeviceContext"]
    top: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return [*names, *(["saved_tensors_hooks"] if top is not None and top(True) else [])]


def _called(module: Any, name: str) -> list[object]:
    return list(getattr(module, name, list)())  # of torch's own, which may be elsewhere one day


def _logged(code: Code) -> list[str]:
    """Return the tree's loggers with handlers or filters that do something."""
    own = {name.partition(".")[0] for name in code.modules}
    return [
        name
        for name, logger in loggers().items()
        if name.partition(".")[0] in own
        and (
            logger.filters
            or any(type(handler) is not logging.NullHandler for handler in logger.handlers)
        )
    ]
