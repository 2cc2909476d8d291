"""Which half of the suite runs: the tests, or with ``--benchmark-only`` the benchmarks."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parent


def pytest_sessionstart() -> None:
    """Let sessions that tests start be their own: pytest-benchmark is off where xdist's mark is."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out benchmarks/ unless asked for, and tests/ when only benchmarks are."""
    only_benchmarks = config.getoption("benchmark_only")
    named = any(
        (ROOT / "benchmarks").name in argument for argument in config.invocation_params.args
    )
    if collection_path == ROOT / "tests" and only_benchmarks:
        return True
    if collection_path == ROOT / "benchmarks" and not (only_benchmarks or named):
        return True
    return None
