"""What a tree's code leaves in what two trees in one process would share; then they cannot.

A process that holds one tree looks at itself after the first steps: at compiled modules and
operators that the tree has registered, at its functions in others' modules, at what others' modules
and classes have under other names than before, and at settings. A worker loads this by its file,
so it uses torch and the standard library alone.
"""

import functools
import gc
import logging
import os
import re
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from types import (
    BuiltinFunctionType,
    CodeType,
    FrameType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any, Final, Protocol, cast

import torch

OWN_ENVIRONMENT: Final = frozenset(("PYTHONPATH", "PYTHONHASHSEED", "GRADBENCH_PADDING"))
"""Variables that differ between the sides because the comparison sets them."""
DEPTH: Final = 2
"""How deep the tree's code is looked for: what is in the dictionary of a registry's object."""
NESTED: Final = 30
"""Parts of what binds or wraps functions that are looked at: they may be in one another."""
MANY: Final = 1000
"""Entries of a dictionary, at most, in which a setting is looked for."""
LONG: Final = 100
"""Characters of a setting that are compared as they are."""
_SHALLOW: Final = frozenset((*sys.stdlib_module_names, "torch", "numpy", "gradbench"))
"""Large packages that have no such registries: there it is looked for in dictionaries and lists."""
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 # compared as text


class Code(Protocol):
    """The tree, as far as it is asked here."""

    @property
    def root(self) -> str:
        """The folder that holds it."""

    def holds(self, place: str) -> bool:
        """Return whether a file is the tree's own."""

    def leads_out(self, place: str) -> bool:
        """Return whether a file of the tree's is a link to what lies elsewhere."""

    def owns(self, name: str, module: object) -> bool:
        """Return whether a module is the tree's own."""

    @property
    def modules(self) -> dict[str, Any]:
        """Its modules, by name."""

    def extensions(self) -> list[str]:
        """Return the names of its compiled modules."""


class Registrations:
    """Notes which operators and libraries a tree's code registers with torch, from now on."""

    def __init__(self, code: Code) -> None:
        self.found: list[str] = []
        self.frames_before = frames_compiled()
        self._code = code
        library: Any = torch.library.Library
        library.__init__ = self._noting(library.__init__, "torch.library.Library")
        registries: dict[str, Any] = {"torch.ops": torch.ops, "torch.classes": torch.classes}
        for name, registry in registries.items():
            registry.load_library = self._noting(registry.load_library, f"{name}.load_library")
        logger: Any = logging.Logger
        for name in ("addHandler", "addFilter"):
            setattr(logger, name, self._noting_root(getattr(logger, name), name))

    def _noting_root(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        """Note what is added to the root logger: both sides would have it, twice where both add."""

        @functools.wraps(original)
        def noting(logger: logging.Logger, added: Any) -> Any:
            if logger.parent is None and self._called_by_tree(sys._getframe(1))[0]:
                self.found.append(f"logging.getLogger().{name}")
            return original(logger, added)

        return noting

    def _noting(self, original: Callable[..., Any], what: str) -> Callable[..., Any]:
        @functools.wraps(original)
        def noting(*args: Any, **kwargs: Any) -> Any:
            ours, of_torch = self._called_by_tree(sys._getframe(1))
            if ours:
                named = next((one for one in args if isinstance(one, str)), "")
                function, named = called(of_torch, named) if of_torch else (what, named)
                self.found.append(f"{function}({named!r})")
            return original(*args, **kwargs)

        return noting

    def _called_by_tree(self, frame: FrameType | None) -> tuple[bool, FrameType | None]:
        """Return whether the innermost caller that is not torch is the tree's own code.

        And the function of torch that it called, where that is another than the watched one. What a
        module of torch registers when it is imported, by whomever, is torch's.
        """
        of_torch = None
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(_TORCH) and frame.f_code.co_name == "<module>":
                return False, None
            if file.startswith(_TORCH):
                of_torch = frame
            elif not file.startswith("<") and file not in (__file__, logging.__file__):
                return self._code.holds(file), of_torch
            frame = frame.f_back
        return False, None


def called(frame: FrameType, named: str) -> tuple[str, str]:
    """Return the function of torch that runs in a frame, as its users name it, and its operator.

    ``named`` is what is named where the function was given no operator.
    """
    function = frame.f_code.co_qualname.partition(".<locals>")[0]
    public = hasattr(torch.library, function)
    module = "torch.library" if public else frame.f_globals.get("__name__", "torch")
    given = [one for one in frame.f_locals.values() if isinstance(one, str) and "::" in one]
    return f"{module}.{function}", given[0] if given else named


class Bindings:
    """What others' modules and their classes have under each name, from now on compared."""

    def __init__(self) -> None:
        self._before = [
            (place, owner, dict(vars(owner)))
            for name, module in list(sys.modules.items())
            if _is_others(name, module)
            for place, owner in [(name, module), *_classes(name, module)]
        ]
        self._known = frozenset(sys.modules)
        self.threads = frozenset(threading.enumerate())
        self._began = [clock() for clock in _CLOCKS]
        self._counters: frozenset[str] = frozenset()

    def learn_counters(self, code: Code, step: Callable[[], object]) -> None:
        """Make a step, and leave out from now on the numbers that it changes: they count, or time.

        What they came to by then says nothing of what a step does.
        """
        before = dict(self._numbers(code))
        step()
        self._counters = frozenset(
            name for name, value in self._numbers(code) if before.get(name, value) != value
        )

    def _numbers(self, code: Code) -> Iterator[tuple[str, float]]:
        for place, owner, before in self._before:
            now = vars(owner)
            for name in before:
                if type(value := now.get(name)) in (int, float):  # isinstance may ask its class
                    yield f"{place}.{name}", cast("float", value)
        for later, module in self._later(code):
            for place, one in _plain(later, module):
                if type(one) in (int, float):
                    yield place, cast("float", one)

    def known(self) -> frozenset[int]:
        """Return the identities of all that had a name: none of it is code that came later."""
        return frozenset(id(value) for _, _, before in self._before for value in before.values())

    def changes(self) -> Iterator[tuple[str, str]]:
        """Yield each name that stands for something else by now, with that in words."""
        for place, owner, before in self._before:
            now = vars(owner)
            for name, old in before.items():
                new = now.get(name, _GONE)
                if new is not old and not self._counts(f"{place}.{name}", new):
                    yield f"{place}.{name}", "gone" if new is _GONE else _described(new)

    def later_values(self, code: Code) -> Mapping[str, Mapping[str, str]]:
        """Return what others' modules that came since, by name, have under which name.

        Plain values, entries of dictionaries, and functions that stand under another name than
        their own: by these a package keeps what its users set.
        """
        return {
            name: {
                place: _shortened(_described(value).replace(code.root, ""))
                for place, value in _plain(name, module)
                if not self._counts(place, value)
            }
            for name, module in self._later(code)
        }

    def _later(self, code: Code) -> Iterator[tuple[str, ModuleType]]:
        """Yield the modules that came since, of packages that the tree's own modules have names of.

        What others import lazily, and set by themselves, is no setting of the tree's.
        """
        packages = _used(code)
        for name, module in list(sys.modules.items()):
            known = name in self._known or name.partition(".")[0] not in packages
            if not known and _is_others(name, module) and not code.owns(name, module):
                yield name, module

    def _counts(self, name: str, value: object) -> bool:
        """Return whether a number goes on from step to step, or is a time since this was made."""
        times = zip(_CLOCKS, self._began, strict=True)
        timed = type(value) in (int, float) and any(
            began <= cast("float", value) <= clock() for clock, began in times
        )
        return timed or name in self._counters


_CLOCKS: Final[tuple[Callable[[], float], ...]] = (
    *(time.time, time.monotonic, time.perf_counter),
    *(time.time_ns, time.monotonic_ns, time.perf_counter_ns),
)
_GONE: Final = object()
_PLAIN: Final = (str, bytes, int, float, bool, type(None), torch.dtype, torch.device)
_ADDRESS: Final = re.compile(r" at 0x[0-9a-f]+")


def _is_others(name: str, module: object) -> bool:
    """Return whether it is a module that both sides would find, and that is not gradbench's."""
    mine = name.partition(".")[0] in ("gradbench", "__main__", "__mp_main__")
    return issubclass(type(module), ModuleType) and not mine and not name.startswith("beside_")


def _classes(name: str, module: ModuleType) -> Iterator[tuple[str, type]]:
    for attribute, value in list(vars(module).items()):
        if issubclass(type(value), type) and value.__module__ == name:
            yield f"{name}.{attribute}", value


def _used(code: Code) -> frozenset[str]:
    """Return the packages of which something stands in the tree's own modules."""
    names: set[str] = set()
    for name, module in list(sys.modules.items()):
        if _is_others(name, module) and code.owns(name, module):
            for value in list(vars(module).values()):
                kind = type(value)
                if issubclass(kind, ModuleType):
                    names.add(value.__name__)
                else:
                    named = value if issubclass(kind, FunctionType | type) else kind
                    names.add(str(getattr(named, "__module__", "")))
    return frozenset(one.partition(".")[0] for one in names) - _SHALLOW


def _plain(name: str, module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the plain values of a module and its classes, by the place where each stands."""
    for place, owner in [(name, module), *_classes(name, module)]:
        for attribute, value in list(vars(owner).items()):
            kind, own = type(value), f"{place}.{attribute}"
            if attribute.startswith("__"):
                continue
            if kind in _PLAIN:
                yield own, value
            elif issubclass(kind, FunctionType):
                if cast("FunctionType", value).__name__ != attribute:
                    yield own, value
            elif kind is dict:
                for key, one in list(cast("dict[Any, Any]", value).items())[:MANY]:
                    if type(key) is str and type(one) in _PLAIN:
                        yield f"{own}[{key!r}]", one


def _shortened(words: str) -> str:
    """Return words, or the beginning of many with a sum of them all."""
    if len(words) <= LONG:
        return words
    return f"{words[:LONG]}... (sum {zlib.crc32(words.encode('utf-8', 'replace')):08x})"


def _described(value: object) -> str:
    """Return a plain value as it is, a function or class by its name, all else by its class.

    What a container prints depends on the order in which modules were imported.
    """
    if isinstance(value, functools.partial):
        bound = {name: _described(one) for name, one in value.keywords.items()}
        return f"{_described(value.func)} with {[*map(_described, value.args)]} and {bound}"
    if type(value) in _PLAIN:
        return repr(value)
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str):
        return f"{getattr(value, '__module__', '')}.{name}"
    return f"{type(value).__module__}.{type(value).__qualname__}"


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
        if _is_others(name, module)
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


def frames_compiled() -> int:
    """Return how many frames torch's compiler has met in this process.

    Of a cell that is not compiled, the tree compiles a part by itself: perhaps a class of torch's,
    whose code both sides would share.
    """
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return int(counters.get("frames", {}).get("total", 0))


def _called(module: Any, name: str) -> list[object]:
    return list(getattr(module, name, list)())  # of torch's own, which may be elsewhere one day


def _logged(code: Code) -> list[str]:
    """Return the tree's loggers with handlers or filters that do something."""
    own = {name.partition(".")[0] for name in code.modules}
    return [
        name
        for name, logger in _loggers().items()
        if name.partition(".")[0] in own
        and (
            logger.filters
            or any(type(handler) is not logging.NullHandler for handler in logger.handlers)
        )
    ]


def _loggers() -> dict[str, logging.Logger]:
    named = {
        name: logger
        for name, logger in list(logging.Logger.manager.loggerDict.items())
        if isinstance(logger, logging.Logger)
    }
    return {"root": logging.getLogger(), **named}


def strangers(code: Code, known: Collection[int]) -> Iterator[str]:
    """Yield the places in others' modules, classes, lists and dictionaries that hold its code."""
    own = code.modules

    def is_own(value: object) -> bool:
        return id(value) not in known and any(map(is_own_part, _unwrapped(value)))

    def is_own_part(value: object) -> bool:
        kind = type(value)  # isinstance would ask objects that answer for others
        if issubclass(kind, FunctionType):
            file = cast("FunctionType", value).__code__.co_filename
            return file != __file__ and code.holds(file)  # the tree may be gradbench itself
        if issubclass(kind, ModuleType):
            return cast("ModuleType", value).__name__ in own
        return (cast("type", value) if issubclass(kind, type) else kind).__module__ in own

    seen: set[int] = {id(sys.modules)}
    for name, module in list(sys.modules.items()):
        if name in own or name == "__main__" or not issubclass(type(module), ModuleType):
            continue
        depth = 1 if name.partition(".")[0] in _SHALLOW else DEPTH
        for attribute, value in list(vars(module).items()):
            place = f"{name}.{attribute}"
            if place in own:  # a package's attribute for a module in it
                continue
            if is_own(value) or _holds_own(value, is_own, seen, depth):
                yield place


def _holds_own(value: object, is_own: Callable[[object], bool], seen: set[int], depth: int) -> bool:
    """Return whether something of the tree's own is in a value that nobody has looked into yet."""
    if id(value) in seen:
        return False
    parts = _parts(value, is_own)
    if not parts:
        return False
    seen.add(id(value))
    return any(
        is_own(part) or (depth > 1 and _holds_own(part, is_own, seen, depth - 1)) for part in parts
    )


def _parts(value: object, is_own: Callable[[object], bool]) -> list[Any]:
    """Return what may be exchanged in it; what its own class or function is the key of is apart."""
    kind = type(value)
    if kind in _WITHOUT_PARTS or issubclass(kind, ModuleType):  # a module is looked into by itself
        return []
    if issubclass(kind, list | tuple | set | frozenset):
        return list(cast("list[Any]", value))
    if issubclass(kind, dict | MappingProxyType):
        pairs = list(cast("dict[Any, Any]", value).items())
        return [part for key, part in pairs if not is_own(key)]
    if issubclass(kind, type):
        return list(vars(cast("type", value)).values())
    try:  # past objects that answer for others
        return list(object.__getattribute__(value, "__dict__").values())
    except AttributeError:
        return []


_WITHOUT_PARTS: Final = frozenset(
    (
        *(str, bytes, int, float, bool, type(None), torch.dtype),
        *(BuiltinFunctionType, WrapperDescriptorType, MethodDescriptorType),
        *(GetSetDescriptorType, MemberDescriptorType, CodeType),
    )
)


def _unwrapped(value: Any) -> Iterator[Any]:
    """Yield the functions within what binds, wraps or describes some; anything else as it is."""
    left = [value]
    for _ in range(NESTED):
        if not left:
            return
        value = left.pop()
        names = _WRAPPERS.get(type(value))
        if names is None:
            yield value
        else:
            left += [part for name in names if (part := getattr(value, name)) is not None]


_WRAPPERS: Final[Mapping[type, tuple[str, ...]]] = {
    functools.partial: ("func",),
    functools.partialmethod: ("func",),
    functools.cached_property: ("func",),
    type(functools.lru_cache(len)): ("__wrapped__",),
    MethodType: ("__func__",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset", "fdel"),
}


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


def _logging() -> dict[str, object]:
    """Return the loggers whose level, or whether they pass on, somebody has set."""
    return {
        name: (logger.level, logger.disabled, logger.propagate)
        for name, logger in sorted(_loggers().items())
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
    "import hooks": lambda: [_described(hook) for hook in sys.path_hooks],
    "fast path of attention": torch.backends.mha.get_fastpath_enabled,
    "hooks of all modules": _global_hooks,
    "garbage collector": lambda: (gc.get_threshold(), len(gc.callbacks)),
    "trace function": lambda: (sys.gettrace() is not None, sys.getprofile() is not None),
    "switch interval": sys.getswitchinterval,
    **{f"torch.backends.{path}": _backend(path) for path in _BACKENDS},
    **{f"torch.backends.cuda.{name}": getattr(torch.backends.cuda, name) for name in _ENABLED},
}
