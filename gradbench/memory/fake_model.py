"""A module on fake tensors, which have shapes and no bytes: built so, or for real and copied."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes

from ..devices.host_memory import free_bytes
from ..workloads.arms import Layout
from ..workloads.module_parts import own_buffers, own_parameters, parts, tensors_of
from ..workloads.state import seed_all
from ..workloads.trees import mapped
from .host_numbers import HostNumbers
from .storage_tracker import Creation, StorageTracker
from .storages import handed_out, key, storages

SHARE: Final = 2
"""A model is built for real if it needs less than this part of the free memory: half."""


class SharedFakeMode(FakeTensorMode):  # type: ignore[no-untyped-call] # torch's own
    """Fake tensors that a constructor may copy: they refer to their mode, and there is but one."""

    def __init__(self) -> None:
        super().__init__()
        self._bases: dict[int, Tensor] = {}  # by real storage
        self._elsewhere: set[tuple[int, int]] = set()  # memory that is not torch's

    def __deepcopy__(self, memo: object) -> "SharedFakeMode":
        """Return itself."""
        return self

    def made_fake(self, tensor: Tensor, place: str) -> Tensor:
        """Return a fake tensor like a real one, or one on ``place`` like one on ``meta``."""
        if isinstance(tensor, FakeTensor):
            return tensor
        if not tensor.is_meta:
            return self._like_real(tensor)
        with self, torch.no_grad():
            new = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device=place
            )
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(new, tensor.requires_grad)
        return new.requires_grad_(tensor.requires_grad)

    def hold_apart(self, storage: UntypedStorage) -> None:
        """Raise where memory that is not torch's is in two storages: its bytes count once."""
        start, stop = storage.data_ptr(), storage.data_ptr() + storage.nbytes()
        for first, last in self._elsewhere:
            if (first, last) != (start, stop) and first < stop and start < last:
                raise RuntimeError("two of its tensors overlap in memory that torch did not give")
        self._elsewhere.add((start, stop))

    def _like_real(self, tensor: Tensor) -> Tensor:
        """Return a fake tensor in a storage as large as the real one's, which others may share.

        torch's own copies have room for their elements alone, though they be part of a mapped file.
        """
        if not _in_one_storage(tensor):
            made: Tensor = self.from_tensor(tensor)
            return made
        storage = tensor.untyped_storage()
        base = self._bases.get(key(storage))
        if base is None and storage.nbytes() <= tensor.nbytes:
            made = self.from_tensor(tensor)
            self._bases[key(storage)] = made.detach()
            return made
        with self, torch.no_grad():
            if base is None:
                numbers = storage.nbytes() // tensor.itemsize
                base = torch.empty(numbers, dtype=tensor.dtype, device=tensor.device)
                self._bases[key(storage)] = base
            base = base.view(tensor.dtype)
            part = base.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).detach()
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(part, tensor.requires_grad)
        return part.requires_grad_(tensor.requires_grad)


def _in_one_storage(tensor: Tensor) -> bool:
    return (
        type(tensor) in (Tensor, nn.Parameter, nn.Buffer)
        and tensor.layout is torch.strided
        and not (tensor.is_nested or tensor.is_quantized)
    )


class UnaskingFakeMode(SharedFakeMode):  # type: ignore[no-untyped-call] # torch's own
    """One for fake tensors of the CPU alone: others ask for a GPU when entered, to start none.

    A process that has asked can fork no child that uses a GPU, or that steps with AdamW.
    """

    avoid_device_init = property(lambda _: False)


class TooLarge(Exception):
    """A model that does not fit the memory in which it would be built."""


def fake_module(
    factory: Callable[[], nn.Module],
    mode: SharedFakeMode,
    place: str,
    *,
    seed: int,
    adopt: Callable[[Tensor], None],
) -> nn.Module:
    """Return the factory's module, every tensor of it fake, while ``mode`` is entered.

    It is built on fake tensors, which takes no memory. Where its constructor looks at numbers, it
    is built for real, or on ``meta`` if that is too large, and copied; ``adopt`` is given the
    copies of what torch's allocator handed out. What is real though it was built on fake tensors
    is not of these: it was there before, or lies in memory of numpy's or of a file's. A module
    that was there before stays as it is.
    """
    built_for_real = False
    try:
        module = factory()
    except (Exception, SystemExit) as on_fakes:  # noqa: BLE001 # what fails for real, too, raises
        with _disable_current_modes():
            seed_all(seed)
            module = _real(factory, on_fakes)
        built_for_real = True
    tensors = list(tensors_of(module))
    if all(isinstance(tensor, FakeTensor) for tensor in tensors) and tensors:
        return module
    adopting = adopt if built_for_real else _unseen
    skeletons = any(not tensor.is_meta for tensor in tensors)  # what is on meta stays there
    made = _MadeFake(mode, place, adopting, skeletons=skeletons)
    with _disable_current_modes(), made as made_fake:
        memo: dict[int, Any] = {id(tensor): made_fake.like(tensor) for tensor in tensors}
        return copy.deepcopy(module, memo)


