"""What a step will need, without its memory and without its device: a run on fake tensors."""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import devices
from ..devices import Allocator, Device, Workspaces
from ..errors import DeviceUnavailable, GradbenchError
from ..experiment.matrix import Cell
from ..records.allocations import (
    Change,
    Entry,
    Mark,
    PeakBreakdown,
    Phase,
    Resident,
    Within,
    attribute_peak,
)
from ..records.predictions import Fit, Prediction
from ..workloads.arms import Layout, build, make_arm, steps
from ..workloads.models import Model
from ..workloads.state import seed_all
from ..workloads.steps import Subject, lacks_a_graph, must_fail
from .apart import apart
from .measured_line import MeasuredLine, MeasuredPoint, measured_point
from .probe import Call, Prober
from .step_phases import Marks
from .storage_tracker import Creation, StorageTracker
from .storages import key as storage_key

BASES: Final = (2, 4)
"""Batch sizes at which calls too large to be run are run instead; their inside is affine in it."""


COMPILED: Final = "compiled code allocates by its own plan, which nobody can run yet"

LARGEST_BATCH: Final = 2**24
"""Where the search for a batch that does not fit ends."""


SMALL_BYTES: Final = 256 * 2**20
"""What a step that is measured instead may add, as far as a smaller one tells."""

SMALLEST: Final = (1, 2, 3, 4, 8)
"""Batch sizes with which the search for the largest may begin."""

INSIDE: Final = -1
"""The key of what an operator takes inside; below are those of workspaces: no storage has them."""

PRODUCTS: Final = frozenset(
    f"aten::{name}"
    for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "_addmm_activation")
)
"""Operators for which cuBLAS takes a workspace."""


class Unpredictable(GradbenchError):
    """A cell whose step does not run on fake tensors, or cannot be taken for what would run."""


class CannotTrain(Unpredictable):
    """A step that torch refuses because nothing is recorded; the message is torch's."""


@dataclass(frozen=True, slots=True)
class _Outline:
    """One warm step on fake tensors: its entries, with calls where operators ran."""

    entries: Sequence[Entry | Call]
    resident: Mapping[int, Resident]
    before: Mapping[int, int]  # bytes of every block that was there, by key
    operators: frozenset[str]

    @property
    def before_bytes(self) -> int:
        """Bytes that were there."""
        return sum(self.before.values())

    def calls(self) -> list[Call]:
        return [entry for entry in self.entries if isinstance(entry, Call)]


