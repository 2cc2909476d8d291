"""Tests of the CUDA path need the simulated CUDA runtime; without it they are skipped."""

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked ``simulated_cuda`` where the stand-in is neither here nor asked for."""
    if item.get_closest_marker("simulated_cuda") is None:
        return
    from simulated_gpu import stand_in

    if not stand_in.expected():
        pytest.skip("torch is not on the simulated CUDA runtime: tox -e simulated-cuda")
