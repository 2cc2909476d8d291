"""The largest group of machines of a cluster that are built alike: times of unlike ones do not mix.

Alike is what decides a step's time: the processor, the number of cores, the kind of GPU, the build
of torch and the release of Python.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, Protocol

from ..errors import GradbenchError
from ..plurals import counted
from .dispatch import Fleet, Slot

KIND: Final = ("processor", "cores", "accelerator", "torch build", "python release")
"""The facts that are equal for machines of one kind."""

Facts = Mapping[str, str]


class KnownFleet(Fleet, Protocol):
    """The machines of a cluster, and what each of them is."""

    def facts(self, machine: str) -> Facts | None:
        """Return what a machine is; None of one that leaves meanwhile."""


class EqualMachines:
    """A fleet of those machines alone that have the resource and are of the largest group's kind.

    Where there are fewer than ``fewest``, it is one of them, and another one when that is lost.
    """

    def __init__(self, fleet: KnownFleet, *, resource: str, fewest: int) -> None:
        self._fleet, self.resource = fleet, resource
        self._kind: tuple[str, ...] | None = None
        self._known: dict[str, Facts] = {}
        self._chosen: str | None = None
        self.count = 0
        """How many there are of the kind, by their hosts."""
        self.left_out: tuple[str, ...] = ()
        """A line for each other kind."""
        self._choose(fewest)

    @property
    def is_spread(self) -> bool:
        """Whether replicates go to all machines of the group, and not to one at a time."""
        return self._chosen is None and self.count > 0

    def kind_of(self, host: str) -> Facts | None:
        """Return what decides the times of a host."""
        known = next((facts for facts in self._known.values() if facts["host"] == host), None)
        return {name: known[name] for name in KIND} if known is not None else None

    def machines(self) -> dict[str, frozenset[str]]:
        """Return those of the group that are alive: of a small one, the one that is measured on."""
        if self._kind is None:  # nobody counts on a group that came later
            self._choose(math.inf)
        here = self._of_kind()
        if self.is_spread:
            return here
        if self._chosen not in here and here:
            self._chosen = min(here)
        return {name: has for name, has in here.items() if name == self._chosen}

    def slots(self, machine: str, resource: str) -> list[Slot]:
        """Ask for all places that a machine has."""
        return self._fleet.slots(machine, resource)

    def pause(self, slots: Sequence[Slot]) -> None:
        """Wait a moment, or until a slot has something to say."""
        self._fleet.pause(slots)

    def _choose(self, fewest: float) -> None:
        """Look for the largest group; of two of a size, the first by name."""
        groups: dict[tuple[str, ...], dict[str, str]] = {}  # machines and their hosts, by kind
        for machine, facts in self._having().items():
            groups.setdefault(_kind(facts), {})[machine] = facts["host"]
        if not groups:
            return
        ordered = sorted(groups, key=lambda kind: (-len(set(groups[kind].values())), kind))
        self._kind = ordered[0]
        self.count = len(set(groups[self._kind].values()))
        if self.count < fewest:
            self._chosen = min(groups[self._kind])
        self.left_out = tuple(
            f"{', '.join(sorted(set(groups[kind].values())))}: {in_words(kind)}"
            for kind in ordered[1:]
        )

    def _having(self) -> dict[str, Facts]:
        found: dict[str, Facts] = {}
        for machine, has in self._fleet.machines().items():
            if self.resource not in has:
                continue
            with suppress(GradbenchError):  # one that has joined and does not say what it is
                facts = self._fleet.facts(machine)
                found |= {machine: facts} if facts is not None else {}
        self._known |= found
        return found

    def _of_kind(self) -> dict[str, frozenset[str]]:
        has = frozenset({self.resource})
        return {
            machine: has for machine, facts in self._having().items() if _kind(facts) == self._kind
        }

    def in_words(self) -> str:
        """Return the kind of the group, or ``""`` where no machine has the resource."""
        return in_words(self._kind) if self._kind is not None else ""


def in_words(kind: Sequence[str]) -> str:
    """Return a kind of machine in words."""
    processor, cores, accelerator, torch_build, python = kind
    parts = [processor, counted(int(cores), "core"), accelerator, f"torch {torch_build}"]
    return ", ".join(filter(None, [*parts, f"Python {python}"]))


def _kind(facts: Facts) -> tuple[str, ...]:
    return tuple(facts[name] for name in KIND)
