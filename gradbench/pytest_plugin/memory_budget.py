"""The pytest plugin for memory budgets: limits on memory, as a marker and as a fixture."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import pytest

from ..analysis import format_units
from ..errors import DeviceUnavailable, UnknownName, WrongDevice

if TYPE_CHECKING:
    from torch import nn

    from ..memory.usage import Usage

MARKER: Final = "memory_budget"
LIMITS: Final = ("peak", "saved", "leaked")
MAX_NAMED: Final = 3
"""Places that a failure names."""


class OverBudget(AssertionError):
    """A call took, saved or left more than its limit; the message says where the bytes are."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line(
        "markers",
        f"{MARKER}(peak=None, saved=None, leaked=None, device='auto'): limits on what the test "
        "itself allocates at once, on what autograd saves for backward (0: no graph may be built) "
        "and on what is left by each further run of the test (it is run again for that). Sizes "
        "are numbers of bytes or texts, '10 MiB'.",
    )


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[None]:
    """Run a marked test under its limits."""
    marker = pyfuncitem.get_closest_marker(MARKER)
    if marker is None:
        return (yield)
    limits = _limits(marker.args, marker.kwargs, pyfuncitem.nodeid)
    test, usages = pyfuncitem.obj, []
    from torch import nn

    roots = [value for value in pyfuncitem.funcargs.values() if isinstance(value, nn.Module)]

    def measured(**arguments: Any) -> None:
        usages.append(
            _used(
                partial(test, **arguments),
                device=marker.kwargs.get("device", "auto"),
                leaks_too="leaked" in limits,
                roots=roots,
            )
        )

    pyfuncitem.obj = measured
    try:
        result = yield
    finally:
        pyfuncitem.obj = test
    for usage in usages:
        _hold(usage, limits)
    return result


@pytest.fixture
def memory_budget() -> Callable[..., "Usage"]:
    """Return a function that calls another under limits and returns what it used.

    ``memory_budget(model, x, peak="10 MiB", saved=0, leaked=0)`` calls ``model(x)``; a limit that
    is not given is not held. Keyword arguments for the call itself go in ``kwargs``.
    """

    def check(
        function: Callable[..., object],
        *args: object,
        peak: str | int | None = None,
        saved: str | int | None = None,
        leaked: str | int | None = None,
        device: str = "auto",
        kwargs: dict[str, Any] | None = None,
    ) -> "Usage":
        limits = _limits((), {"peak": peak, "saved": saved, "leaked": leaked}, "memory_budget")
        call = partial(function, *args, **(kwargs or {}))
        usage = _used(call, device=device, leaks_too=leaked is not None)
        _hold(usage, limits)
        return usage

    return check


def _used(
    call: Callable[[], object],
    *,
    device: str,
    leaks_too: bool,
    roots: "Sequence[nn.Module] | None" = None,
) -> "Usage":
    """Measure a call; skip the test where the device or its allocator cannot be had."""
    from ..devices import Unreadable
    from ..memory.saved_tensors import paths
    from ..memory.usage import memory_usage

    modules = paths(*roots) if roots is not None else None
    try:
        return memory_usage(call, device=device, leaks_too=leaks_too, modules=modules)
    except (DeviceUnavailable, Unreadable) as reason:
        pytest.skip(f"{MARKER}: {reason}")
    except (UnknownName, WrongDevice) as mistake:
        pytest.fail(f"{MARKER}: {mistake}", pytrace=False)


def _limits(args: tuple[object, ...], given: Mapping[str, Any], where: str) -> dict[str, int]:
    unknown = sorted(given.keys() - {*LIMITS, "device"})
    if args or unknown:
        wrong = unknown[0] if unknown else args[0]
        pytest.fail(f"{where}: {MARKER} has no {wrong!r}: name {', '.join(LIMITS)}", pytrace=False)
    limits = {}
    for name in LIMITS:
        limit = given.get(name)
        try:
            if limit is not None:
                limits[name] = format_units.parse_size(str(limit))
        except ValueError as error:
            pytest.fail(f"{where}: {name}: {error}", pytrace=False)
    return limits


def _hold(usage: "Usage", limits: dict[str, int]) -> None:
    """Raise `OverBudget` with every limit that was passed."""
    failures = [
        complaint
        for name, describe in (("peak", _peak), ("saved", _saved), ("leaked", _leaked))
        if name in limits and (complaint := describe(usage, limits[name]))
    ]
    if failures:
        raise OverBudget("\n".join(failures))


def _peak(usage: "Usage", limit: int) -> str:
    if usage.peak_bytes <= limit:
        return ""
    breakdown = usage.breakdown
    parts = [f"{_size(breakdown.parts['saved'])} saved for backward"] if usage.saved else []
    parts += [
        f"{_size(nbytes)} by {op}" for op, nbytes in list(breakdown.ops.items())[:MAX_NAMED] if op
    ]
    return (
        f"memory peak of {_size(usage.peak_bytes)} exceeds the limit of {_size(limit)}; "
        f"at the peak: {', '.join(parts)}"
    )


def _saved(usage: "Usage", limit: int) -> str:
    if usage.saved_bytes <= limit:
        return ""
    places: dict[str, int] = {}
    for one in usage.saved:
        place = f"in {one.module}" if one.module else "outside of any module"
        place += f" ({one.line})" if one.line else ""
        places[place] = places.get(place, 0) + one.nbytes
    ranked = sorted(places.items(), key=lambda item: -item[1])
    graph = "a graph is built here: " if limit == 0 else ""
    return (
        f"{_size(usage.saved_bytes)} saved for backward exceed the limit of {_size(limit)}; {graph}"
        + "; ".join(f"{_size(nbytes)} {place}" for place, nbytes in ranked[:MAX_NAMED])
        + (f"; and {len(ranked) - MAX_NAMED} more places" if len(ranked) > MAX_NAMED else "")
    )


def _leaked(usage: "Usage", limit: int) -> str:
    assert usage.leaked_bytes is not None  # a limit is only held where it was asked
    if usage.leaked_bytes <= limit:
        return ""
    from ..memory.leaks import named

    return (
        f"{_size(usage.leaked_bytes)} left behind by each call exceed the limit of {_size(limit)}: "
        f"{named(usage.kept)}"
    )


def _size(nbytes: int) -> str:
    return (
        format_units.size(nbytes)
        if nbytes < 1024
        else f"{format_units.size(nbytes)} ({nbytes:,} B)"
    )