class Predictor:
    """Predicts cells of one device; what it learns about kernels serves all of them."""

    def __init__(self, device: str) -> None:
        self._device = devices.find(device)
        self._here = True
        try:
            self._device.check()
        except DeviceUnavailable:
            self._here = False
        self._prober = Prober(self._device if self._here else None)
        self._workspaces = self._device.workspaces()
        self._points: dict[tuple[Cell, Model], MeasuredPoint] = {}

    def predict(
        self, cell: Cell, model: Model, *, seed: int = 0, probing: bool = True
    ) -> Prediction:
        """Return what a warm step of the cell will need; raise `Unpredictable` with the reason.

        Where a call is too large to be run, its inner needs are those of the same call at two
        small batch sizes, carried on in a straight line; without ``probing`` all are.
        """
        began = time.perf_counter()
        outline = self._outline(cell, model, seed)
        if isinstance(outline, MeasuredLine):
            return self._on_the_line(cell, outline, time.perf_counter() - began)
        calls = outline.calls()
        small = cell.batch_size <= max(BASES)
        if probing or small:
            self._prober.learn(calls)
        if self._here and any(map(self._prober.misled, calls)):
            with suppress(Unpredictable):  # then the fakes are all there is
                line = self._line(cell, model, seed, "its operators are not as their fakes")
                return self._on_the_line(cell, line, time.perf_counter() - began)
        inside = [self._prober.inside(call) for call in calls]
        if None in inside and not small:
            inside = self._carried_on(cell, model, seed, calls, inside)
        unprobed = {
            str(call.func.overloadpacket).replace(".", "::")
            for call, known in zip(calls, inside, strict=True)
            if known is None or self._prober.misled(call)
        }
        entries = list(self._filled_in(outline, inside))
        allocator = self._device.allocator()
        replay(outline.before, entries, allocator, workspaces=self._workspaces)
        otherwise = () if self._here else filter(self._device.runs_otherwise, outline.operators)
        return Prediction(
            cell,
            attribute_peak(entries, resident=outline.resident, before_bytes=outline.before_bytes),
            outline.before_bytes,
            tuple(sorted(unprobed)),
            time.perf_counter() - began,
            allocated_bytes=allocator.peak_bytes,
            reserved_bytes=allocator.reserved_bytes,
            context_bytes=self._device.context_bytes,
            run_otherwise=tuple(sorted(otherwise)),
        )

    def largest(self, cell: Cell, model: Model, budget_bytes: int, *, seed: int = 0) -> Fit:
        """Return the largest batch whose process fits a budget; raise `Unpredictable`.

        Peaks rise with the batch in straight pieces, so a guess lies where the line through the
        closest batches that fit and do not meets the budget; where that did not halve what is
        between them, the next guess does.
        """
        tried: dict[int, Prediction] = {}

        def peak(batch: int) -> int:
            if batch not in tried:
                sized = replace(cell, batch_size=batch)
                probing = self._here and self._device.context_bytes > 0
                tried[batch] = self.predict(sized, model, seed=seed, probing=probing)
            return tried[batch].process_bytes

        def fit(batch: int, next_bytes: int | None) -> Fit:
            one = tried[max(batch, least)]
            return Fit(
                cell,
                budget_bytes,
                batch,
                peak(batch) if batch >= least else None,
                next_bytes,
                one.context_bytes,
                one.unprobed,
                one.run_otherwise,
                one.measured_at,
            )

        least = self._least_batch(peak)
        fits, over = least - 1, least
        while peak(over) <= budget_bytes:
            fits, over = over, over * 4
            if over > LARGEST_BATCH:
                return fit(fits, None)
        halve = False
        while over - fits > 1:
            between = over - fits
            below = max(fits, least)  # a smaller batch cannot be predicted
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
        return fit(fits if fits >= least else 0, peak(over))

    def _least_batch(self, peak: Callable[[int], int]) -> int:
        """Return the smallest batch that can be stepped at all: BatchNorm trains none of one."""
        first: Unpredictable | None = None
        for batch in SMALLEST:
            try:
                peak(batch)
            except CannotTrain:
                raise
            except Unpredictable as reason:
                first = first or reason
            else:
                return batch
        assert first is not None  # SMALLEST is not empty
        raise first

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
            outline = self._outline(replace(cell, batch_size=batch), model, seed)
            if isinstance(outline, MeasuredLine):
                return list(inside)
            small = outline.calls()
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

    def _on_the_line(self, cell: Cell, line: MeasuredLine, seconds: float) -> Prediction:
        """Return what measured peaks say of the cell; of an allocator they know nothing."""
        parts, before_bytes = line.at(cell.batch_size)
        nothing: Mapping[str, tuple[int, ...]] = dict.fromkeys(parts, ())
        peak_bytes = sum(parts.values())
        return Prediction(
            cell,
            PeakBreakdown(parts, line.phase, {}, nothing, (), ()),
            before_bytes,
            (),
            seconds,
            allocated_bytes=peak_bytes,
            reserved_bytes=peak_bytes,
            context_bytes=self._device.context_bytes,
            measured_at=line.batches,
        )

    def _outline(self, cell: Cell, model: Model, seed: int) -> "_Outline | MeasuredLine":
        """Run a step on fake tensors, or where that cannot be, measure it at small batches."""
        if cell.compile == "on":
            raise Unpredictable(COMPILED)
        try:
            return self._fake_step(cell, model, seed)
        except Unpredictable:
            raise
        except (Exception, SystemExit) as error:  # a model may do what fake tensors cannot
            words = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
            if lacks_a_graph(error) and must_fail(cell.workload, cell.grad_mode):
                self._hold_that_it_trains(cell, model, seed, str(error))
            reason = f"its step does not run on fake tensors: {words}"
            if not self._here:
                raise Unpredictable(reason) from error
        return self._line(cell, model, seed, reason)

    def _fake_step(self, cell: Cell, model: Model, seed: int) -> _Outline:
        return _fake_step(cell, model, self._device, seed, here=self._here)

    def _hold_that_it_trains(self, cell: Cell, model: Model, seed: int, words: str) -> NoReturn:
        """Raise `CannotTrain` if the step works where a graph is recorded; else `Unpredictable`."""
        try:
            self._fake_step(replace(cell, grad_mode="global_on"), model, seed)
        except Exception as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise Unpredictable(f"{words}; under global_on, too: {why}") from error
        raise CannotTrain(words)

    def _line(self, cell: Cell, model: Model, seed: int, reason: str) -> MeasuredLine:
        """Return the cell's peak as measured, or where it is too large, a line to it."""
        batches = self._batches(cell, model, seed, reason)
        points = [self._point(cell, batch, model, seed, reason) for batch in batches]
        return MeasuredLine(batches, tuple(points))

    def _batches(self, cell: Cell, model: Model, seed: int, reason: str) -> tuple[int, ...]:
        """Return the cell's own batch, or the two largest, one twice the other, that are small."""
        first = min(cell.batch_size, max(BASES))
        point = self._point(cell, first, model, seed, reason)
        sample_bytes = max(1, (sum(point.parts.values()) - point.before_bytes) // first)
        most = max(first, SMALL_BYTES // sample_bytes)
        return (cell.batch_size,) if cell.batch_size <= most else (max(1, most // 2), most)

    def _point(self, cell: Cell, batch: int, model: Model, seed: int, reason: str) -> MeasuredPoint:
        sized = replace(cell, batch_size=batch)
        if (sized, model) not in self._points:
            try:
                measure = partial(measured_point, sized, model, seed)
                self._points[sized, model] = apart(measure, self._device)
            except (Exception, SystemExit) as error:
                if lacks_a_graph(error) and must_fail(cell.workload, cell.grad_mode):
                    raise CannotTrain(str(error)) from error
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise Unpredictable(f"{reason}; nor could it be measured: {why}") from error
        return self._points[sized, model]


def replay(
    before: Mapping[int, int],
    entries: Sequence[Entry],
    allocator: Allocator,
    *,
    workspaces: Workspaces,
) -> None:
    """Let an allocator hand out what was there before a step, then what two steps ask for.

    In the first one, libraries take their ``workspaces`` where the forward and where the backward
    pass first multiplies: out of what is free just then, which a later activation misses. The
    allocator's peak is the second step's.
    """
    for key, nbytes in before.items():
        allocator.take(key, nbytes)
    left = {"forward": workspaces.forward, "backward": workspaces.backward}
    workspace = INSIDE
    for _ in range(2):
        allocator.reset()
        thread = "forward"
        for entry in entries:
            match entry:
                case Phase(name):
                    thread = "backward" if name == "backward" else "forward"
                case Change(key, nbytes, op) if nbytes > 0:
                    allocator.give(key)  # a gradient that the last step left
                    allocator.take(key, nbytes)
                    if op in PRODUCTS:
                        for size in left.pop(thread, ()):
                            workspace -= 1
                            allocator.take(workspace, size)
                case Change(key, _, _):
                    allocator.give(key)
                case Within(nbytes, _):
                    allocator.take(INSIDE, nbytes)
                    allocator.give(INSIDE)


class _FakeStep:
    """Keeps what a step on fake tensors makes and frees on its device, and what it runs."""

    def __init__(self, place: str, *, numbers_elsewhere: bool) -> None:
        self.entries: list[Entry | Call] = []
        self.live: dict[int, int] = {}
        self.operators: set[str] = set()
        self._place, self._numbers_elsewhere = place, numbers_elsewhere
        self._phase = ""

    def mark(self, mark: Mark) -> None:
        """Keep a mark."""
        if isinstance(mark, Phase):
            self._phase = mark.name
        self.entries.append(mark)

    def created(self, one: Creation) -> None:
        """Keep what was made, unless it lies elsewhere: optimizers count steps on the host."""
        number = one.scalar and self._phase == "optimizer" and self._numbers_elsewhere
        if one.device == self._place and not number:
            self.live[one.key] = one.nbytes
            self.entries.append(Change(one.key, one.nbytes, one.op))

    def freed(self, one: Creation) -> None:
        """Keep what was freed."""
        if one.key in self.live:
            self.entries.append(Change(one.key, -self.live.pop(one.key), one.op))

    def called(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep a call that may allocate inside."""
        self.operators.add(str(func.overloadpacket).replace(".", "::"))
        call = Call.of(func, args, kwargs, result)
        if call.needs_probe:
            self.entries.append(call)


def _fake_step(cell: Cell, model: Model, device: Device, seed: int, *, here: bool) -> _Outline:
    """Run a warm step on fake tensors and return its outline, in bytes asked for.

    Where the device is here, fake tensors are on it, and its own operators run. Without it they
    are on the CPU, and so are operators and their order: fake tensors of a CUDA device need a
    torch that has CUDA.
    """
    place = device.place if here else "cpu"
    fake = _FakeStep(place, numbers_elsewhere=device.place != place)
    marks = Marks(address=storage_key)
    with ExitStack() as stack:
        subject = _subject(cell, model, device, place, seed=seed, stack=stack)
        if any(map(_is_compiled, subject.module.modules())):
            raise Unpredictable(COMPILED)
        with StorageTracker(on_create=fake.created, on_free=fake.freed, called=fake.called):
            arm = make_arm(cell, marks.around(subject))
            with marks.telling(fake.mark, subject.parameters()):
                steps(arm, 1)  # the first makes optimizer state
            subject.clear_gradients()
            resident = {
                key: block
                for key, block in marks.resident(subject).items()
                if block.part != "optimizer_state" or key in fake.live
            }
            before = {key: block.nbytes for key, block in resident.items()} | fake.live
            fake.entries.clear()
            with marks.telling(fake.mark, subject.parameters()):
                steps(arm, 1)
    return _Outline(list(fake.entries), resident, before, frozenset(fake.operators))


def _subject(
    cell: Cell, model: Model, device: Device, place: str, *, seed: int, stack: ExitStack
) -> Subject:
    """Return the subject on fake tensors, within a mode of theirs that the stack leaves.

    It is built in that mode, which takes no memory; a constructor that looks at values needs real
    ones, of which fakes are made: on the meta device where that will do, or else for real.
    """
    sized = replace(cell, device=place)
    try:
        stack.enter_context(CopyableFakeTensorMode())
        subject = build(sized, model, seed=seed, convert=_remade)
    except (Exception, SystemExit) as error:  # noqa: BLE001 # a constructor may do anything
        stack.close()
        subject = _built_before(sized, model, seed=seed, stack=stack, why=error)
    optimizer: Callable[..., torch.optim.Optimizer] = subject.optimizer
    return replace(subject, optimizer=partial(optimizer, foreach=device.foreach))


def _built_before(
    cell: Cell, model: Model, *, seed: int, stack: ExitStack, why: BaseException
) -> Subject:
    module = _built(model, torch.device("meta"), seed) or _built(model, nullcontext(), seed)
    if module is None:
        raise why
    stack.enter_context(CopyableFakeTensorMode(allow_non_fake_inputs=True))
    ready = replace(model, build=lambda: _copied(module))
    return build(cell, ready, seed=seed, convert=_remade)


def _built(model: Model, where: AbstractContextManager[object], seed: int) -> nn.Module | None:
    """Return the module as it is built in a context, None where that raises."""
    seed_all(seed)
    try:
        with where:
            return model.build()
    except (Exception, SystemExit):  # noqa: BLE001 # then in another way, and the first is reported
        return None


def _copied(module: nn.Module) -> nn.Module:
    """Return the module with fake tensors of the same outlines; the one given is left alone."""
    tensors = [*module.parameters(), *module.buffers()]
    fakes: dict[int, object] = {id(tensor): _fake_of(tensor) for tensor in tensors}
    return copy.deepcopy(module, fakes)


def _fake_of(tensor: Tensor) -> Tensor:
    """Return a fake tensor of the same outline: of a meta tensor, one on the CPU."""
    with torch.no_grad():
        fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class CopyableFakeTensorMode(FakeTensorMode):  # type: ignore[no-untyped-call] # torch's own
    """Fake tensors that a constructor may copy deeply: their mode is not copied with them."""

    def __deepcopy__(self, _memo: object) -> "CopyableFakeTensorMode":
        return self


def _remade(module: nn.Module, device: str, dtype: torch.dtype | None, layout: Layout) -> nn.Module:
    """Return the module with its tensors made anew where they must change.

    `torch.nn.Module.to` swaps the insides of parameters, which fake ones do not allow.
    """
    made: dict[int, Tensor] = {}  # shared ones stay shared

    def changed(tensor: Tensor) -> Tensor:
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

    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, changed(parameter))
        for name, buffer in part.named_buffers(recurse=False):
            setattr(part, name, changed(buffer))
    return module
