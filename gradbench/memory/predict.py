"""What a step will need, without its memory and without its device: a run on fake tensors."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import devices
from ..devices import Device
from ..errors import DeviceUnavailable, GradbenchError
from ..experiment.matrix import Cell
from ..records.allocations import Change, Entry, Mark, Resident, Within, attribute_peak
from ..records.predictions import Fit, Prediction
from ..workloads.arms import Layout, build, make_arm, steps
from ..workloads.models import Model
from ..workloads.steps import Subject, must_fail
from .probe import Call, Prober
from .step_phases import Marks
from .storage_tracker import Creation, StorageTracker, storage_key

BASES: Final = (2, 4)
"""Batch sizes at which calls too large to be run are run instead; their inside is affine in it."""


LARGEST_BATCH: Final = 2**24
"""Where the search for a batch that does not fit ends."""


class Unpredictable(GradbenchError):
    """A cell whose step does not run on fake tensors, or cannot be taken for what would run."""


class CannotTrain(Unpredictable):
    """A step that torch refuses because nothing is recorded; the message is torch's."""


@dataclass(frozen=True, slots=True)
class _Outline:
    """One warm step on fake tensors: its entries, with calls where operators ran."""

    entries: Sequence[Entry | Call]
    resident: Mapping[int, Resident]
    before_bytes: int

    def calls(self) -> list[Call]:
        return [entry for entry in self.entries if isinstance(entry, Call)]


