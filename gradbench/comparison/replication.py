"""Makes replicates of cells: both versions in one process where that can be, in pairs elsewhere.

A replicate has processes of its own, for where things lie in memory can make equal code differ by
as much as a regression does, and it stays so for a process's life.
"""

import contextlib
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from .. import devices
from ..analysis.operation_changes import Operations
from ..errors import BadModel, Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..host_locks import Held
from ..runner.timing_rules import calibrate
from ..stats.replicate import Replicate
from ..workloads.steps import WORKLOADS
from . import side_imports
from .alone import alone
from .budget import Budget
from .byte_readings import READINGS, Reading, is_to_be_read_again
from .checkouts import SIDES, Version
from .process import Failed, LiveProcess, Lost, why_not_imported
from .replicate_effort import Replication

ROUNDS_A_TURN: Final = 8
"""Rounds of one process whose fastest batch stands for them: others were perhaps preempted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What all replicates came to, by cell, or each side's words for why not."""

    replicates: dict[Cell, list[Replicate]] = field(default_factory=dict)
    operations: dict[Cell, tuple[Operations, Operations]] = field(default_factory=dict)
    readings: dict[Cell, list[Reading]] = field(default_factory=dict)
    apart: dict[Cell, str] = field(default_factory=dict)  # why the sides take two processes
    unshared: set[Cell] = field(default_factory=set)  # weights that each side has for itself
    failures: dict[Cell, dict[str, str]] = field(default_factory=dict)
    doubts: dict[tuple[Cell, str], str] = field(default_factory=dict)  # of failures: cell, side
    absent: set[tuple[Cell, str]] = field(default_factory=set)  # models a side cannot import
    lacking: dict[Cell, str] = field(default_factory=dict)  # files that the base alone lacks
    uncounted: dict[Cell, str] = field(default_factory=dict)  # why no instructions were counted
    given_up: dict[Cell, str] = field(default_factory=dict)  # why there are no more replicates

    def add(self, others: "Results", *, machine: str) -> None:
        """Add what one replicate on a machine came to.

        Replicates of one process and of pairs do not mix: once a cell's sides are apart, so they
        are for all.
        """
        for cell in others.apart.keys() - self.apart.keys():
            self.replicates.pop(cell, None)
        self.apart.update(others.apart)
        self.operations.update(
            {cell: two for cell, two in others.operations.items() if cell not in self.operations}
        )
        for cell, read in others.readings.items():
            self.readings.setdefault(cell, []).extend(read)
        for cell, sides in others.failures.items():
            self.failures.setdefault(cell, {}).update(sides)
        self.unshared.update(others.unshared)
        self.doubts.update(others.doubts)
        self.absent.update(others.absent)
        self.lacking.update(others.lacking)
        for cell, made in others.replicates.items():
            if cell in others.apart or cell not in self.apart:
                own = [replace(one, machine=machine) for one in made]
                self.replicates.setdefault(cell, []).extend(own)


class KilledOnce(Exception):
    """A signal has ended a side, perhaps of somebody else's will: it is tried again."""


