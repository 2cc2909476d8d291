"""What a step will need, without its memory and without its device: a run on fake tensors."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import torch.distributed as dist

from .. import devices
from ..devices import Device, OutOfSight
from ..devices.host_memory import free_bytes
from ..errors import DeviceUnavailable, GradbenchError, in_one_line, message_line
from ..experiment.matrix import RECORDING, Cell
from ..records.allocations import Change, Entry, Within, attribute_peak
from ..records.predictions import BUILD_FAILS, STEP_FAILS, Fit, Prediction, in_a_line
from ..users_traceback import users_traceback
from ..workloads.arms import built_module, fed, same_step
from ..workloads.models import Model
from ..workloads.state import seed_all
from ..workloads.steps import WORKLOADS, says_the_mode
from . import batch_fit
from .allocator_replay import replay
from .child_process import FORKS, LIMIT_S, Children, Died, TimedOut, frames_of
from .fake_model import SHARE
from .fake_step import COMPILED, Compiled, Unfaithful, fake_step, load
from .measured_step import TooLargeToRun, measured_step
from .outline import Line, Outline, carried_on
from .probe import Call, Prober

SMALL_BYTES: Final = 256 * 2**20
"""What a step that is measured instead may add, as far as a smaller one tells."""

CHECKED: Final = 2
"""The batch size, at most, at which a prediction is checked by a measured step."""

CHECKED_BYTES: Final = 2 * 2**30
"""A step that is predicted to need more is not run for a check: building its model takes long."""

MOST_ENTRIES: Final = 4_000
"""Allocations and frees that a step measured instead may make more than a small one: where each
sample has its own, as in nested tensors, a step takes as long as they are many."""

FAILS_ON_FAKES: Final = "its step does not run on fake tensors: "

NO_GROUP: Final = "this process is in a process group, which no child of it could use"

KEPT: Final = 16
"""Outlines that are kept: a search asks for some again, and modes for each other's."""


class Unpredictable(GradbenchError):
    """A cell whose step does not run on fake tensors, or cannot be taken for what would run.

    ``frames`` is the part of the traceback that is the user's, where their code raised.
    """

    def __init__(self, why: str, *, frames: str = "") -> None:
        super().__init__(why)
        self.frames = frames


class CannotTrain(Unpredictable):
    """A step that torch refuses because nothing is recorded; the message is torch's."""


class CannotBuild(Unpredictable):
    """A model that its own factory does not build; the message says what that raises."""


class EndsItsProcess(Unpredictable):
    """A step that ended the process in which it was to be predicted; the message says how."""


class TookTooLong(Unpredictable):
    """A step that was killed at its time limit; the message says how long that is."""