class Predictor:
    """Predicts cells of one device; what it learns about kernels serves all of them."""

    def __init__(self, device: str) -> None:
        self._device = devices.find(device)
        try:
            self._device.check()
            where: Device | None = self._device
        except DeviceUnavailable:
            where = None
        self._prober = Prober(where)

    def predict(
        self, cell: Cell, model: Model, *, seed: int = 0, probing: bool = True
    ) -> Prediction:
        """Return what a warm step of the cell will need; raise `Unpredictable` with the reason.

        Where a call is too large to be run, its inner needs are those of the same call at two
        small batch sizes, carried on in a straight line; without ``probing`` all are.
        """
        began = time.perf_counter()
        outline = self._outline(cell, model, seed)
        calls = outline.calls()
        small = cell.batch_size <= max(BASES)
        if probing or small:
            self._prober.learn(calls)
        inside = [self._prober.inside(call) for call in calls]
        if None in inside and not small:
            inside = self._carried_on(cell, model, seed, calls, inside)
        unprobed = {
            str(call.func.overloadpacket).replace(".", "::")
            for call, known in zip(calls, inside, strict=True)
            if known is None
        }
        entries = list(self._filled_in(outline, inside))
        return Prediction(
            cell,
            attribute_peak(entries, resident=outline.resident, before_bytes=outline.before_bytes),
            outline.before_bytes,
            tuple(sorted(unprobed)),
            time.perf_counter() - began,
        )

    def largest(self, cell: Cell, model: Model, budget_bytes: int, *, seed: int = 0) -> Fit:
        """Return the largest batch whose predicted peak fits a budget; raise `Unpredictable`.

        Peaks rise with the batch in straight pieces, so a guess lies where the line through the
        closest batches that fit and do not meets the budget; where that did not halve what is
        between them, the next guess does.
        """
        peaks: dict[int, int] = {}

        def peak(batch: int) -> int:
            if batch not in peaks:
                sized = replace(cell, batch_size=batch)
                prediction = self.predict(sized, model, seed=seed, probing=False)
                peaks[batch] = prediction.peak_bytes
            return peaks[batch]

        fits, over = 0, 1
        while peak(over) <= budget_bytes:
            fits, over = over, over * 4
            if over > LARGEST_BATCH:
                return Fit(cell, budget_bytes, fits, peaks[fits], None)
        halve = False
        while over - fits > 1:
            between = over - fits
            below = max(fits, 1)  # a batch of 0 cannot be predicted
            slope = (peak(over) - peak(below)) / max(over - below, 1)
            guess = below + int((budget_bytes - peak(below)) // slope) if slope > 0 else 0
            middle = (fits + over) // 2 if halve else min(max(guess, fits + 1), over - 1)
            if peak(middle) <= budget_bytes:
                fits = middle
                if fits + 1 < over and peak(fits + 1) > budget_bytes:
                    over = fits + 1
            else:
                over = middle
            halve = not halve and (over - fits) * 2 > between
        return Fit(cell, budget_bytes, fits, peaks.get(fits), peaks[over])

    def _carried_on(
        self,
        cell: Cell,
        model: Model,
        seed: int,
        calls: Sequence[Call],
        inside: Sequence[int | None],
    ) -> list[int | None]:
        """Return the inner needs with the unknown ones carried on from `BASES`."""
        lines = []
        for batch in BASES:
            small = self._outline(replace(cell, batch_size=batch), model, seed).calls()
            if [call.func for call in small] != [call.func for call in calls]:
                return list(inside)  # another batch size runs other operators: no line to follow
            self._prober.learn(small)
            lines.append([self._prober.inside(call) for call in small])
        low, high = BASES
        return [
            known
            if known is not None or first is None or second is None
            else first + (second - first) * (cell.batch_size - low) // (high - low)
            for known, first, second in zip(inside, *lines, strict=True)
        ]

    def _filled_in(self, outline: _Outline, inside: Sequence[int | None]) -> Iterator[Entry]:
        """Yield the entries with what each call takes inside beyond its outputs, after these.

        After, because what its outputs are for is known from them, and the sum is the same.
        """
        needs = iter(inside)
        call: Call | None = None
        rest = 0
        for entry in (*outline.entries, None):
            birth = isinstance(entry, Change) and entry.nbytes > 0
            if call is not None and not birth:
                if rest > 0:
                    yield Within(rest, str(call.func.overloadpacket).replace(".", "::"))
                call = None
            if isinstance(entry, Call):
                call, rest = entry, next(needs) or 0
            elif entry is not None:
                if isinstance(entry, Change) and birth:
                    rest -= entry.nbytes
                yield entry

    def _outline(self, cell: Cell, model: Model, seed: int) -> _Outline:
        if cell.compile == "on":
            raise Unpredictable("compiled code allocates by its own plan, which nobody can run yet")
        try:
            return _fake_step(cell, model, self._device, seed)
        except Exception as error:  # a model may do what fake tensors cannot
            words = (str(error).strip().splitlines() or [""])[0]
            if isinstance(error, RuntimeError) and must_fail(cell.workload, cell.grad_mode):
                raise CannotTrain(words) from error
            raise Unpredictable(
                f"its step does not run on fake tensors: {type(error).__name__}: {words}"
            ) from error


def _fake_step(cell: Cell, model: Model, device: Device, seed: int) -> _Outline:
    """Run a warm step on fake tensors and return its outline.

    Sizes are those that the device's allocator would take. Kernels and their order are the
    CPU's, as fake tensors of a CUDA device need a torch that has CUDA.
    """
    entries: list[Entry | Call] = []
    live: dict[int, int] = {}

    def on_create(birth: Creation) -> None:
        live[birth.key] = device.rounded(birth.nbytes)
        entries.append(Change(birth.key, live[birth.key], birth.op))

    def on_free(birth: Creation) -> None:
        entries.append(Change(birth.key, -live.pop(birth.key), birth.op))

    def called(func: Any, args: Any, kwargs: Any, result: Any) -> None:
        call = Call.of(func, args, kwargs, result)
        if call.needs_probe:
            entries.append(call)

    marks = Marks(address=storage_key)
    with FakeTensorMode():
        subject = _subject(cell, model, device, seed=seed)
        with StorageTracker(on_create=on_create, on_free=on_free, called=called):
            arm = make_arm(cell, marks.around(subject))
            with marks.telling(_nobody, subject.parameters()):
                steps(arm, 1)  # the first makes optimizer state
            subject.clear_gradients()
            resident = {
                address: replace(block, nbytes=device.rounded(block.nbytes))
                for address, block in marks.resident(subject).items()
            }
            before_bytes = sum(live.values())
            before_bytes += sum(
                block.nbytes for address, block in resident.items() if address not in live
            )
            entries.clear()
            with marks.telling(entries.append, subject.parameters()):
                steps(arm, 1)
    return _Outline(list(entries), resident, before_bytes)


def _nobody(_mark: Mark) -> None:
    """Hear nothing of a step that only warms up."""


def _subject(cell: Cell, model: Model, device: Device, *, seed: int) -> Subject:
    subject = build(replace(cell, device="cpu"), model, seed=seed, convert=_remade)
    optimizer: Callable[..., torch.optim.Optimizer] = subject.optimizer
    return replace(subject, optimizer=partial(optimizer, foreach=device.foreach))


def _remade(module: nn.Module, _device: str, dtype: torch.dtype, layout: Layout) -> nn.Module:
    """Return the module with its tensors made anew where they must change.

    `torch.nn.Module.to` swaps the insides of parameters, which fake ones do not allow.
    """
    made: dict[int, Tensor] = {}  # shared ones stay shared

    def changed(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            new = tensor.detach().to(dtype if tensor.is_floating_point() else tensor.dtype)
            if layout is not None and new.dim() == 4:
                new = new.contiguous(memory_format=layout)
            same = new.dtype == tensor.dtype and new.stride() == tensor.stride()
            made[id(tensor)] = (
                tensor
                if same
                else nn.Parameter(new, tensor.requires_grad)
                if isinstance(tensor, nn.Parameter)
                else new
            )
        return made[id(tensor)]

    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, changed(parameter))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, changed(buffer))
    return module
