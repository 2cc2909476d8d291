"""The two versions of a comparison: where each is checked out and imports from."""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .. import scratch
from ..errors import Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from .leftovers import BASE, REPOSITORY
from .worktree import BadRevision, checked_out, repository

SIDES: Final = ("base", "candidate")


PACKAGE: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One side: its interpreter, where it imports from, and the tree that must hold its code."""

    name: str  # "base" or "candidate"
    python: str
    paths: tuple[Path, ...]
    tree: Path


@contextlib.contextmanager
def checked_out_versions(
    *, here: Path, revision: str | None, base_python: str | None
) -> Iterator[tuple[Version, Version, bool]]:
    """Make the two versions ready; yield base, candidate, and whether they are gradbench itself.

    The candidate is the working tree that ``here`` lies in, as it is; the base is that tree at a
    revision, in a temporary worktree, or the same tree when only the interpreter differs.
    """
    root = repository(here) if revision is not None else _root_or(here)
    inside = here.resolve().relative_to(root.resolve())
    itself = (root / "gradbench" / "runner").is_dir()
    notes = {REPOSITORY: str(root)} if revision is not None else {}
    with scratch.folder(**notes) as folder, contextlib.ExitStack() as stack:
        measuring = folder / "measuring"
        measuring.mkdir()
        (measuring / "gradbench").symlink_to(PACKAGE, target_is_directory=True)
        base = root
        if revision is not None:
            base = stack.enter_context(checked_out(root, revision, folder / BASE))
        base_side, candidate_side = (
            Version(
                name=name,
                python=python,
                paths=(*import_paths(tree, inside), *([] if itself else [measuring])),
                tree=tree,
            )
            for name, tree, python in (
                ("base", base, base_python or sys.executable),
                ("candidate", root, sys.executable),
            )
        )
        yield base_side, candidate_side, itself


def import_paths(tree: Path, inside: Path) -> list[Path]:
    """Return the folders of a tree to import from: where the user stands, the root, their src."""
    places = dict.fromkeys([tree / inside, tree / inside / "src", tree, tree / "src"])
    return [place for place in places if place.is_dir()]


def _root_or(here: Path) -> Path:
    try:
        return repository(here)
    except BadRevision:
        return here.resolve()


def check(
    cells: Sequence[Cell],
    sources: Mapping[str, ModelSource],
    *,
    itself: bool,
    other_python: bool,
) -> None:
    """Raise `Impossible` for cells that would be the same code on both sides."""
    own = {name for name, source in sources.items() if not source.library}
    others = sorted({cell.model for cell in cells if cell.model not in own})
    if others and not itself and not other_python:
        whose = "a library's" if others[0] in sources else "gradbench's own"
        raise Impossible(
            f"{others[0]} is {whose} model, the same on both sides: give your own as "
            "--model package.module:factory --input B,..., or another torch with --base-python"
        )
