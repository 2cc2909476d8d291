"""Both sides' steps in one process, in turns of a batch each, on the same weights and batch.

A worker loads this by its file, as gradbench itself may be what the sides hold: it uses torch and
the standard library alone, and is given what else it heeds, ``runner.timing_rules``. Rounds are its
own, unlike those of a block's modes: they are counted out by CPU time, the sides change places, and
rounds in which the kernel gave the core to others are left out.
"""

import itertools
import pickle
import random
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

PRECISE: Final = 0.0015
"""Half-width of a process's ratio at which it stops: processes differ by more."""
FIRST_LOOK: Final = 64
"""Rounds after which its precision is looked at first."""
PATIENCE: Final = 5
"""Times the CPU time of a cell that may pass on the clock, where other work has the core."""
MORE_UNTIMED: Final = 0.125
"""Share of rounds with an untimed step more: or what comes in each fourth step, say, might come in
the untimed ones alone, or in all that are timed."""
BALLAST: Final = 2000
"""Small objects, at most, and `BALLAST_BYTES` for tensors, that move what comes after them."""
BALLAST_BYTES: Final = 2**20

NOT_ASKED: Final = "as asked"
UNKNOWN: Final = "they are not known to be equal"
CHANGES: Final = "a step changes weights, which each side must find as it left them"

Precision = Callable[[Sequence[Sequence[float]], Sequence[int]], float]
Build = Callable[[Any, int, Mapping[str, Any]], tuple[Any, Any, Any]]
Source = tuple[Callable[[], Any], Callable[[Any], object]]


@dataclass(slots=True)
class Arm:
    """One side's step, held in its mode in its turn."""

    index: int
    arm: Any
    subject: Any
    leaves_gradients: bool = False


def timed(sides: Any, asked: Mapping[str, Any], build: Build, rules: Any) -> dict[str, Any]:
    """Build both sides, warm them up, and return the ns of a step in each round.

    ``rules`` is the module of what all interleaved timing heeds.
    """
    rng = random.Random(asked["layout"])
    ballast = moved_heap(rng)
    arms: list[Any] = [None, None]
    for index in rng.sample(range(2), 2):
        arm, subject, device = build(sides, index, asked)
        arms[index] = Arm(index, arm, subject)
    visits = Visits(sides.turns, device.synchronize, rng)
    subjects = [one.subject for one in arms]
    unshared, optimizes = NOT_ASKED, optimized(one.arm for one in arms)
    kept: list[tuple[Tensor, Tensor]] = []
    if asked["share"]:
        unshared = share(*subjects, steps=visits.each_once(arms), optimizes=optimizes, kept=kept)
    with rules.collector_resting():
        typical_ns = visits.warm_up(arms, seconds=asked["warm_up_s"])
        iterations = rules.calibrate(typical_ns, device.batch_ns)
        times = visits.rounds(
            arms,
            iterations=iterations,
            seconds=asked["cell_s"],
            least=asked["least_rounds"],
            untimed=typical_ns < rules.LONG_STEP_NS,
            precision=rules.precision,
        )
    del ballast
    if not (optimizes or all(torch.equal(one.detach(), before) for one, before in kept)):
        return {"failed": CHANGES}  # in some steps, and not in that which was looked at
    return {"ns": times, "unshared": unshared}


def optimized(arms: Iterable[Any]) -> bool:
    """Return whether an optimizer moves the weights, so that they change from step to step."""
    workloads = [getattr(arm, "workload", None) for arm in arms]
    return any(getattr(one, "optimizes", True) for one in workloads)  # of an older gradbench: yes


def moved_heap(rng: random.Random) -> list[object]:
    """Take memory of drawn sizes, so that what is made from here on lies elsewhere."""
    small: list[object] = [bytes(rng.randrange(16, 512)) for _ in range(rng.randrange(BALLAST))]
    return [*small, torch.empty(rng.randrange(BALLAST_BYTES), dtype=torch.uint8)]


