"""CUDA: everything in gradbench that says ``torch.cuda``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from ..errors import DeviceUnavailable
from ..records import Fact
from . import Ledger, Window

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CUDA:
    """One CUDA device; ``cuda`` is the current one."""

    name: str

    @property
    def start(self) -> Literal["fork", "spawn"]:
        """A fresh process: a CUDA context does not survive a fork."""
        return "spawn"

    @property
    def batch_ns(self) -> int:
        """Long against the 10 us or so that a synchronization takes."""
        return 1_000_000

    @property
    def l2(self) -> tuple[str, ...]:
        """Both: the cache can be overwritten between steps."""
        return ("hot", "cold")

    def check(self) -> None:
        """Raise `DeviceUnavailable` without a CUDA build, a driver or this index."""
        if torch.version.cuda is None:
            raise DeviceUnavailable(f"{self.name}: this build of torch has no CUDA")
        if not torch.cuda.is_available():
            raise DeviceUnavailable(f"{self.name}: torch finds no CUDA device on this machine")
        index, count = torch.device(self.name).index, torch.cuda.device_count()
        if index is not None and index >= count:
            raise DeviceUnavailable(f"{self.name}: this machine has {count}, counted from cuda:0")

    def prepare(self) -> None:
        """Pick the device; fix TF32 and cuDNN's autotuner, whose choices vary from run to run."""
        torch.cuda.set_device(self._device())
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False

    def synchronize(self) -> None:
        """Wait for every stream of the device."""
        torch.cuda.synchronize(self.name)

    def ledger(self) -> Ledger:
        """Return the caching allocator's own counters."""
        return AllocatorLedger(self.name)

    def out_of_memory(self, error: BaseException) -> bool:
        """Recognise torch's own class for it."""
        return isinstance(error, torch.cuda.OutOfMemoryError)

    def describe(self) -> Mapping[str, Fact]:
        """Return the GPU's name and size, and the versions beneath torch."""
        properties = torch.cuda.get_device_properties(self._device())
        cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call] # torch leaves it untyped
        return {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "gpu_capability": f"{properties.major}.{properties.minor}",
            "gpu_driver": _driver(),
            "cuda": torch.version.cuda or "unknown: torch was built without CUDA",
            "cudnn": cudnn if cudnn is not None else "unknown: torch was built without cuDNN",
            "tf32": torch.backends.cuda.matmul.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
        }

    def _device(self) -> torch.device:
        device = torch.device(self.name)
        return device if device.index is not None else torch.device("cuda", 0)


@dataclass(frozen=True, slots=True)
class AllocatorLedger:
    """The caching allocator's counters; it needs no watching between windows."""

    name: str

    def observe(self, function: Callable[[], T]) -> tuple[T, Window]:
        """Run the function between a reset of the peaks and a synchronized reading of them."""
        torch.cuda.synchronize(self.name)
        torch.cuda.reset_peak_memory_stats(self.name)
        before = torch.cuda.memory_allocated(self.name)
        result = function()
        torch.cuda.synchronize(self.name)
        return result, Window(
            before,
            torch.cuda.max_memory_allocated(self.name),
            torch.cuda.max_memory_reserved(self.name),
        )


def _driver() -> str:
    try:
        import pynvml
    except ImportError:
        return "unknown: install nvidia-ml-py to record the driver's version"
    try:
        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return f"unknown: {error}"