class Replicator:
    """Measures cells of two versions, one replicate after the other."""

    def __init__(
        self,
        base: Version,
        candidate: Version,
        *,
        replication: Replication,
        sources: Mapping[str, ModelSource],
        seed: int = 0,
        layout_seed: int | None = None,  # of layouts and order; None: the same
        say: Callable[[str], object] = lambda _: None,  # hears whom is waited for
    ) -> None:
        self.versions, self._how, self._sources = (base, candidate), replication, sources
        self._seed, self._rng = seed, random.Random(seed if layout_seed is None else layout_seed)
        self._say = say
        self.results = Results()
        self.facts: dict[str, dict[str, str]] = {}
        self.machines = 0  # of a cluster
        self.made_on: dict[str, Mapping[str, str]] = {}
        self._killed_once: set[tuple[Cell | None, str]] = set()

    def examine(
        self, cells: Sequence[Cell], budget: Budget | None = None, *, readings: int = READINGS
    ) -> None:
        """Learn which cells' sides can share a process, and what their steps make torch do.

        What the budget does not hold is not looked at. Of cells whose bytes differ, ``readings``
        processes of each side read them, unless they vary.
        """
        within = budget or Budget()
        for cell in cells:
            why = self._why_apart(cell)
            if why:
                self.results.apart[cell] = why
        looked_at: dict[tuple[str, str], str] = {}

        def look(sides: Sequence[LiveProcess], cell: Cell) -> None:
            if within.allows("look"):
                with within.taking("look"):
                    self._examine_cell(sides, cell, looked_at)

        left = list(cells)
        for _ in range(readings):
            if not (left and within.allows("look")):
                return
            self._in_pairs(left, look, layout=self._randomized_layout())
            left = [cell for cell in left if self._is_to_be_read_again(cell)]

    def _is_to_be_read_again(self, cell: Cell) -> bool:
        """Return whether a cell's bytes differ between the sides, and were not seen to vary."""
        read = self.results.readings.get(cell, ())
        return cell not in self.results.failures and is_to_be_read_again(read)

    def rounds(self, wanted: Callable[[], Sequence[Cell]], budget: Budget) -> Iterator[str]:
        """Make one replicate after the other of what is wanted, while the budget holds another.

        Yield after each what there is to say of it beside its number.
        """
        while not budget.ended and (cells := wanted()):
            if budget.allows("replicate"):
                try:
                    held = alone(cells, wait_s=budget.left_s, waiting=self._say)
                    with held, budget.taking("replicate"):
                        self.replicate(cells)
                except Held as held_by_others:  # for all of the time that is left
                    budget.ended = True
                    self.results.given_up.update(dict.fromkeys(cells, str(held_by_others)))
                    return
                yield ""

    def replicate(self, cells: Sequence[Cell]) -> None:
        """Measure another replicate of each of the cells that both sides can step."""
        left = [cell for cell in cells if cell not in self.results.failures]
        self._rng.shuffle(left)
        self._in_one_process([cell for cell in left if cell not in self.results.apart])
        self._in_pairs([cell for cell in left if cell in self.results.apart], self._pair)

    def unlike(self) -> str:
        """Return in words where the sides' torch or Python differ, or ``""``."""
        return unlike(self.facts)

    def logs(self, cell: Cell) -> list[float]:
        """Return the log ratios of a cell's replicates."""
        return [each.log_ratio for each in self.results.replicates.get(cell, ())]

    def _why_apart(self, cell: Cell) -> str:
        """Return what is known beforehand to keep the sides out of one process, or ``""``."""
        base, candidate = self.versions
        if not self._how.one_process:
            return "as asked"
        if base.python != candidate.python:
            return "the sides have interpreters of their own"
        if cell.compile != "off":
            return "torch.compile keeps one cache of code and guards for a whole process"
        return ""

    def _examine_cell(
        self, sides: Sequence[LiveProcess], cell: Cell, looked_at: dict[tuple[str, str], str]
    ) -> None:
        """Ask both sides for a cell's counts and, once for each model's workload, for obstacles."""
        kind = cell.model, cell.workload
        look = kind not in looked_at and cell not in self.results.apart
        answers = self._both(sides, cell, examine="all" if look else "counts")
        if answers is None:
            return
        base, candidate = answers
        counts = base["operations"], candidate["operations"]
        self.results.operations.setdefault(cell, counts)
        self.results.readings.setdefault(cell, []).append(counts)
        if look:
            for version, answer in zip(self.versions, answers, strict=True):
                check_modules(version, answer["outside"])
            looked_at[kind] = obstacle(base, candidate)
        if looked_at.get(kind):
            self.results.apart.setdefault(cell, looked_at[kind])

    def _both(
        self, sides: Sequence[LiveProcess], cell: Cell, **more: Any
    ) -> list[dict[str, Any]] | None:
        """Ask both sides about a cell at once, for nothing that is timed; return their answers.

        None where one has none. Raise `Lost` where a side is.
        """
        order, lost = self._shuffled(), None
        answers: dict[int, dict[str, Any]] = {}
        for index in order:
            sides[index].put(**self.asked(cell), **more)
        for index in order:
            try:
                answers[index] = sides[index].hear()
            except Failed as failure:
                self._note(cell, failure)
                lost = failure if isinstance(failure, Lost) else lost
        if lost is not None:
            raise lost
        return [answers[0], answers[1]] if len(answers) == len(sides) else None

    # Both versions in one process

    def _in_one_process(self, cells: Sequence[Cell]) -> None:
        left = list(cells)
        while left:
            order = self._shuffled()
            with self._process(self.versions, left, order=order) as both:
                try:
                    both.hear()
                    left = self._imported_twice(both, left)
                except Failed as failure:
                    if self._first_kill(failure, None):
                        continue
                    self._keep_apart(left, failure.why)
                    return
                left = self._cells_of(both, left)

    def _imported_twice(self, both: LiveProcess, cells: Sequence[Cell]) -> list[Cell]:
        """Import the models on both sides; return the cells of those that can be."""
        could = list(cells)
        for name, source in own_sources(cells, self._sources).items():
            try:
                files = both.imported(source.build)
            except Lost:
                raise
            except Failed as failure:
                gone = [cell for cell in could if cell.model == name]
                self._keep_apart(gone, failure.why)
                could = [cell for cell in could if cell.model != name]
                continue
            for version, file in zip(self.versions, files, strict=True):
                check_origin(version, source.build, file)
        return could

    def _cells_of(self, both: LiveProcess, cells: Sequence[Cell]) -> list[Cell]:
        """Measure cells until the process is lost; return those that are left for another."""
        for number, cell in enumerate(cells):
            try:
                answer = both.ask(**self.asked(cell))
                times = [in_turns(side) for side in answer["ns"]]
                if self._how.share and not answer.get("shared", True):
                    self.results.unshared.add(cell)
            except Failed as failure:
                if self._first_kill(failure, cell):
                    return list(cells[number:])
                hung = isinstance(failure, Lost) and failure.late
                gone = [cell, *(self._not_tried(cell, cells[number + 1 :]) if hung else ())]
                self._keep_apart(gone, failure.why)
                if isinstance(failure, Lost):
                    return [one for one in cells[number + 1 :] if one not in gone]
                continue
            self.results.replicates.setdefault(cell, []).append(Replicate(*times))
        return []

    def _keep_apart(self, cells: Sequence[Cell], why: str) -> None:
        """Let pairs of processes measure these cells, from their first replicate on."""
        for cell in cells:
            self.results.apart[cell] = why
            self.results.replicates.pop(cell, None)

    # Pairs of processes

    def _in_pairs(
        self,
        cells: Sequence[Cell],
        measure: Callable[[Sequence[LiveProcess], Cell], None],
        *,
        layout: Mapping[str, str] | None = None,
    ) -> None:
        """Measure cells in a live pair, and in a new one when that is lost.

        Both sides have the ``layout`` that is given, or each another one.
        """
        left = list(cells)
        while left:
            with contextlib.suppress(KilledOnce), self._live_pair(left, layout) as sides:
                able = self._imported(sides, left)
                if able is None:
                    left = [cell for cell in left if cell not in self.results.failures]
                    continue
                left = self._until_lost(sides, able, measure)

    def _imported(self, sides: Sequence[LiveProcess], cells: Sequence[Cell]) -> list[Cell] | None:
        """Import the models on each side; return the cells of those that both can.

        Of the others it is noted why not: a model may be new. Return None where a side ends at it.
        """
        for name, source in own_sources(cells, self._sources).items():
            for one in sides:
                try:
                    (file,) = one.imported(source.build)
                except Failed as failure:
                    if self._first_kill(failure, None):
                        raise KilledOnce from failure
                    why = why_not_imported(source.build, failure)
                    for cell in cells:
                        if cell.model == name:
                            self._fail(cell, failure, why)
                            self.results.absent.add((cell, one.name))
                    if isinstance(failure, Lost):
                        return None
                else:
                    check_origin(one.versions[0], source.build, file)
        return [cell for cell in cells if cell not in self.results.failures]

    def _until_lost(
        self,
        sides: Sequence[LiveProcess],
        cells: Sequence[Cell],
        measure: Callable[[Sequence[LiveProcess], Cell], None],
    ) -> list[Cell]:
        """Measure cells until a side is lost; return those that are left for another pair."""
        for number, cell in enumerate(cells):
            try:
                measure(sides, cell)
            except KilledOnce:
                return list(cells[number:])
            except Lost as lost:
                left = cells[number + 1 :]
                gone = self._not_tried(cell, left) if lost.late else []
                why = f"not tried, for the {lost.side} side {lost.why} in {cell}"
                self.results.failures.update((one, dict.fromkeys(SIDES, why)) for one in gone)
                return [one for one in left if one not in gone]
        return []

    def _not_tried(self, cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that likely hang as one does, and of which no replicate was made."""
        return [one for one in like(cell, cells) if one not in self.results.replicates]

    @contextlib.contextmanager
    def _live_pair(
        self, cells: Sequence[Cell], layout: Mapping[str, str] | None
    ) -> Iterator[Sequence[LiveProcess]]:
        with contextlib.ExitStack() as stack:
            live = {
                index: stack.enter_context(
                    self._process([self.versions[index]], cells, layout=layout)
                )
                for index in self._shuffled()
            }
            sides = [live[index] for index in range(len(SIDES))]
            for one in sides:
                try:
                    self.facts[one.name] = one.hear()
                except Failed as failure:
                    if self._first_kill(failure, None):
                        raise KilledOnce from failure
                    raise BadModel(f"the {failure.side} side cannot start: {failure}") from None
            yield sides

    def _pair(self, sides: Sequence[LiveProcess], cell: Cell) -> None:
        """Measure one replicate of a cell in a pair, unless a side cannot step it."""
        typical_ns = self._prepared(sides, cell)
        if typical_ns is None:
            return
        try:
            times = self._turns(sides, cell, typical_ns)
            for one in sides:
                one.ask(stop=True)
        except Failed as failure:  # in its turns: whether the other can go on is not known
            raise self._lost(cell, failure) from failure
        self.results.replicates.setdefault(cell, []).append(Replicate(*times))

    def _prepared(self, sides: Sequence[LiveProcess], cell: Cell) -> float | None:
        """Let both sides build a cell; return the quicker one's typical ns, or None for a failure.

        Raise `Lost` where a side is.
        """
        prepared: list[tuple[int, float]] = []
        lost: Lost | None = None
        for index in self._shuffled():
            try:
                answer = sides[index].ask(**self.asked(cell))
                prepared.append((index, float(answer["typical_ns"])))
            except Failed as failure:
                self._note(cell, failure)
                lost = failure if isinstance(failure, Lost) else lost
        if lost is not None:
            raise lost
        if len(prepared) == len(sides):
            return min(ns for _, ns in prepared)
        for index, _ in prepared:
            try:
                sides[index].ask(stop=True)
            except Failed as failure:
                raise Lost(failure.side, failure.why) from failure
        return None

    def _turns(
        self, sides: Sequence[LiveProcess], cell: Cell, typical_ns: float
    ) -> tuple[list[list[float]], list[list[float]]]:
        how = self._how
        iterations = calibrate(typical_ns, devices.find(cell.device).batch_ns)
        batch_ns = iterations * typical_ns
        batches = max(1, round(how.slice_s * 1e9 / batch_ns))
        turn_s = (batches * batch_ns + typical_ns) / 1e9
        turns = max(how.least_turns, min(how.turns, round(how.pair_s / 2 / turn_s)))
        times: tuple[list[list[float]], list[list[float]]] = ([], [])
        for _ in range(turns):
            for index in self._shuffled():
                measured = sides[index].ask(iterations=iterations, batches=batches)["ns"]
                times[index].append([ns / iterations for ns in measured])
        return times

    def _lost(self, cell: Cell, failure: Failed) -> Lost:
        """Note a failure from which the pair does not go on; return it as that."""
        self._note(cell, failure)
        return failure if isinstance(failure, Lost) else Lost(failure.side, failure.why)

    def _note(self, cell: Cell, failure: Failed) -> None:
        if self._first_kill(failure, cell):
            raise KilledOnce
        if devices.find(cell.device).occupied(failure.why):
            raise Impossible(
                f"{cell.device} takes one process at a time, and a comparison needs one for each "
                "side: set its compute mode to DEFAULT (nvidia-smi -c DEFAULT), or leave it out "
                "(--device cpu)"
            )
        self._fail(cell, failure, failure.why)

    def _fail(self, cell: Cell, failure: Failed, why: str) -> None:
        """Note why a side cannot step a cell, and whether that is in doubt.

        A candidate that had all of its time is not to be trusted, nor one for which there was not
        enough memory each time; a base may be able to.
        """
        self.results.failures.setdefault(cell, {})[failure.side] = why
        by_others = failure.killed and not failure.out_of_memory
        if by_others or (failure.doubt and failure.side == SIDES[0]):
            self.results.doubts[cell, failure.side] = failure.doubt
        if failure.side == SIDES[0] and (lacking := self._lacking(failure.missing)):
            self.results.lacking[cell] = lacking

    def _lacking(self, missing: str) -> str:
        """Return a file that the base's tree lacks and the candidate's has, as both name it."""
        base, candidate = (version.tree.resolve() for version in self.versions)
        file = Path(missing).resolve()
        if not missing or base == candidate or not file.is_relative_to(base):
            return ""
        inside = file.relative_to(base)
        return str(inside) if (candidate / inside).exists() else ""

    def _first_kill(self, failure: Failed, cell: Cell | None) -> bool:
        """Return whether a signal of others has ended this side for the first time."""
        killed = cell, failure.side
        first = failure.killed and killed not in self._killed_once
        self._killed_once |= {killed} if first else set()
        return first

    # What both ways have in common

    @contextlib.contextmanager
    def started(
        self, versions: Sequence[Version], cells: Sequence[Cell], **how: Any
    ) -> Iterator[LiveProcess]:
        """Start a process of the versions that has imported the cells' models."""
        with self._process(versions, cells, **how) as process:
            process.hear()
            for source in own_sources(cells, self._sources).values():
                process.imported(source.build)
            yield process

    def _process(
        self,
        versions: Sequence[Version],
        cells: Sequence[Cell],
        *,
        order: Sequence[int] = (0,),
        layout: Mapping[str, str] | None = None,
        limit_s: float | None = None,
        under: Callable[[Sequence[str]], Sequence[str]] = list,
    ) -> LiveProcess:
        return LiveProcess(
            versions,
            order=order,
            training=any(WORKLOADS[cell.workload].optimizes for cell in cells),
            limit_s=self._how.limit_s if limit_s is None else limit_s,
            randomized_layout=self._randomized_layout() if layout is None else layout,
            under=under,
        )

    def asked(self, cell: Cell) -> dict[str, Any]:
        """Return the question about a cell that a process is asked."""
        return {
            **cell_request(cell, self._sources.get(cell.model), seed=self._seed),
            "warm_up_s": self._how.warm_up_s,
            "layout": self._rng.randrange(2**32),
            "share": self._how.share,
            "cell_s": self._how.cell_s,
            "least_rounds": self._how.least_rounds,
        }

    def _randomized_layout(self) -> dict[str, str]:
        """Return variables that move where things lie in a process, another way for each.

        The size of the environment and the order of sets and dictionaries can make equal code
        differ by more than a regression does (Mytkowicz et al. 2009, Producing Wrong Data Without
        Doing Anything Obviously Wrong!). Two trees never lie alike; drawn anew for every process,
        that is noise, which shows in the interval, and not bias, which does not.
        """
        return {
            "PYTHONHASHSEED": str(self._rng.randrange(1, 2**32)),
            "GRADBENCH_PADDING": "x" * self._rng.randrange(4096),
        }

    def _shuffled(self) -> list[int]:
        return self._rng.sample(range(len(SIDES)), len(SIDES))


def unlike(sides: Mapping[str, Mapping[str, str]]) -> str:
    """Return in words where the sides' torch or Python differ, or ``""``."""
    if not sides:
        return ""
    base, candidate = (
        f"torch {facts['torch']}, Python {facts['python']}"
        for facts in map(sides.__getitem__, SIDES)
    )
    return f"base: {base}; candidate: {candidate}" if base != candidate else ""


def in_turns(rounds: Sequence[float], length: int = ROUNDS_A_TURN) -> list[list[float]]:
    """Return rounds as turns of so many; what is left over is in the last one."""
    turns = max(1, len(rounds) // length)
    ends = [*range(length, turns * length, length), len(rounds)]
    return [list(rounds[start:end]) for start, end in pairwise([0, *ends])]


def like(cell: Cell, cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that hang where one does, most likely: those of its model and workload."""
    kind = cell.model, cell.workload
    return [one for one in cells if (one.model, one.workload) == kind]


def cell_request(cell: Cell, source: ModelSource | None, *, seed: int) -> dict[str, Any]:
    """Return what a process is asked that is to build a cell: axes, source, seed, environment."""
    default = Cell(model=cell.model, workload=cell.workload, grad_mode=cell.grad_mode).axes()
    required = ("model", "workload", "grad_mode")
    axes = {k: v for k, v in cell.axes().items() if k in required or v != default[k]}
    return {
        "cell": axes,
        "source": source.row() if source is not None else None,
        "seed": seed,
        "environment": dict(devices.find(cell.device).environment),
    }


def own_sources(
    cells: Sequence[Cell], sources: Mapping[str, ModelSource]
) -> dict[str, ModelSource]:
    """Return where the cells' models come from, of those that are not a library's."""
    models = dict.fromkeys(cell.model for cell in cells)
    return {name: sources[name] for name in models if name in sources and not sources[name].library}


def check_origin(version: Version, path: str, file: str) -> None:
    """Raise unless the user's module comes from the side's own tree."""
    if not Path(file).resolve().is_relative_to(version.tree.resolve()):
        raise BadModel(
            f"{path} of the {version.name} side comes from {file!r}, not from "
            f"{str(version.tree)!r}: run in the folder that holds its package, or both "
            "sides would be the same code"
        )


def check_modules(version: Version, files: Mapping[str, str]) -> None:
    """Raise where a version runs modules of the checkout that the user stands in.

    They would be the same of every version. So it is with a package of the same repository that is
    installed in place in a way that names no folder of the path, or that a link leads to.
    """
    if version.home is None:
        return
    tree = side_imports.tree(version.home.resolve(), [])
    for name, file in sorted(files.items()):
        if tree.holds(str(Path(file).resolve())):
            raise BadModel(
                f"the {version.name} imports {name} from {file!r}, which is the working tree's: "
                "each version would run the same code of it, and no change in it would be seen; "
                "run in the folder that holds it, or put its folder on no path but the tree's own"
            )


def obstacle(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Return why two examined sides cannot share a process, or ``""``."""
    for side in (base, candidate):
        if side["obstacles"]:
            return str(side["obstacles"][0])
    for name, one, other in ((SIDES[0], base, candidate), (SIDES[1], candidate, base)):
        if twofold := sorted({*one["own"]} & other["outside"].keys()):
            return f"{twofold[0]} is of the tree on the {name}, and of elsewhere on the other side"
    before, now = base["settings"], candidate["settings"]
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return _differ(name, before.get(name), now.get(name))
    for module in sorted(base["values"].keys() & candidate["values"].keys()):
        before, now = base["values"][module], candidate["values"][module]
        for name in sorted({*before, *now}):
            if before.get(name) != now.get(name):
                return _differ(name, before.get(name), now.get(name))
    return ""


def _differ(name: str, base: str | None, candidate: str | None) -> str:
    here, there = (one if one is not None else "as it was" for one in (base, candidate))
    return f"{name} is {here} on the base and {there} on the candidate"
