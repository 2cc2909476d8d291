"""The pytest plugin for cells: one test per cell, pytest-benchmark's statistics of our rounds."""

import argparse
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from _pytest.unittest import TestCaseFunction  # pytest has no public name for it

from ..errors import BadSetting, GradbenchError, UnknownName
from ..experiment import shards
from ..experiment.matrix import GRAD_MODES, WORKLOADS, Block, Cell, by_block, select
from ..experiment.plan import Plan
from ..experiment.presets import PRESETS
from ..experiment.toml_config import choose, locate
from ..printable import one_line, printable
from ..records.measurements import NOTHING_TO_READ, Breakdown, Measurement, Reading, Skipped
from ..store.jsonl import check_writable
from . import memory_budget

if TYPE_CHECKING:
    from ..observation import Observation
    from ..recording import Recording
    from ..records.run import Run
    from ..runner.bench import Bench
    from ..workloads.models import Model

FIXTURE: Final = "gradbench_cell"


class CannotTrain(Exception):
    """torch refused to train in a mode that records nothing; the message is torch's."""


class StepFailed(Exception):
    """A cell's step raised, crashed or hung; the message says how."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say what to measure and where to put it."""
    group = parser.getgroup("gradbench", "gradbench: PyTorch's grad modes")
    group.addoption(
        "--gradbench-preset",
        metavar="NAME",
        default="quick",
        help=f"What to measure: {', '.join(PRESETS)}. Default: %(default)s.",
    )
    group.addoption(
        "--gradbench-config", metavar="FILE", type=_path, help="A TOML file instead of a preset."
    )
    group.addoption(
        "--gradbench-device",
        metavar="NAME",
        action="append",
        help="cpu, cuda, cuda:N, cuda:all; several times. Default: cpu, and cuda if there is one.",
    )
    group.addoption(
        "--gradbench-budget", metavar="SECONDS", type=float, help="Seconds of timing for a block."
    )
    group.addoption(
        "--gradbench-shard",
        metavar="I/N",
        help="Only part I of N of the cells, by block: for machines side by side. The other "
        "options must be the same on all of them; gradbench merge joins their runs.",
    )
    group.addoption(
        "--gradbench-results", metavar="DIR", type=_path, help="Default: results/ in the root."
    )
    group.addoption(
        "--gradbench-reports", metavar="DIR", type=_path, help="Default: reports/ in the root."
    )


