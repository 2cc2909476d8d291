"""What tests of memory share."""

import pytest


@pytest.fixture(autouse=True)
def _collected(collected) -> None:
    """Every one of them counts."""