def share(
    base: Any,
    candidate: Any,
    *,
    steps: Iterable[object] = (),
    optimizes: bool = False,
    kept: list[tuple[Tensor, Tensor]] | None = None,
) -> str:
    """Let the candidate's weights and batch lie where the base's do, if they are equal to the bit.

    The tensors stay two, with gradients of their own; only their contents are one. Weights are
    shared all or none; each tensor of the batch by itself. To go through ``steps`` is a step of the
    base, then one of the candidate, each on what is its own: what it changes stays so, or a side
    would find what the other has left there. Weights that an optimizer moves, on both sides alike,
    are shared: it moves them by so little that no step notices. ``kept`` gets each weight that is
    shared, with its contents as they are now. Return why weights are not shared, or ``""``.
    """
    if not (hasattr(base, "resident") and hasattr(candidate, "resident")):  # an older gradbench
        return UNKNOWN
    names = [_names(subject) for subject in (base, candidate)]
    pairs = list(zip(base.resident(), candidate.resident(), strict=False))
    count = len(names[0])
    state, batch = pairs[:count], pairs[count:]
    agree = names[0] == names[1] and all(_equal(one, other) for one, other in state)
    if len(base.resident()) != len(candidate.resident()):
        batch = []
    equal = [*(state if agree else ()), *(two for two in batch if _equal(*two))]
    weights = [two for two in equal if isinstance(two[0], nn.Parameter)]
    others = [two for two in equal if not isinstance(two[0], nn.Parameter)]
    before = [one.detach().clone() for one, _ in others]
    moved = False
    for _ in steps:  # after the first one the candidate's weights are what both were
        moved = moved or not all(_equal(*two) for two in weights)
    for (one, other), contents in zip(others, before, strict=True):
        if all(torch.equal(each.detach(), contents) for each in (one, other)):
            other.data = one.data
    if not agree:
        return UNKNOWN
    if not all(_equal(*two) for two in weights):
        return CHANGES
    if moved and not optimizes:
        return CHANGES
    for one, other in weights:
        if kept is not None:
            kept.append((one, other.detach()))  # which has the memory that was the candidate's
        other.data = one.data
    return ""


def _names(subject: Any) -> list[str]:
    return [
        f"{number}.{name}"
        for number, part in enumerate(subject.parts())
        for name, _ in (*part.named_parameters(), *part.named_buffers())
    ]


def _equal(one: Tensor, other: Tensor) -> bool:
    plain = (Tensor, nn.Parameter, nn.Buffer)
    alike = (
        type(one) in plain
        and type(one) is type(other)
        and one.layout is torch.strided
        and not (one.is_inference() or other.is_inference() or one.is_quantized)
        and (one.shape, one.dtype, one.device, one.stride())
        == (other.shape, other.dtype, other.device, other.stride())
    )
    return alike and torch.equal(one.detach(), other.detach())


class Numbers:
    """The generators of random numbers that both sides draw from: torch's, Python's, numpy's.

    Those that a step was seen to draw from are put back, so that each side draws the same.
    """

    def __init__(self) -> None:
        self._sources: list[Source] = [
            (torch.get_rng_state, torch.set_rng_state),
            (random.getstate, random.setstate),
        ]
        if "numpy" in sys.modules:
            numpy: Any = sys.modules["numpy"]
            self._sources.append((numpy.random.get_state, numpy.random.set_state))
        self._marked: list[Any] = []

    def mark(self) -> None:
        """Keep the states as they are."""
        self._marked = [read() for read, _ in self._sources]

    def put_back(self) -> None:
        """Bring the states to the last mark."""
        for (_, write), state in zip(self._sources, self._marked, strict=True):
            write(state)

    def look(self) -> None:
        """Leave alone, from now on, what nobody has drawn from since the last mark."""
        pairs = list(zip(self._sources, self._marked, strict=True))
        self._sources = [source for source, state in pairs if not _alike(source[0](), state)]
        self._marked = []


