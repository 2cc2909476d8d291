"""What tests of several folders share; the heavy things are imported where they are asked for."""

import gc
import os
import signal
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gradbench import scratch

if TYPE_CHECKING:
    from servers import SharedServers

TESTS = Path(__file__).parent
LONGEST = (
    *("zoo/test_promises.py", "comparison/test_compare.py"),
    *("comparison/test_instruction_counts.py", "runner/test_instructions.py"),
    "runner/test_compilation.py",
    *("cli/test_cli.py", "pytest_plugin/test_cells.py"),
    *("memory/test_predict.py", "report/test_page.py", "semantics/test_semantics.py"),
    *("cli/test_predict_cli.py", "memory/test_predicted_modules.py", "report/test_browser.py"),
    *("runner/test_fork_server.py", "runner/test_ranks.py", "runner/test_spawn_server.py"),
    *("memory/test_replaced_tensors.py", "memory/test_breakdown.py", "cli/test_report_command.py"),
)
"""Files that take ten seconds of CPU time or more, in their slow tests or in the others.

The last ones to be run should be short.
"""


def pytest_configure(config: pytest.Config) -> None:
    """Hide the machine's GPUs, unless tests or benchmarks that use them were asked for."""
    asked = "cuda" in config.getoption("markexpr") or config.getoption("benchmark_only")
    if not asked and "GRADBENCH_SIMULATED_CUDA" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if config.pluginmanager.hasplugin("hypothesispytest"):  # where there are only benchmarks, none
        _take_no_chances()


def _take_no_chances() -> None:
    """Let no property fail by chance: before test modules take their settings from the profile."""
    from hypothesis import HealthCheck, settings

    settings.register_profile(
        "any machine",
        deadline=None,  # a busy machine takes as long as it takes for an example
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,  # what has passed on a commit passes on it again
    )
    settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def _folders_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep caches and temporary folders apart from those of the user and of other workers.

    Commands find and report the temporary folders that killed processes left: with a shared one,
    a test would see those of a test that runs beside it.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADBENCH_CACHE", str(tmp_path_factory.mktemp("caches")))
        patch.setenv("GRADBENCH_LOCKS", str(tmp_path_factory.mktemp("locks")))
        temporary = str(tmp_path_factory.mktemp("t"))  # short: names of sockets begin with it
        patch.setenv("TMPDIR", temporary)
        patch.setattr(tempfile, "tempdir", temporary)
        yield


def pytest_sessionstart() -> None:
    """Have a fork of this process write down what it covers itself, and not what this one did.

    This process does that at its end. For each of thousands of forks it takes longer than the fork.
    """
    if "coverage" in sys.modules:
        os.register_at_fork(after_in_child=_forget_coverage)


def _forget_coverage() -> None:
    from coverage import Coverage

    current = Coverage.current()
    collector = getattr(current, "_collector", None)
    for lines in getattr(collector, "data", {}).values():
        lines.clear()  # in place: tracers go on filling it


HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ONEAPI_DEVICE_SELECTOR")
"""What a process that measures on the CPU sets in its environment, to see no other device."""


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    """Put back what commands and measuring take for good where a test runs them in this process."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    visible = {name: os.environ.get(name) for name in HIDING}
    yield
    for folder, _ in scratch.abandoned():
        scratch.remove(folder)
    for number, handler in before.items():
        signal.signal(number, handler)
    for name, value in visible.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def without_torch() -> set[str]:
    """Return the folders that a contract of import-linter keeps free of torch."""
    settings = tomllib.loads((TESTS.parent / "pyproject.toml").read_text("utf-8"))
    return {
        module.removeprefix("gradbench.")
        for contract in settings["tool"]["importlinter"]["contracts"]
        if "torch" in contract.get("forbidden_modules", ())
        for module in contract["source_modules"]
    }


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session of such folders' tests that imported torch: it was to answer in seconds."""
    if "torch" not in sys.modules:
        return
    paths = {item.path for item in session.items}
    folders = {p.relative_to(TESTS).parts[0] for p in paths if p.is_relative_to(TESTS)}
    if folders and folders <= without_torch():
        pytest.exit(f"torch was imported by the tests of {', '.join(sorted(folders))}", 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have xdist's workers, who take a file each, begin with the longest files."""
    if hasattr(config, "workerinput"):
        rank = {TESTS / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish() -> None:
    """Spare the collector the modules that were imported: what reads memory calls it often.

    Measuring processes have the same of their parent, before it forks them.
    """
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``simulated_cuda`` where the stand-in is neither here nor asked for."""
    if item.get_closest_marker("simulated_cuda") is None:
        return
    from simulated_gpu import stand_in

    if not stand_in.expected():
        pytest.skip("torch is not on the simulated CUDA runtime: tox -e simulated-cuda")


@pytest.fixture
def collected() -> Iterator[None]:
    """Collect what an earlier test left, and no more: none is freed while this one counts.

    Which tests those are depends on which files a worker was given before; when Python would
    collect what this one leaves depends on all that it has made.
    """
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module")
def measured_here() -> Iterator[None]:
    """Let this process measure blocks as measuring processes do, with one thread."""
    import torch

    from gradbench.devices.cpu import CPU
    from gradbench.runner import evaluation_pass, memory_pass, prediction_pass, time_pass

    gc.collect()  # as `collected` does, for what is measured once for all tests of a module
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        for one in (time_pass, memory_pass, prediction_pass, evaluation_pass):
            patch.setattr(one, "settle", lambda _: CPU())
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def servers() -> "Iterator[SharedServers]":
    """Real fork servers, one of each kind a session: call it with a kind to borrow one."""
    from servers import SharedServers  # brings torch

    shared = SharedServers()
    yield shared
    shared.close()


@pytest.fixture(scope="module")
def shared_fork_servers(servers) -> Iterator[None]:
    """Let everything that this module's tests measure borrow its fork servers.

    For tests of what comes out. Those of starting and ending processes start their own.
    """
    from gradbench.runner import processes

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "start", servers)
        yield
