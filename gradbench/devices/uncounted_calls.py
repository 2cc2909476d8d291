"""What a call may not do while its allocations are counted: the count would be wrong, or end."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.autograd.profiler as autograd_profiler

from . import OutOfSight

PROFILES: Final = (
    "it runs torch's profiler itself, of which one runs at a time, and that is what counts here: "
    "leave its own out"
)
FORKS: Final = (
    "its TorchScript forks (prim::fork): torch's own threads run the parts at once, and what these "
    "hold and free is not seen: call the functions one after the other, without torch.jit.fork"
)

STARTS: Final = ("_enable_profiler", "_prepare_profiler")
"""What torch's profilers begin with, as its module has it."""

SCRIPTS: Final[tuple[Any, ...]] = (torch._C.ScriptFunction, torch._C.ScriptMethod)
"""What TorchScript is called by from Python: what graphs call themselves is in the graph."""


@contextmanager
def the_only_profiler() -> Iterator[None]:
    """Raise `OutOfSight` where what runs inside starts torch's profiler: that ends this one."""

    def noting(start: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
        def starting(*args: Any, **kwargs: Any) -> Any:
            note()
            return start(*args, **kwargs)

        return starting

    with _out_of_sight(PROFILES, [(autograd_profiler, name) for name in STARTS], noting):
        yield


@contextmanager
def no_forks() -> Iterator[None]:
    """Raise `OutOfSight` where TorchScript that forks is called inside, before it runs.

    Outside of TorchScript `torch.jit.fork` calls the function where it stands, which is counted.
    """

    def checking(call: Callable[..., Any], note: Callable[[], None]) -> Callable[..., Any]:
        def checked(script: Any, *args: Any, **kwargs: Any) -> Any:
            if forks(script):
                note()
                raise OutOfSight(FORKS)
            return call(script, *args, **kwargs)

        return checked

    with _out_of_sight(FORKS, [(kind, "__call__") for kind in SCRIPTS], checking):
        yield


def forks(script: Any) -> bool:
    """Return whether the graph of a scripted function or method forks, or of one that it calls."""
    try:
        graph = script.inlined_graph
    except RuntimeError:  # of a class in C++, as what a collective returns is: it has no graph
        return False
    return bool(graph.findAllNodes("prim::fork"))


@contextmanager
def _out_of_sight(
    why: str,
    functions: list[tuple[Any, str]],
    noting: Callable[[Callable[..., Any], Callable[[], None]], Callable[..., Any]],
) -> Iterator[None]:
    """Raise `OutOfSight` where one of these functions notes, whatever else is raised or caught.

    ``noting`` is given a function, by owner and name, and what notes; it returns what stands in the
    function's place while this is entered.
    """
    noted: list[bool] = []

    def note() -> None:
        noted.append(True)

    own = [getattr(owner, name) for owner, name in functions]
    for (owner, name), function in zip(functions, own, strict=True):
        setattr(owner, name, noting(function, note))
    try:
        yield
    except Exception as error:
        if noted:
            raise OutOfSight(why) from error
        raise
    finally:
        for (owner, name), function in zip(functions, own, strict=True):
            setattr(owner, name, function)
    if noted:
        raise OutOfSight(why)
