"""What the machines of a Ray cluster are, asked of each once; and which of them may measure."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from ..errors import GradbenchError
from . import node_facts

ACCELERATOR: Final = "accelerator_type:"
"""How resources begin by which Ray says what kind of GPU a machine has."""
PAUSE_S: Final = 0.2
"""Between two looks at what Ray has to say."""
NOTICED_S: Final = 30.0
"""How long Ray may take to notice that a machine is gone."""
PROBE_S: Final = 120.0
"""How long a machine may take to say what is installed there."""

Node = Mapping[str, Any]
"""A machine as Ray describes it."""
Facts = Mapping[str, str]


class MachineFacts:
    """What each machine has said of itself.

    Those that are there at the beginning are waited for (`refuse_unlike`). One that joins later is
    asked as well, and measures nothing until it has answered; ``say`` hears where it never may.
    """

    def __init__(self, ray: Any, *, say: Callable[[str], object]) -> None:
        self._ray, self._say = ray, say
        self._known: dict[str, Facts] = {}
        self._answers: dict[str, Any] = {}  # to come, as Ray's references
        self._own: Facts | None = None  # what machines must have, once that is asked for
        self._any_versions = False
        self._left_out: set[str] = set()

    def refuse_unlike(self, *, allowed: bool = False) -> None:
        """Raise `GradbenchError` for a machine whose software is not this one's, unless allowed."""
        self._own, self._any_versions = node_facts.versions(), allowed
        there_now = alive(self._ray)
        for node in there_now.values():  # all at once: each takes seconds to start a worker
            self._answer(node)
        for machine in there_now:
            there = self.of(machine)
            if there is None:
                continue
            if _lacking(there):
                raise GradbenchError(f"{self._unlike(there)}: install it there")
            if unlike := self._unlike(there):
                raise GradbenchError(
                    f"{unlike}: install the same there, or measure all the same with "
                    "--allow-different-versions"
                )

    def of(self, machine: str) -> Facts | None:
        """Return what a machine is, when it has answered; None of one that leaves meanwhile."""
        if machine not in self._known:
            node = alive(self._ray).get(machine)
            if node is None:
                return None
            try:
                said = self._ray.get(self._answer(node), timeout=PROBE_S)
            except self._ray.exceptions.RayError as error:
                if self._leaves(machine):
                    return None
                raise GradbenchError(_silent(node, error)) from error
            self._keep(node, said)
        return self._known[machine]

    def may_measure(self, node: Node) -> bool:
        """Say, without waiting, whether a machine has answered and has what this one has."""
        machine: str = node["NodeID"]
        if self._own is None or machine in self._known:
            return machine not in self._left_out
        if machine in self._left_out or not self._has_answered(node):
            return False
        try:
            why = self._unlike(self._keep(node, self._ray.get(self._answer(node))))
        except self._ray.exceptions.RayError as error:
            why = _silent(node, error)
        if why:
            self._left_out.add(machine)
            self._say(f"{why}: it joined, and is left out")
        return not why

    def _unlike(self, there: Facts) -> str:
        """Return in words what a machine has that keeps it from measuring, or ``""``."""
        own = self._own or {}
        differ = [name for name in own if own[name] != there[name]]
        if lacking := _lacking(there):
            return f"{there['host']} has no {lacking}"
        if not differ or self._any_versions:
            return ""
        words = ", ".join(f"{name} {there[name]}, here {own[name]}" for name in differ)
        return f"{there['host']} has {words}"

    def _answer(self, node: Node) -> Any:
        """Return Ray's reference to what a machine answers, which is asked once."""
        machine: str = node["NodeID"]
        if machine not in self._answers:
            self._ray.cloudpickle.register_pickle_by_value(node_facts)
            asked = self._ray.remote(node_facts.node_facts).options(
                num_cpus=0, max_retries=0, scheduling_strategy=only_on(node)
            )
            self._answers[machine] = asked.remote()
        return self._answers[machine]

    def _has_answered(self, node: Node) -> bool:
        answered, _ = self._ray.wait([self._answer(node)], timeout=0)
        return bool(answered)

    def _keep(self, node: Node, said: Facts) -> Facts:
        kinds = [name for name in node["Resources"] if name.startswith(ACCELERATOR)]
        accelerator = ", ".join(sorted(name.removeprefix(ACCELERATOR) for name in kinds))
        facts = {**said, "accelerator": accelerator}
        self._known[node["NodeID"]] = facts
        return facts

    def _leaves(self, machine: str) -> bool:
        """Say whether a machine is gone: Ray takes a while to notice."""
        until_s = time.monotonic() + NOTICED_S
        while machine in alive(self._ray):
            if time.monotonic() > until_s:
                return False
            time.sleep(PAUSE_S)
        return True


def alive(ray: Any) -> dict[str, Node]:
    """Return the machines of a cluster that are alive, by their names in it."""
    return {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}


def only_on(node: Node) -> Any:
    """Return how Ray is to choose a machine: this one, or none."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def in_words(error: BaseException) -> str:
    """Return what an error of Ray's says, without its pages on where to read more."""
    text = str(error)
    because = [line for line in text.splitlines() if "dead because" in line or "died" in line]
    line = (because or text.splitlines() or [type(error).__name__])[-1]
    return line.partition(" For more information")[0].strip()[:300]


def _lacking(there: Facts) -> str:
    """Return what a machine lacks without which nothing is measured there, or ``""``."""
    if there["gradbench"].endswith(f"({node_facts.MISSING})"):  # from wherever: no sources
        return "gradbench"
    return "torch" if there["torch"] == node_facts.MISSING else ""


def _silent(node: Node, error: BaseException) -> str:
    return f"{node['NodeManagerHostname']} does not say what is installed there: {in_words(error)}"