def _alike(one: Any, other: Any) -> bool:
    """Return whether two states are equal; torch's and numpy's hold arrays."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return pickle.dumps(one) == pickle.dumps(other)


class Visits:
    """Visits each side once a round, in drawn order, as the modes of a block are."""

    def __init__(self, turns: Any, synchronize: Callable[[], object], rng: random.Random) -> None:
        self._turns, self._synchronize, self._rng = turns, synchronize, rng
        self._numbers = Numbers()
        self._preempted = False

    def each_once(self, arms: Sequence[Arm]) -> Iterator[Arm]:
        """Step each side once, on the same random numbers; yield it after its step."""
        self._numbers.mark()
        for one in arms:
            self._numbers.put_back()
            self._visit(one, 1, untimed=0)
            yield one

    def warm_up(self, arms: Sequence[Arm], *, seconds: float) -> float:
        """Visit both for a while; return the quicker one's typical step in ns."""
        times: list[list[float]] = [[], []]
        self._numbers.mark()
        end = time.perf_counter() + 2 * seconds
        while len(times[0]) < 3 or time.perf_counter() < end:
            for one in self._shuffled(arms):
                times[one.index].append(self._visit(one, 1, untimed=0))
        self._numbers.look()
        for one in arms:
            tensors = one.subject.resident() if hasattr(one.subject, "resident") else ()
            one.leaves_gradients = any(tensor.grad is not None for tensor in tensors)
        return min(float(sorted(own[len(own) // 2 :])[len(own) // 4]) for own in times)

    def rounds(
        self,
        arms: Sequence[Arm],
        *,
        iterations: int,
        seconds: float,
        least: int,
        untimed: bool,
        precision: Precision,
    ) -> list[list[float]]:
        """Return each side's ns a step, by round.

        As many as CPU time has, ``least`` at least, and no more than make the ratio precise.
        Rounds in which the kernel gave the core to others are left out where enough others remain.
        """
        next_look, disturbed = FIRST_LOOK, set[int]()
        times: list[list[float]] = [[], []]
        end, latest = time.process_time() + seconds, time.perf_counter() + PATIENCE * seconds
        while len(times[0]) < least or (time.process_time() < end and time.perf_counter() < latest):
            self._numbers.mark()
            self._preempted = False
            steps = untimed and 1 + (self._rng.random() < MORE_UNTIMED)
            for one in self._shuffled(arms):
                self._numbers.put_back()  # both draw the same
                step_ns = self._visit(one, iterations, untimed=steps)
                times[one.index].append(round(step_ns, 1))
            if self._preempted:
                disturbed.add(len(times[0]) - 1)
            if len(times[0]) >= next_look:
                next_look = int(1.25 * next_look)
                if precision(times, [1] * len(times[0])) <= PRECISE:
                    break
        if len(times[0]) - len(disturbed) < least:
            return times
        return [[ns for n, ns in enumerate(own) if n not in disturbed] for own in times]

    def _visit(self, one: Arm, iterations: int, *, untimed: int) -> float:
        clock_ns, synchronize, step = time.perf_counter_ns, self._synchronize, one.arm.step
        self._turns.give(one.index)
        repeats = itertools.repeat(None, iterations)
        with one.arm.held():
            for _ in range(untimed):
                step()
            synchronize()
            switches = _switches()
            start_ns = clock_ns()
            for _ in repeats:
                step()
            synchronize()
            step_ns = (clock_ns() - start_ns) / iterations
            self._preempted |= _switches() != switches
        if one.leaves_gradients:  # or the other side would find the heap otherwise
            one.subject.clear_gradients()
        return step_ns

    def _shuffled(self, arms: Sequence[Arm]) -> list[Arm]:
        return self._rng.sample(list(arms), len(arms))


def _switches() -> int:
    """Return how often the kernel has taken the core from this thread."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
