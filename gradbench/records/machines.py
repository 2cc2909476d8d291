"""Several machines in one run: the facts of all of them as one, and names to tell them apart."""

from collections.abc import Container, Mapping, Sequence
from typing import Final

from .measurements import Environment, Fact

MIXED: Final = "mixed: "
"""How a fact begins that is not the same on all machines of a run."""

WORST: Final = ("load_before",)
"""Facts of which the largest stands for all."""


def joined(environments: Sequence[Environment]) -> Environment:
    """Return what holds for all: a fact in which they differ reads ``mixed: ...``."""
    if len(environments) == 1:
        return environments[0]
    facts: dict[str, Fact] = {}
    for name in dict.fromkeys(name for one in environments for name in one.facts):
        values = [one.facts.get(name, "not recorded") for one in environments]
        different = list(dict.fromkeys(map(str, values)))
        numbers = [value for value in values if isinstance(value, int | float)]
        if len(different) == 1:
            facts[name] = values[0]
        elif name in WORST and numbers:
            facts[name] = max(numbers)
        else:
            facts[name] = f"{MIXED}{', '.join(different)}"
    return Environment(facts=facts)


def unused_name(facts: Mapping[str, Fact], taken: Container[str]) -> str:
    """Return a name for a machine that no other has: its host's, with a number where needed."""
    host = str(facts.get("host", "")) or "unknown"
    name, number = host, 2
    while name in taken:
        name, number = f"{host}-{number}", number + 1
    return name