def _path(text: str) -> Path:
    """Return a path; refuse an empty one, a shell's unset variable, which is where we are."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} names nothing: name one, or leave it out")
    return Path(text)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker, and the plugin for memory budgets."""
    config.pluginmanager.register(memory_budget, "gradbench_budget")
    config.addinivalue_line(
        "markers",
        "gradbench(workload): run the test once for every cell of the chosen matrix that has this "
        f"workload; the cell comes as the fixture {FIXTURE}.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a marked test its cells, under readable ids."""
    marker, name = metafunc.definition.get_closest_marker("gradbench"), metafunc.definition.nodeid
    if marker is None:
        if FIXTURE in metafunc.fixturenames:
            raise pytest.Collector.CollectError(f"{name}: {FIXTURE} needs @pytest.mark.gradbench")
        return
    if FIXTURE not in metafunc.fixturenames:
        raise pytest.Collector.CollectError(f"{name}: ask for the fixture {FIXTURE}")
    workload = marker.kwargs.get("workload", marker.args[0] if marker.args else None)
    if workload is not None and workload not in WORKLOADS:
        unknown = UnknownName("workload", workload, WORKLOADS)
        raise pytest.Collector.CollectError(f"{name}: {unknown}")
    try:
        session = _session(metafunc.config)
    except pytest.UsageError as error:  # here pytest would show a traceback: raise it afterwards
        metafunc.config.stash[_REFUSAL] = error
        return
    cells = [c for c in session.by_name.values() if workload in (None, c.workload)]
    # Strings, or pytest-benchmark's JSON says UNSERIALIZABLE.
    metafunc.parametrize(
        FIXTURE,
        [str(cell) for cell in cells],
        ids=[f"{c.workload}-{c.id}" if workload is None else c.id for c in cells],
        indirect=True,
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    """Mark the tests of cells first; when ``-k`` and friends have chosen, keep one shard's."""
    if _REFUSAL in config.stash:
        raise config.stash[_REFUSAL]
    _mark(items)
    yield
    if (text := config.getoption("gradbench_shard")) is not None:
        _keep_shard(config, items, text)


def _mark(items: list[pytest.Item]) -> None:
    """Group by block, let recorded rounds be replayed, expect training to fail where it must.

    Raise `pytest.UsageError` for a marked test that pytest gives no parameters, and so no cell.
    """
    for item in items:
        if isinstance(item, TestCaseFunction) and item.get_closest_marker("gradbench"):
            raise pytest.UsageError(
                f"gradbench: {item.nodeid}: a method of unittest.TestCase gets no cells: "
                "mark a function, or a method of a plain class"
            )
    cells = {item: cell for item in items if (cell := _cell_of(item)) is not None}
    if not cells:
        return
    from ..workloads.steps import must_fail

    for item, cell in cells.items():
        item.add_marker(pytest.mark.benchmark(group=str(cell.block), timer=Replay()))
        if "gradbench" in getattr(item, "fixturenames", ()) and must_fail(
            cell.workload, cell.grad_mode
        ):
            item.add_marker(
                pytest.mark.xfail(
                    strict=True, raises=CannotTrain, reason=f"no graph under {cell.grad_mode}"
                )
            )


def _keep_shard(config: pytest.Config, items: list[pytest.Item], text: str) -> None:
    """Deselect the cells of other shards; tests that have no cell stay."""
    cells = {item: cell for item in items if (cell := _cell_of(item)) is not None}
    try:
        shard = shards.parse(text)
        mine = set(shard.take(cells.values())) if cells else set()
    except GradbenchError as error:
        raise _refusal(str(error)) from None
    others = {item for item, cell in cells.items() if cell not in mine}
    if others:
        config.hook.pytest_deselected(items=[item for item in items if item in others])
        items[:] = [item for item in items if item not in others]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which cells are left to measure: a block is what ``-k`` and friends leave of it."""
    cells = [cell for cell in map(_cell_of, session.items) if cell is not None]
    if not cells:
        return
    cell_session = _session(session.config)
    cell_session.selected = by_block(cells)
    cell_session.places = _places(session.items)
    option = session.config.getoption
    if not (option("collectonly") or option("benchmark_skip") or option("benchmark_disable")):
        try:
            check_writable(cell_session.results, "--gradbench-results")
            check_writable(cell_session.reports, "--gradbench-reports")
        except GradbenchError as error:
            raise _refusal(str(error)) from None


def _places(items: list[pytest.Item]) -> dict[str, str]:
    """Return cell -> ``file:line`` of the first test that has it, for what points at tests."""
    places: dict[str, str] = {}
    for item in items:
        cell = _cell_of(item)
        file, line, _ = item.location  # counted from 0; None where pytest knows none
        if cell is not None and line is not None:
            places.setdefault(str(cell), f"{Path(file).as_posix()}:{line + 1}")
    return places


@pytest.fixture
def gradbench_cell(request: pytest.FixtureRequest) -> Cell:
    """Return the cell that the test is run for."""
    return _session(request.config).by_name[request.param]


@pytest.fixture
def gradbench(
    gradbench_cell: Cell, benchmark: Any, request: pytest.FixtureRequest
) -> Iterator[Callable[[], None]]:
    """Return a function that measures the cell and hands its rounds to pytest-benchmark.

    The first cell of a block to be called measures the whole block, for its modes are
    interleaved. Where pytest-benchmark is disabled, the step is run once in its own process and
    nothing is recorded. A test that passes without a call of it has an error.
    """
    called = False

    def measure() -> None:
        nonlocal called
        called = True
        session = _session(request.config)
        if benchmark.disabled:
            refusal = session.try_once(gradbench_cell)
            if refusal is not None:
                _give_up(gradbench_cell, refusal)
            benchmark.pedantic(_nothing)
            return
        outcomes = session.outcomes(gradbench_cell)
        timed = outcomes["step_time"]
        assert not isinstance(timed, Breakdown)
        if isinstance(timed, Skipped):
            _give_up(gradbench_cell, timed)
            return
        timer = request.node.get_closest_marker("benchmark").kwargs["timer"]
        timer.load(timed)
        benchmark.extra_info |= extra_info(gradbench_cell, outcomes)
        iterations = timed.iterations if isinstance(timed.iterations, int) else 1
        benchmark.pedantic(_nothing, rounds=len(timed.values), iterations=iterations)

    yield measure
    memory_budget.check_called(request, "gradbench", called=called)


@pytest.fixture
def gradbench_observe() -> Callable[..., "Observation"]:
    """Return `gradbench.observe`: run a callable once, say what the grad modes did to it."""
    from ..observation import observe

    return observe


class Replay:
    """A timer that tells recorded rounds instead of the time.

    pytest-benchmark reads its timer before and after each round; the differences that it sees
    are then the ns of our interleaved rounds, and its statistics are those of our records.
    """

    __name__ = "gradbench.interleaved_rounds"

    def __init__(self) -> None:
        self._readings: Iterator[float] = iter(())

    def load(self, measurement: Measurement) -> None:
        """Queue a measurement's rounds."""
        alike = isinstance(measurement.iterations, int)
        rounds_ns = measurement.values if alike else measurement.per_step()
        self._readings = (reading for ns in rounds_ns for reading in (0.0, ns / 1e9))

    def __call__(self) -> float:
        """Return the next reading, in seconds."""
        return next(self._readings, 0.0)


def extra_info(cell: Cell, outcomes: Mapping[str, Reading]) -> dict[str, str | int | float]:
    """Return axes, throughput and every other meter as plain numbers, or reasons as strings."""
    from ..analysis.dataframes import figures  # brings pandas

    info: dict[str, str | int | float] = {**cell.axes()}
    for name, outcome in outcomes.items():
        if isinstance(outcome, Skipped):
            info[name] = f"{outcome.cause}: {outcome.reason}"
        elif isinstance(outcome, Breakdown):
            info |= {f"peak_{part}": nbytes for part, nbytes in outcome.parts.items()}
        elif name == "step_time":
            info["samples_per_s"] = outcome.samples / statistics.median(outcome.per_step()) * 1e9
        elif name == "latency":
            info |= {f"{figure}_ns": one.point for figure, one in figures(outcome).items()}
        elif len(outcome.values) == 1 and outcome.iterations == 1:
            info[name] = outcome.values[0]
        else:
            info[name] = statistics.median(outcome.per_step())
    return info


@dataclass
class Session:
    """What one pytest session measures, and what it has measured."""

    by_name: dict[str, Cell]
    plan: Plan
    models: Mapping[str, "Model"]
    results: Path
    reports: Path
    shard: str = ""
    places: Mapping[str, str] = field(default_factory=dict)
    selected: dict[Block, list[Cell]] = field(default_factory=dict)
    path: Path | None = None
    page: Path | None = None
    _recording: "Recording | None" = None
    _trials: "Bench | None" = None
    _open: ExitStack = field(default_factory=ExitStack)
    _readings: dict[Cell, dict[str, Reading]] = field(default_factory=dict)

    def outcomes(self, cell: Cell) -> Mapping[str, Reading]:
        """Return the cell's outcomes; measure its whole block on first need."""
        if cell not in self._readings:
            for outcome in self._recorded().measure(cell.block):
                self._readings.setdefault(outcome.cell, {})[outcome.meter] = outcome
        return self._readings[cell]

    def try_once(self, cell: Cell) -> Skipped | None:
        """Run a cell's step in its own process and return why that is impossible, if it is."""
        from ..runner.bench import Bench

        if self._trials is None:
            self._trials = self._open.enter_context(
                Bench(plan=self.plan, models=self.models, meters=["saved_for_backward"])
            )
        ((outcome,),) = self._trials.measure([cell])
        if isinstance(outcome, Skipped) and outcome.cause not in NOTHING_TO_READ:
            return outcome
        return None

    def close(self) -> "Run | None":
        """Seal the run and write its page, if anything was measured."""
        with self._open:
            if self._recording is None:
                return None
            run = self._recording.finish()
        from ..recording import write_page
        from ..records import semantics

        torch = run.environment.facts.get("torch")
        behaviour = semantics.load_of(self.results / semantics.FILE, torch=torch)
        self.path = self._recording.path
        self.page = write_page(run, self.path.parent, self.reports, semantics=behaviour)
        return run

    def _recorded(self) -> "Recording":
        if self._recording is None:
            from ..recording import Recording
            from ..runner import preflight, started
            from ..store.jsonl import Store

            header = started(
                [cell for members in self.selected.values() for cell in members],
                plan=self.plan,
                meters=preflight.DEFAULT_METERS,
                models=self.models,
                shard=self.shard,
                places=self.places,
            )
            recording = Recording(Store(self.results).create(), header, models=self.models)
            self._recording = self._open.enter_context(recording)
        return self._recording


_SESSION: Final = pytest.StashKey[Session]()
_REFUSAL: Final = pytest.StashKey[pytest.UsageError]()
_RUN: Final = pytest.StashKey["Run"]()
_LOSS: Final = pytest.StashKey[str]()


def _session(config: pytest.Config) -> Session:
    if _SESSION not in config.stash:
        file: Path | None = config.getoption("gradbench_config")
        budget = config.getoption("gradbench_budget")
        selections = {"device": config.getoption("gradbench_device") or []}
        try:
            choice = choose(
                preset=config.getoption("gradbench_preset"),
                file=file,
                selections=selections,
                plan={"budget_s": budget} if budget is not None else {},
            )
            from .. import devices
            from ..runner import preflight
            from ..workloads.own_models import models_of

            cells = list(choice.cells)
            if file is None and not selections["device"]:
                cells = select(cells, "device", devices.available())
            cells = preflight.on_each_device(cells)
            models = models_of(choice.sources)
            preflight.check(cells, models)
        except BadSetting as error:  # of the option: what a file sets has its line
            raise _refusal(f"--gradbench-budget {error.words}") from None
        except GradbenchError as error:
            where = locate(file, error) if file and isinstance(error, UnknownName) else ""
            raise _refusal(f"{where}{error}") from None
        config.stash[_SESSION] = Session(
            by_name={str(cell): cell for cell in cells},
            plan=choice.plan,
            models=models,
            results=config.getoption("gradbench_results") or config.rootpath / "results",
            reports=config.getoption("gradbench_reports") or config.rootpath / "reports",
            shard=config.getoption("gradbench_shard") or "",
        )
    return config.stash[_SESSION]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Seal the records and write the page."""
    if _SESSION in session.config.stash:
        try:
            run = session.config.stash[_SESSION].close()
        except GradbenchError as error:  # as of a disk that is full: pytest would show a traceback
            session.config.stash[_LOSS] = str(error)
            session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
            return
        if run is not None:
            session.config.stash[_RUN] = run


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print each mode's ratio with its interval, and where records and page are."""
    if _LOSS in config.stash:
        terminalreporter.write_line(f"gradbench: {one_line(config.stash[_LOSS])}", red=True)
    if _RUN not in config.stash:
        return
    from ..analysis import run_sentences
    from ..terminal import run_tables
    from ..terminal.screen import Screen

    run, session = config.stash[_RUN], config.stash[_SESSION]
    terminalreporter.section("gradbench")
    buffer = StringIO()
    colour = terminalreporter.hasmarkup
    console = Screen(file=buffer, width=run_tables.WIDE, force_terminal=colour)
    console.print(run_tables.run_tables(run, reference=GRAD_MODES[0]))
    for line in [
        *buffer.getvalue().splitlines(),
        *map(printable, run_sentences.reasons(run)),
        printable(run_sentences.spent(run)),
    ]:
        terminalreporter.write_line(line)
    if not run.sealed:
        terminalreporter.write_line(
            f"cut short; go on with: gradbench run --resume {run.name} "
            f"--results {shlex.quote(str(session.results))}"
        )
    terminalreporter.write_line(f"records  {printable(str(session.path))}")
    terminalreporter.write_line(f"page     {printable(str(session.page))}")


def _refusal(words: str) -> pytest.UsageError:
    return pytest.UsageError(f"gradbench: {one_line(words)}")


def _cell_of(item: pytest.Item) -> Cell | None:
    callspec = getattr(item, "callspec", None)
    name = callspec.params.get(FIXTURE) if callspec is not None else None
    return _session(item.config).by_name[name] if isinstance(name, str) else None


def _give_up(cell: Cell, why: Skipped) -> None:
    from ..workloads.steps import must_fail

    reason = printable(why.reason)
    if why.cause == "cannot_train" and not must_fail(cell.workload, cell.grad_mode):
        pytest.xfail(f"after an evaluation under {cell.grad_mode}: {reason}")
    if why.cause == "cannot_train":
        raise CannotTrain(reason)
    if why.cause in ("impossible", "unavailable", *NOTHING_TO_READ):
        pytest.skip(f"{cell}: {reason}")
    raise StepFailed(f"{cell}: {why.cause.replace('_', ' ')}: {reason}")


def _nothing() -> None:
    """What pytest-benchmark runs while it receives recorded times."""
