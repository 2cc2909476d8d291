"""What tests of memory share that measure in this process."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def measured_here() -> Iterator[None]:
    """Let this process measure blocks as measuring processes do, with one thread."""
    import torch

    from gradbench.devices.cpu import CPU
    from gradbench.runner import memory_pass

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_pass, "settle", lambda _: CPU())
        yield
    torch.set_num_threads(threads)
