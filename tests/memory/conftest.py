"""What tests of memory share."""

import gc

import pytest


@pytest.fixture
def collected() -> None:
    """Collect what an earlier test left: it must not be freed while this one counts."""
    gc.collect()
