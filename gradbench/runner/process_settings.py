"""What a process is set to: looked at before a model is built and after, put right or noted."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Final

import torch

from ..records.measurements import Fact
from . import host_system


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """The settings that change figures and that a package may change when it is imported."""

    threads: int
    cores: tuple[int, ...]
    default_dtype: str
    default_device: str
    float32_precision: str
    deterministic: bool
    grad: bool

    @classmethod
    def now(cls) -> "ProcessSettings":
        """Return the settings as they are."""
        return cls(
            threads=torch.get_num_threads(),
            cores=tuple(host_system.usable_cores()),
            default_dtype=str(torch.get_default_dtype()).removeprefix("torch."),
            default_device=str(torch.get_default_device()),
            float32_precision=_float32_precision(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            grad=torch.is_grad_enabled(),
        )

    def put_right(self) -> None:
        """Set what the experiment decides, threads, cores and grad, as it is here."""
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if tuple(host_system.usable_cores()) != self.cores:
            host_system.bind(self.cores)
        torch.set_grad_enabled(self.grad)

    def put_back(self) -> None:
        """Set what a second build of the same model is to find as the first did."""
        self.put_right()
        if torch.get_default_dtype() != (dtype := getattr(torch, self.default_dtype)):
            torch.set_default_dtype(dtype)
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:
            torch.use_deterministic_algorithms(self.deterministic)

    def notes(self, later: "ProcessSettings", *, who: str) -> Mapping[str, Fact]:
        """Return what was set otherwise later, as a note of a measurement."""
        changed = [
            f"{field.name.replace('_', ' ')} {getattr(self, field.name)} to "
            f"{getattr(later, field.name)}{' (put back)' if field.name in _PUT_RIGHT else ''}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(later, field.name)
        ]
        return {who: "; ".join(changed)} if changed else {}


_PUT_RIGHT: Final = ("threads", "cores", "grad")


def _float32_precision() -> str:
    try:
        return str(torch.get_float32_matmul_precision())
    except RuntimeError:  # it was set backend by backend, and torch has no one answer
        return "by backend"