def _unseen(_tensor: Tensor) -> None:
    """Adopt nothing."""


def fake_batch(batch: Callable[[int], Any], mode: SharedFakeMode, size: int) -> Any:
    """Return a batch of fake tensors, made for real where it cannot be made of such."""
    numbers = HostNumbers()
    try:
        made = batch(size)
    except Exception:  # noqa: BLE001 # numpy, say: what fails for real, too, raises below
        numbers.put_back()
        with _disable_current_modes():
            made = batch(size)
    with _disable_current_modes():
        return mapped(made, lambda tensor: mode.made_fake(tensor, "cpu"))


def _real(factory: Callable[[], nn.Module], on_fakes: BaseException) -> nn.Module:
    """Build for real within the free memory, else on ``meta``."""
    limit_bytes = free_bytes() // SHARE
    live: dict[int, int] = {}

    def created(one: Creation) -> None:
        live[one.key] = one.nbytes
        if sum(live.values()) > limit_bytes:  # before anything is written to it
            raise TooLarge

    def freed(one: Creation) -> None:
        live.pop(one.key, None)

    try:
        with StorageTracker(on_create=created, on_free=freed):
            return factory()
    except TooLarge:
        pass
    try:
        with torch.device("meta"):
            return factory()
    except Exception as on_meta:
        raise TooLarge(
            f"its constructor needs numbers ({on_fakes}), and to be built for real it is too large "
            f"for half of the free memory, {limit_bytes:,} B"
        ) from on_meta


class _MadeFake(TorchFunctionMode):
    """Whatever is copied deep becomes a fake tensor: those that modules hold as attributes, too."""

    def __init__(
        self,
        mode: SharedFakeMode,
        place: str,
        adopt: Callable[[Tensor], None],
        *,
        skeletons: bool,
    ) -> None:
        super().__init__()
        self._mode, self._place, self._adopt = mode, place, adopt
        self._skeletons = skeletons

    def like(self, tensor: Tensor) -> Tensor:
        """Return a fake one."""
        if self._skeletons and tensor.is_meta:
            return tensor
        made = self._mode.made_fake(tensor, self._place)
        if all(handed_out(storage) for storage in storages(tensor)):
            self._adopt(made)
        elif _in_one_storage(tensor):
            self._mode.hold_apart(tensor.untyped_storage())
        return made

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function; where that is a deep copy, make it fake."""
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        memo[id(tensor)] = self.like(tensor)
        return memo[id(tensor)]


def remade(module: nn.Module, device: str, dtype: torch.dtype | None, layout: Layout) -> nn.Module:
    """Return the module with its tensors made anew where they must change.

    `torch.nn.Module.to` swaps the insides of parameters, which fake ones do not allow.
    """
    made: dict[int, Tensor] = {}  # shared ones stay shared

    def changed(tensor: Tensor) -> Tensor:
        if tensor.is_meta:  # a skeleton
            return tensor
        if id(tensor) not in made:
            new = tensor.detach()
            real = dtype is not None and tensor.is_floating_point()
            new = new.to(device, dtype if real else tensor.dtype)
            if layout is not None and new.dim() == 4:
                new = new.contiguous(memory_format=layout)
            same = (new.device, new.dtype, new.stride()) == (
                tensor.device,
                tensor.dtype,
                tensor.stride(),
            )
            made[id(tensor)] = (
                tensor
                if same
                else nn.Parameter(new, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else new
            )
        return made[id(tensor)]

    for part in parts(module):
        for name, parameter in list(own_parameters(part)):
            part._parameters[name] = changed(parameter)  # type: ignore[assignment] # one remains one
        for name, buffer in list(own_buffers(part)):
            part._buffers[name] = changed(buffer)
    return module
