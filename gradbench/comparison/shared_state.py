"""What a tree's code leaves in what two trees in one process would share; then they cannot.

A process that holds one tree looks at itself after the first steps: at compiled modules and
operators that the tree has registered, at its functions in others' modules, and at settings. A
worker loads this by its file, so it uses torch and the standard library alone.
"""

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final, Protocol, cast

import torch

OWN_ENVIRONMENT: Final = frozenset(("PYTHONPATH", "PYTHONHASHSEED", "GRADBENCH_PADDING"))
"""Variables that differ between the sides because the comparison sets them."""
_TORCH: Final = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 # compared as text


class Code(Protocol):
    """The tree, as far as it is asked here."""

    def holds(self, place: str) -> bool:
        """Return whether a file is the tree's own."""

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
        self._code = code
        library: Any = torch.library.Library
        library.__init__ = self._noting(library.__init__, "torch.library.Library")
        registries: dict[str, Any] = {"torch.ops": torch.ops, "torch.classes": torch.classes}
        for name, registry in registries.items():
            registry.load_library = self._noting(registry.load_library, f"{name}.load_library")

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
            elif not file.startswith("<") and file != __file__:
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


def obstacles(code: Code, registrations: Registrations) -> Iterator[str]:
    """Yield in words what of the tree's two versions could not both be in one process."""
    code.modules.update(
        (name, module) for name, module in list(sys.modules.items()) if code.owns(name, module)
    )
    for name in code.extensions():
        yield f"{name} is a compiled extension"
    for what in dict.fromkeys(registrations.found):
        yield f"it calls {what}, which registers for the whole process"
    for place in strangers(code):
        yield f"it puts its own code into {place}"


def strangers(code: Code) -> Iterator[str]:
    """Yield the places in others' modules, classes, lists and dictionaries that hold its code."""
    own = code.modules

    def is_own(value: object) -> bool:
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
        for attribute, value in list(vars(module).items()):
            place = f"{name}.{attribute}"
            if place in own:  # a package's attribute for a module in it
                continue
            if is_own(value):
                yield place
            elif id(value) not in seen and issubclass(type(value), dict | list | type):
                seen.add(id(value))
                yield from (place for part in _parts(value, is_own) if is_own(part))


def _parts(value: dict[Any, Any] | list[Any] | type, is_own: Callable[[object], bool]) -> list[Any]:
    """Return what may be exchanged in it; what its own class or function is the key of is apart."""
    if isinstance(value, list):
        return list(value)
    if isinstance(value, type):
        return list(vars(value).values())
    return [part for key, part in list(value.items()) if not is_own(key)]


def settings() -> Mapping[str, str]:
    """Return the process's settings that a package may change and that change what torch does."""
    return {
        **{name: _read(read) for name, read in _SETTINGS.items()},
        **{
            f"environment variable {name}": value
            for name, value in os.environ.items()
            if name not in OWN_ENVIRONMENT
        },
    }


def _read(read: Callable[[], object]) -> str:
    try:
        return str(read())
    except Exception as error:  # noqa: BLE001 # a backend that is not there
        return type(error).__name__


def _global_hooks() -> dict[str, int]:
    module = torch.nn.modules.module
    return {
        name: len(hooks)
        for name, hooks in vars(module).items()
        if name.startswith("_global") and isinstance(hooks, dict)
    }


_BACKENDS: Final = (
    *("mkldnn.enabled", "mkldnn.deterministic", "cudnn.enabled", "cudnn.benchmark"),
    *("cudnn.deterministic", "cudnn.allow_tf32", "cuda.matmul.allow_tf32", "opt_einsum.enabled"),
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
)
_ENABLED: Final = ("flash_sdp_enabled", "mem_efficient_sdp_enabled", "math_sdp_enabled")


def _backend(path: str) -> Callable[[], object]:
    return lambda: functools.reduce(getattr, path.split("."), torch.backends)


_SETTINGS: Final[Mapping[str, Callable[[], object]]] = {
    "default dtype": torch.get_default_dtype,
    "default device": torch.get_default_device,
    "float32 matmul precision": torch.get_float32_matmul_precision,
    "deterministic algorithms": torch.are_deterministic_algorithms_enabled,
    "grad mode": torch.is_grad_enabled,
    "anomaly detection": torch.is_anomaly_enabled,
    "fast path of attention": torch.backends.mha.get_fastpath_enabled,
    "hooks of all modules": _global_hooks,
    "garbage collector": lambda: (gc.get_threshold(), len(gc.callbacks)),
    "trace function": lambda: (sys.gettrace() is not None, sys.getprofile() is not None),
    "switch interval": sys.getswitchinterval,
    **{f"torch.backends.{path}": _backend(path) for path in _BACKENDS},
    **{f"torch.backends.cuda.{name}": getattr(torch.backends.cuda, name) for name in _ENABLED},
}
