"""Apple's GPUs: what Metal holds for the process, and the host's clock; peaks are not counted.

Written after torch's documentation; it has never run on such a GPU.
"""

import platform
from collections.abc import Mapping
from typing import ClassVar, Final

import torch

from ..records.measurements import Fact
from . import Allocator, Ledger, Unreadable
from .accelerator import Accelerator
from .cpu import ExactAllocator

NO_PEAKS: Final = "torch counts what is allocated on mps now, and keeps no peak"
OUT_OF_MEMORY: Final = ("MPS backend out of memory", "Invalid buffer size")


class MPS(Accelerator):
    """The one device; ``mps:0`` is its place."""

    __slots__ = ()
    family: ClassVar[str] = "mps"
    variables: ClassVar[tuple[str, ...]] = (
        "PYTORCH_ENABLE_MPS_FALLBACK",
        "PYTORCH_MPS_FAST_MATH",
        "PYTORCH_MPS_HIGH_WATERMARK_RATIO",
        "PYTORCH_MPS_LOW_WATERMARK_RATIO",
        "PYTORCH_MPS_PREFER_METAL",
    )
    cluster_resource: ClassVar[str] = ""  # none counts them

    def allocator(self) -> Allocator:
        """Return one that hands out what is asked for: how Metal's heaps round is not modelled."""
        return ExactAllocator()

    def prepare(self) -> None:
        """Do nothing: there is one device."""

    def synchronize(self) -> None:
        """Wait for all kernels."""
        torch.mps.synchronize()

    def forget(self) -> None:
        """Drop cached blocks."""
        self.synchronize()
        torch.mps.empty_cache()

    def ledger(self, *, undisturbing: bool = False) -> Ledger:  # noqa: ARG002 # either way
        """Raise `Unreadable`: there are no peaks, and a 0 would be none."""
        raise Unreadable(NO_PEAKS)

    def process_bytes(self) -> int:
        """Return what Metal's driver has allocated for this process."""
        return int(torch.mps.driver_allocated_memory())

    def out_of_memory(self, error: BaseException) -> bool:
        """Recognise torch's class and the backend's words."""
        known = isinstance(error, RuntimeError) and any(w in str(error) for w in OUT_OF_MEMORY)
        return known or super().out_of_memory(error)

    def describe(self) -> Mapping[str, Fact]:
        """Return the chip, and what of its memory torch may use."""
        return {
            "gpu": f"{platform.processor() or platform.machine()} (mps)",
            "gpu_memory_bytes": int(torch.mps.recommended_max_memory()),
            "gpu_capability": "unknown: torch does not say",
            "gpu_driver": f"macOS {platform.mac_ver()[0]}",
            "accelerator_settings": self._settings(),
        }

    def _free_bytes(self) -> int:
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
