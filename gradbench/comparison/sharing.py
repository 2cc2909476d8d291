"""Why two versions cannot share a process: what is known beforehand, and what each was seen to do.

What a side was seen to do is read in its own process, by ``shared_state``.
"""

from collections.abc import Mapping
from typing import Any

from ..experiment.matrix import Cell
from .checkouts import SIDES, Version


def known_obstacle(base: Version, candidate: Version, cell: Cell, *, one_process: bool) -> str:
    """Return what keeps the sides of a cell apart before any has run, or ``""``.

    ``one_process`` is whether sharing is asked for, where that can be.
    """
    if not one_process:
        return "as asked"
    if base.python != candidate.python:
        return "the sides have interpreters of their own"
    if cell.compile != "off":
        return "torch.compile keeps one cache of code and guards for a whole process"
    return ""


def obstacle(base: Mapping[str, Any], candidate: Mapping[str, Any]) -> str:
    """Return why two examined sides cannot share a process, or ``""``."""
    for side in (base, candidate):
        if side["obstacles"]:
            return str(side["obstacles"][0])
    for name, one, other in ((SIDES[0], base, candidate), (SIDES[1], candidate, base)):
        if twofold := sorted({*one["own"]} & other["outside"].keys()):
            return f"{twofold[0]} is of the tree on the {name}, and of elsewhere on the other side"
    if different := _first_difference(base["settings"], candidate["settings"]):
        return different
    for module in sorted(base["values"].keys() & candidate["values"].keys()):
        if different := _first_difference(base["values"][module], candidate["values"][module]):
            return different
    return ""


def _first_difference(base: Mapping[str, str], candidate: Mapping[str, str]) -> str:
    """Return in words the first name that stands for different values, or ``""``."""
    for name in sorted({*base, *candidate}):
        if base.get(name) != candidate.get(name):
            here, there = base.get(name, "as it was"), candidate.get(name, "as it was")
            return f"{name} is {here} on the base and {there} on the candidate"
    return ""
