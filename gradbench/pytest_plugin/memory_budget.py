"""The pytest plugin for memory budgets: limits on memory, as a marker and as a fixture."""

import inspect
import math
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, Literal

import pytest

from ..analysis import format_units
from ..errors import DeviceUnavailable, UnknownName, WrongDevice
from ..lazy_results import LazyResult
from ..plurals import counted

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


RAN: Final = pytest.StashKey[bool]()
"""Whether an item's test came to its end without raising."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Run a marked test under its limits; fail one that was marked when it was too late."""
    __tracebackhide__ = True
    markers = list(item.iter_markers(MARKER))
    result = (yield from _budgeted(item, markers)) if markers else (yield)
    if len(list(item.iter_markers(MARKER))) > len(markers):
        pytest.fail(
            f"{MARKER} was added by the test itself, when it was running: "
            "mark it before, or use the fixture of that name",
            pytrace=False,
        )
    item.stash[RAN] = True
    return result


def _budgeted(item: pytest.Item, markers: Sequence[pytest.Mark]) -> Generator[None, object, object]:
    """Run a test under its limits, those of its class and module included.

    Both pytest's own functions and those of `unittest.TestCase` are called by ``item.obj``. What
    is called otherwise cannot be measured, and fails rather than pass unmeasured.
    """
    __tracebackhide__ = True
    given = {name: limit for marker in reversed(markers) for name, limit in marker.kwargs.items()}
    limits = _limits(tuple(arg for one in markers for arg in one.args), given, item.nodeid)
    _check_named(given.keys())
    if not isinstance(item, pytest.Function):
        pytest.fail(
            f"{MARKER} holds on test functions and not on a {type(item).__name__}: "
            "call in a test function what is to be measured",
            pytrace=False,
        )
    test = item.obj
    call = _Budgeted(test, item, limits, device=given.get("device", "auto"))
    item.obj = call.function()
    try:
        result = yield
    finally:
        item.obj = test
    if not call.called:
        pytest.fail(
            f"{MARKER}: another plugin ran the test in its own way, so nothing was measured: "
            f"call what is to be measured through the fixture {MARKER}",
            pytrace=False,
        )
    return result


def _check_named(names: Collection[str]) -> None:
    """Fail a budget that names no limit: nothing of it could ever fail."""
    __tracebackhide__ = True
    if not set(names) & set(LIMITS):
        pytest.fail(
            f"{MARKER} names no limit: give {', '.join(LIMITS)} "
            "(gradbench.memory_usage measures without any)",
            pytrace=False,
        )