class Predictor:
    """Predicts cells of one device; what it learns about kernels serves all of them.

    A step is the user's code: each is made in a child of this process, so that what it sets, caches
    or ends reaches no other. One that takes more than ``limit_s`` is killed. Children are forks, or
    fresh processes where this one cannot be forked.

    With ``checks``, a small batch of each cell is run for real, too, where it can be: a step that
    differs there from what it does on fake tensors is measured instead.
    """

    def __init__(
        self,
        device: str,
        *,
        limit_s: float = LIMIT_S,
        forks: bool = FORKS,
        checks: bool = False,
    ) -> None:
        self.limit_s, self._forks, self._checks = limit_s, forks, checks
        self._device = devices.find(device)
        self._here = True
        try:
            self._device.check()
        except DeviceUnavailable:
            self._here = False
        self._prober = Prober(self._device if self._here else None)
        self._workspaces = self._device.workspaces()
        self._outlines: dict[tuple[Cell, Model, int], Outline | Unfaithful] = {}
        self._measurements: dict[tuple[Cell, Model, int, bool], Outline] = {}
        self._unbuilt: dict[tuple[Model, bool, int], CannotBuild | None] = {}

    def predict(
        self, cell: Cell, model: Model, *, seed: int = 0, probing: bool = True
    ) -> Prediction:
        """Return what a warm step of the cell will need; raise `Unpredictable` with the reason.

        Where a call is too large to be run, its inner needs are those of the same call at two
        small batch sizes, carried on in a straight line; without ``probing`` all are. Where the
        step does not run on fake tensors, or not as it does for real, all of it is measured at
        two small batch sizes, which the prediction says.
        """
        if _building(cell, model, seed) in self._unbuilt:
            self._hold_that_it_is_built(cell, model, seed)
        try:
            return self._predicted(cell, model, seed, probing=probing)
        except (CannotTrain, EndsItsProcess, TookTooLong):
            raise
        except GradbenchError:
            self._hold_that_it_is_built(cell, model, seed)
            raise

    def _predicted(self, cell: Cell, model: Model, seed: int, *, probing: bool) -> Prediction:
        began = time.perf_counter()
        try:
            outline, unprobed = self._filled(cell, model, seed, probing=probing)
            checked_at = self._checked_at(cell, model, seed, outline)
        except Unfaithful as why:
            return self._measured(cell, model, seed, why, began)
        return self._prediction(cell, outline, began, unprobed=unprobed, checked_at=checked_at)

    def largest(self, cell: Cell, model: Model, budget_bytes: int, *, seed: int = 0) -> Fit:
        """Return the largest batch whose process fits a budget; raise `Unpredictable`.

        What a small batch had to be measured for is not asked of larger ones again: their step on
        fake tensors may take minutes, only to fail.
        """
        probing = self._here and self._device.context_bytes > 0
        why: list[Unfaithful] = []  # of the first batch that works

        def predicted(batch: int) -> Prediction:
            sized = replace(cell, batch_size=batch)
            if why:
                return self._measured(sized, model, seed, why[0], time.perf_counter())
            found = self.predict(sized, model, seed=seed, probing=probing)
            if found.why_measured:
                why.append(Unfaithful(found.why_measured))
            return found

        def followed(low: int, high: int) -> "batch_fit.Estimate | None":
            return self._followed(cell, model, seed, (low, high), *why)

        final = (CannotTrain, CannotBuild, TookTooLong)
        return batch_fit.largest(cell, budget_bytes, predicted, followed, final=final)

    def _followed(
        self,
        cell: Cell,
        model: Model,
        seed: int,
        bases: tuple[int, int],
        why: Unfaithful | None = None,
    ) -> "batch_fit.Estimate | None":
        """Return a way to estimate any batch's peak from two, without a step; None for none."""
        low, high = bases
        try:
            first, second = self._outlines_at(cell, model, seed, bases, why)
        except Unpredictable:
            return None
        if carried_on(first, second, Line(low, high, high)) is None:
            peaks = [self._prediction(cell, one, 0.0).process_bytes for one in (first, second)]
            return None if peaks[0] >= peaks[1] else lambda batch: Line(low, high, batch).at(*peaks)

        def estimate(batch: int) -> int | None:
            outline = carried_on(first, second, Line(low, high, batch))
            if outline is None:
                return None
            sized = replace(cell, batch_size=batch)
            return self._prediction(sized, outline, 0.0).process_bytes

        return estimate

    def _outlines_at(
        self,
        cell: Cell,
        model: Model,
        seed: int,
        batches: tuple[int, int],
        why: Unfaithful | None,
    ) -> list[Outline]:
        """Return a step's outlines at two batch sizes, measured where that has a reason."""
        cells = [replace(cell, batch_size=batch) for batch in batches]
        if why is None:
            try:
                found = [self._filled(one, model, seed, probing=True)[0] for one in cells]
                self._checked_at(cells[0], model, seed, found[0])
                return found
            except Unfaithful as objection:
                why = objection
        return [self._run_for_real(one, model, seed, why) for one in cells]

    def _prediction(
        self,
        cell: Cell,
        outline: Outline,
        began: float,
        *,
        unprobed: tuple[str, ...] = (),
        measured_at: tuple[int, ...] = (),
        why_measured: str = "",
        checked_at: int | None = None,
    ) -> Prediction:
        entries = [entry for entry in outline.entries if not isinstance(entry, Call)]
        allocator = self._device.allocator()
        replay(outline.before, entries, allocator, workspaces=self._workspaces)
        otherwise = () if self._here else filter(self._device.runs_otherwise, outline.operators)
        return Prediction(
            cell,
            attribute_peak(
                entries,
                resident=outline.resident,
                before_bytes=outline.before_bytes,
                autocast=cell.autocast != "off",
            ),
            outline.before_bytes,
            unprobed,
            time.perf_counter() - began,
            allocated_bytes=allocator.peak_bytes,
            reserved_bytes=allocator.reserved_bytes,
            context_bytes=self._device.context_bytes,
            run_otherwise=tuple(sorted(otherwise)),
            measured_at=measured_at,
            why_measured=why_measured,
            checked_at=checked_at,
        )

    def _checked_at(self, cell: Cell, model: Model, seed: int, there: Outline) -> int | None:
        """Return the small batch at which a measured step peaks as predicted; None for no check.

        Raise `Unfaithful` where it peaks otherwise. There is no check of what is large, of what
        works at no small batch size, and of devices whose libraries keep workspaces, which a step
        takes or finds taken.
        """
        if not self._checks or not self._here or not self._device.tensors_from_malloc:
            return None
        if there.before_bytes > CHECKED_BYTES:
            return None
        small = replace(cell, batch_size=min(cell.batch_size, CHECKED))
        try:
            outline, _ = self._filled(small, model, seed, probing=True)
            predicted = self._prediction(small, outline, 0.0)
            if predicted.peak_bytes > CHECKED_BYTES:
                return None
            why = Unfaithful("its step is checked")
            measured = self._run_for_real(small, model, seed, why, with_parts=False)
        except (Unfaithful, Unpredictable):
            return None
        difference = self._prediction(small, measured, 0.0).peak_bytes - predicted.peak_bytes
        if difference:
            direction = "more" if difference > 0 else "less"
            raise Unfaithful(
                f"at batch {small.batch_size} its step needs {abs(difference):,} B {direction} "
                "than predicted on fake tensors"
            )
        return small.batch_size

    def _filled(
        self, cell: Cell, model: Model, seed: int, *, probing: bool
    ) -> tuple[Outline, tuple[str, ...]]:
        """Return a step's outline with what calls take inside, and the calls where nobody knows.

        Raise `Unfaithful` where the step does not run on fake tensors, or returns other sizes.
        """
        outline = self._outline(cell, model, seed)
        calls = outline.calls()
        bases = self._device.carried_from(cell.batch_size)
        small = cell.batch_size <= max(bases)
        if probing or small:
            self._learn(cell, calls)
        inside = [self._prober.inside(call, threads=cell.threads) for call in calls]
        if None in inside and not small:
            inside = self._carried_on(cell, model, seed, calls, inside, bases=bases)
        unprobed = {call.name for call, known in zip(calls, inside, strict=True) if known is None}
        entries = list(self._filled_in(outline, inside))
        return replace(outline, entries=entries), tuple(sorted(unprobed))

    def _learn(self, cell: Cell, calls: Sequence[Call]) -> None:
        """Run calls; raise `Unfaithful` where one does not do what it does on fake tensors."""
        self._prober.learn(calls, threads=cell.threads, children=self._children())
        for call in calls:
            objection = self._prober.objection(call, threads=cell.threads)
            if objection:
                raise Unfaithful(objection)

    def _carried_on(
        self,
        cell: Cell,
        model: Model,
        seed: int,
        calls: Sequence[Call],
        inside: Sequence[int | None],
        *,
        bases: tuple[int, int],
    ) -> list[int | None]:
        """Return the inner needs with the unknown ones carried on from these batch sizes."""
        lines = []
        for batch in bases:
            try:
                small = self._outline(replace(cell, batch_size=batch), model, seed).calls()
            except Unfaithful:
                return list(inside)  # it does not run at that batch size
            if [call.func for call in small] != [call.func for call in calls]:
                return list(inside)  # another batch size runs other operators: no line to follow
            self._learn(cell, small)
            there = [self._prober.inside(call, threads=cell.threads) for call in small]
            if all(
                known is not None or one is None for known, one in zip(inside, there, strict=True)
            ):
                return list(inside)  # nor is any known there: weights alone are too large
            lines.append(there)
        line = Line(*bases, cell.batch_size)
        return [
            known
            if known is not None or first is None or second is None
            else line.at(first, second)
            for known, first, second in zip(inside, *lines, strict=True)
        ]

    def _filled_in(self, outline: Outline, inside: Sequence[int | None]) -> Iterator[Entry]:
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
                    yield Within(rest, call.name)
                call = None
            if isinstance(entry, Call):
                call, rest = entry, next(needs) or 0
            elif entry is not None:
                if isinstance(entry, Change) and birth:
                    rest -= entry.nbytes
                yield entry

    def _outline(self, cell: Cell, model: Model, seed: int) -> Outline:
        """Return a step's outline on fake tensors; raise `Unfaithful` where it does not run."""
        key = (same_step(cell), model, seed)
        if key not in self._outlines:
            while len(self._outlines) >= KEPT:
                del self._outlines[next(iter(self._outlines))]
            try:
                self._outlines[key] = self._run(cell, model, seed)
            except Unfaithful as why:
                self._outlines[key] = Unfaithful(str(why), frames=why.frames)
        found = self._outlines[key]
        if isinstance(found, Unfaithful):
            raise Unfaithful(str(found), frames=found.frames)
        return found

    def _run(self, cell: Cell, model: Model, seed: int) -> Outline:
        if cell.compile != "off":
            raise Unpredictable(COMPILED)
        load()
        try:
            return self._children().run(
                partial(_outlined, cell, model, self._device, seed, self._here)
            )
        except (Compiled, OutOfSight) as error:
            raise Unpredictable(str(error)) from error
        except TimedOut as how:
            raise TookTooLong(f"its step on fake tensors was {how}") from how
        except Died as how:
            raise Unfaithful(f"{FAILS_ON_FAKES}{how}") from how
        except RuntimeError as error:
            words = message_line(error)
            if says_the_mode(cell.workload, cell.grad_mode, error):
                self._hold_that_it_trains(cell, model, seed, words)
                raise CannotTrain(words) from error
            raise Unfaithful(f"{FAILS_ON_FAKES}{words}") from error

    def _children(self) -> Children:
        return Children(device=self._device, limit_s=self.limit_s, forks=self._forks)

    def _hold_that_it_trains(self, cell: Cell, model: Model, seed: int, words: str) -> None:
        """Raise `Unpredictable` if the step does not work where a graph is recorded either."""
        recording = replace(cell, grad_mode=RECORDING)
        try:
            self._outline(recording, model, seed)
        except Unfaithful as why:
            try:
                self._run_for_real(recording, model, seed, why)
            except Unpredictable as error:
                reason = str(error)
                if words not in reason:
                    reason = f"{words}; under {RECORDING}, too: {reason}"
                raise Unpredictable(reason, frames=error.frames) from error

    def _hold_that_it_is_built(self, cell: Cell, model: Model, seed: int) -> None:
        """Raise `CannotBuild` where the factory alone raises: that is so for any batch and mode."""
        key = _building(cell, model, seed)
        if key not in self._unbuilt:
            self._unbuilt[key] = self._why_not_built(cell, model, seed)
        if why := self._unbuilt[key]:
            raise CannotBuild(str(why), frames=why.frames)

    def _why_not_built(self, cell: Cell, model: Model, seed: int) -> CannotBuild | None:
        """Return why a model cannot be built; None where it can, as far as half the memory goes."""
        most_bytes = free_bytes() // SHARE if self._device.tensors_from_malloc else None
        try:
            replace(self._children(), most_bytes=most_bytes).run(
                partial(_built, cell, fed(cell, model), seed)
            )
        except Died:  # by itself, or at its limit: no words of its own
            return None
        except (Exception, SystemExit) as error:  # noqa: BLE001 # a factory may raise anything
            if isinstance(error, MemoryError) or self._device.out_of_memory(error):
                return None
            if isinstance(error, GradbenchError):  # which says what cannot be built
                return CannotBuild(message_line(error))
            return CannotBuild(f"{BUILD_FAILS}{in_one_line(error)}", frames=frames_of(error))
        return None

    def _measured(
        self, cell: Cell, model: Model, seed: int, why: Unfaithful, began: float
    ) -> Prediction:
        """Return a prediction from measured steps, at its batch size or at two small ones.

        Where the two did not do the same in the same order, each block has no line of its own, and
        the peaks have one.
        """
        batches = self._batches(cell, model, seed, why)
        outlines = [
            self._run_for_real(replace(cell, batch_size=batch), model, seed, why)
            for batch in batches
        ]

        def measured(outline: Outline) -> Prediction:
            return self._prediction(
                cell, outline, began, measured_at=batches, why_measured=str(why)
            )

        if len(batches) == 1:
            return measured(outlines[0])
        line = Line(batches[0], batches[1], cell.batch_size)
        outline = carried_on(outlines[0], outlines[1], line)
        if outline is not None:
            return measured(outline)
        peaks = in_a_line(measured(outlines[0]), measured(outlines[1]), line.at)
        if peaks is None:
            raise Unpredictable(
                f"{why}; and measured at batches {batches[0]} and {batches[1]} its peak falls, so "
                "no line leads on"
            )
        return peaks

    def _batches(self, cell: Cell, model: Model, seed: int, why: Unfaithful) -> tuple[int, ...]:
        """Return the cell's own batch, or the two largest, one twice the other, that are small."""
        first = min(cell.batch_size, max(self._device.carried_from(cell.batch_size)))
        try:
            one = self._run_for_real(replace(cell, batch_size=first), model, seed, why)
        except (CannotTrain, EndsItsProcess, TookTooLong):
            raise
        except Unpredictable:  # it may work at no other batch size than its own: exported ones do
            return (cell.batch_size,)
        if cell.batch_size <= first:
            return (cell.batch_size,)
        adds = self._prediction(cell, one, 0.0).transient_bytes
        most = SMALL_BYTES * first // max(adds, 1)
        with suppress(Unpredictable):  # it may work at no smaller size
            half = self._run_for_real(replace(cell, batch_size=first // 2), model, seed, why)
            grown = len(one.entries) - len(half.entries)
            most = min(most, MOST_ENTRIES * (first - first // 2) // max(grown, 1))
        most = max(first, most)
        return (cell.batch_size,) if cell.batch_size <= most else (most // 2, most // 2 * 2)

    def _run_for_real(
        self, cell: Cell, model: Model, seed: int, why: Unfaithful, *, with_parts: bool = True
    ) -> Outline:
        if not self._here or cell.in_ranks:  # one process cannot make a step of several
            raise Unpredictable(str(why), frames=why.frames)
        if dist.is_available() and dist.is_initialized():
            raise Unpredictable(f"{why}; nor could it be measured: {NO_GROUP}")
        key = (same_step(cell), model, seed, with_parts)
        if key not in self._measurements:
            try:
                self._measurements[key] = measured_step(
                    cell, model, self._children(), seed=seed, with_parts=with_parts
                )
            except TooLargeToRun as how:
                raise Unpredictable(f"{why}; nor could it be measured: {how}") from how
            except TimedOut as how:
                raise TookTooLong(f"{why}; and its step was {how}") from how
            except Died as how:
                raise EndsItsProcess(f"its step ended its process: {how}") from how
            except OutOfSight as error:
                raise Unpredictable(f"{why}; nor could it be measured: {error}") from error
            except (Exception, SystemExit) as error:
                if says_the_mode(cell.workload, cell.grad_mode, error):
                    self._hold_that_it_trains(cell, model, seed, message_line(error))
                    raise CannotTrain(message_line(error)) from error
                words, frames = in_one_line(error), frames_of(error)
                if str(why).startswith(FAILS_ON_FAKES) or words in str(why):  # said in other words
                    raise Unpredictable(f"{STEP_FAILS}{words}", frames=frames) from error
                reason = f"{why}; nor could it be measured: {words}"
                raise Unpredictable(reason, frames=frames) from error
        return self._measurements[key]


def _building(cell: Cell, model: Model, seed: int) -> tuple[Model, bool, int]:
    """Return what is equal where a model is built alike: one that makes tokens may be another."""
    return model, WORKLOADS[cell.workload].generates, seed


def _built(cell: Cell, model: Model, seed: int, _say: Callable[[int], None]) -> None:
    """Build a model, as a step does, and drop it."""
    model.load()
    seed_all(seed)
    built_module(cell, model)


def _outlined(
    cell: Cell,
    model: Model,
    device: Device,
    seed: int,
    here: bool,  # by place, for a partial
    _say: Callable[[int], None],
) -> Outline:
    """Run a step on fake tensors; raise torch's words for a missing graph, else `Unfaithful`.

    In a child: what a model keeps of fake tensors, and threads that autograd starts where there is
    a GPU, are gone with it. A process that has those threads can fork no child that trains.
    """
    try:
        return fake_step(cell, model, device, seed=seed, here=here)
    except (Compiled, OutOfSight, Unfaithful, GradbenchError):
        raise
    except (Exception, SystemExit) as error:
        if says_the_mode(cell.workload, cell.grad_mode, error):
            raise
        words = in_one_line(error)
        raise Unfaithful(f"{FAILS_ON_FAKES}{words}", frames=users_traceback(error)) from error
