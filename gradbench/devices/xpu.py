"""Intel's GPUs: counters and queues by `torch.accelerator`, facts by ``torch.xpu``.

Written after torch's documentation; it has never run on such a GPU.
"""

from collections.abc import Mapping
from typing import ClassVar

from ..records.measurements import Fact
from .accelerator import Accelerator


class XPU(Accelerator):
    """One device; ``xpu`` is the first."""

    __slots__ = ()
    family: ClassVar[str] = "xpu"
    collectives: ClassVar[str] = "xccl"
    variables: ClassVar[tuple[str, ...]] = (
        "ONEAPI_DEVICE_SELECTOR",
        "PYTORCH_ALLOC_CONF",
        "SYCL_CACHE_PERSISTENT",
        "ZE_AFFINITY_MASK",
        "ZE_FLAT_DEVICE_HIERARCHY",
    )

    def describe(self) -> Mapping[str, Fact]:
        """Return the GPU's name, size and driver."""
        properties = self._backend().get_device_properties(self._device())
        return {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_capability": str(getattr(properties, "version", "unknown: torch does not say")),
            "gpu_driver": str(getattr(properties, "driver_version", "unknown: torch does not say")),
            "accelerator_settings": self._settings(),
        }
