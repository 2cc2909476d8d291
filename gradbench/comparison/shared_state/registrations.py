"""What a tree's code registers for the whole process, noted while it does so."""

import functools
import logging
import os
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import torch

from .modules import Code

_TORCH: Final = os.path.dirname(torch.__file__) + os.sep  # noqa: PTH120 # compared as text


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


def frames_compiled() -> int:
    """Return how many frames torch's compiler has met in this process.

    Of a cell that is not compiled, the tree compiles a part by itself: perhaps a class of torch's,
    whose code both sides would share.
    """
    counters = getattr(sys.modules.get("torch._dynamo.utils"), "counters", {})
    return int(counters.get("frames", {}).get("total", 0))