class _Budgeted:
    """A test that is measured when it is called."""

    def __init__(
        self,
        test: Callable[..., object],
        item: pytest.Function,
        limits: dict[str, int],
        *,
        device: str,
    ) -> None:
        self._test, self._limits, self._device = test, limits, device
        self._fixtures = getattr(item, "funcargs", None) or {}  # unittest's tests have none
        self.called = False

    def function(self) -> Callable[..., None]:
        """Return the test with its limits."""

        @wraps(self._test)
        def measured(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            self.called = True
            self._run(partial(self._test, *args, **kwargs))

        del measured.__wrapped__  # or pytest would ask it what it is
        return measured

    def _run(self, test: Callable[[], object]) -> None:
        __tracebackhide__ = True
        from torch import nn

        from ..memory.called_modules import called_modules

        roots = [value for value in self._fixtures.values() if isinstance(value, nn.Module)]
        roots += called_modules(self._test)
        usage = _used(
            partial(_run_through, test), device=self._device, limits=self._limits, roots=roots
        )
        _hold(usage, self._limits)


def _run_through(test: Callable[[], object]) -> object:
    """Call a test; fail where that has run nothing of it."""
    __tracebackhide__ = True
    result = test()
    if inspect.isawaitable(result) or inspect.isasyncgen(result):
        if inspect.iscoroutine(result):
            result.close()
        pytest.fail(
            f"{MARKER} cannot hold on an async test, whose calls may be anybody's in between: "
            f"measure what it awaits through the fixture {MARKER}",
            pytrace=False,
        )
    return result


@pytest.fixture
def memory_budget(request: pytest.FixtureRequest) -> Iterator[Callable[..., "Usage"]]:
    """Return a function that calls another under limits and returns what it used.

    ``memory_budget(model, x, peak="10 MiB", saved=0, leaked=0)`` calls ``model(x)``; at least one
    limit must be given, and the others are not held. Keyword arguments for the call itself go in
    ``kwargs``. A test that passes without a call of it has an error: nothing was measured.
    """
    called = False

    def check(
        function: Callable[..., object],
        *args: object,
        peak: str | int | None = None,
        saved: str | int | None = None,
        leaked: str | int | None = None,
        device: str = "auto",
        kwargs: dict[str, Any] | None = None,
    ) -> "Usage":
        __tracebackhide__ = True
        nonlocal called
        called = True
        limits = _limits((), {"peak": peak, "saved": saved, "leaked": leaked}, MARKER)
        _check_named(limits)
        call = partial(function, *args, **(kwargs or {}))
        usage = _used(call, device=device, limits=limits, everything=True)
        _hold(usage, limits)
        return usage

    yield check
    check_called(request, MARKER, called=called)


def check_called(request: pytest.FixtureRequest, name: str, *, called: bool) -> None:
    """Fail at the end of a test that passed without calling what a fixture gave it."""
    if not called and request.node.stash.get(RAN, False):
        pytest.fail(
            f"{name} was asked for and not called, so nothing was measured: "
            "call it, skip the test, or ask for it no more",
            pytrace=False,
        )


def _used(
    call: Callable[[], object],
    *,
    device: str,
    limits: Mapping[str, int],
    everything: bool = False,
    roots: "Sequence[nn.Module] | None" = None,
) -> "Usage":
    """Measure a call, no oftener than its limits need; skip where the device cannot be had."""
    __tracebackhide__ = True
    from ..devices import OutOfSight, Unreadable
    from ..memory.called_modules import called_modules
    from ..memory.saved_tensors import paths
    from ..memory.usage import CallMeter

    try:
        meter = CallMeter(
            call, device=device, modules=paths(*(called_modules(call) if roots is None else roots))
        )
        if everything or len({"peak", "saved"} & limits.keys()) != 1:
            usage = meter.usage(leaks_too="leaked" in limits)
        else:
            figure: Literal["peak", "saved"] = "peak" if "peak" in limits else "saved"
            usage = meter.only(figure, leaks_too="leaked" in limits)
        return meter.named(usage) if usage.peak_bytes > limits.get("peak", math.inf) else usage
    except OutOfSight as reason:
        words = f"{MARKER} could not be held: {reason}"
        raise pytest.fail.Exception(words, pytrace=False) from None
    except (DeviceUnavailable, Unreadable) as reason:
        pytest.skip(f"{MARKER}: {reason}")
    except (UnknownName, WrongDevice, LazyResult) as mistake:
        raise pytest.fail.Exception(f"{MARKER}: {mistake}", pytrace=False) from None


def _limits(args: tuple[object, ...], given: Mapping[str, Any], where: str) -> dict[str, int]:
    __tracebackhide__ = True
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
            words = f"{where}: {name}: {error}"
            raise pytest.fail.Exception(words, pytrace=False) from None
    return limits


def _hold(usage: "Usage", limits: dict[str, int]) -> None:
    """Raise `OverBudget` with every limit that was passed."""
    __tracebackhide__ = True
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
    parts = [
        f"{_size(one.nbytes)} {'saved for backward ' if one.saved else ''}by {one.op}"
        f"{_at(one.module, one.line)}"
        for one in usage.held
    ]
    if not parts:
        breakdown = usage.breakdown
        saved = breakdown.parts["saved"]
        parts = [f"{_size(saved)} saved for backward"] if saved else []
        parts += [f"{_size(nbytes)} by {op}" for op, nbytes in breakdown.ops.items() if op]
    return (
        f"memory peak of {_size(usage.peak_bytes)} exceeds the limit of {_size(limit)}; "
        f"at the peak: {', '.join(parts[:MAX_NAMED])}"
        + (
            f", and {counted(len(parts) - MAX_NAMED, 'more place')}"
            if len(parts) > MAX_NAMED
            else ""
        )
    )


def _at(module: str, line: str) -> str:
    return (f" in {module}" if module else "") + (f" ({line})" if line else "")


def _saved(usage: "Usage", limit: int) -> str:
    from ..devices import Unreadable

    if isinstance(usage.seen, Unreadable):
        return f"what is saved for backward could not be held to {_size(limit)}: {usage.seen}"
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
        + (
            f"; and {counted(len(ranked) - MAX_NAMED, 'more place')}"
            if len(ranked) > MAX_NAMED
            else ""
        )
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
