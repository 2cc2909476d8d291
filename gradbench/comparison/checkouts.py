"""The two versions of a comparison: where each is checked out and imports from."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from .. import scratch
from ..errors import Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from . import building, side_imports
from .leftovers import BASE, REPOSITORY
from .worktree import BadRevision, checked_out, is_ignored, repository

SIDES: Final = ("base", "candidate")
MEASURING: Final = "measuring"
"""The folder to import gradbench from, where the versions do not hold it themselves."""
PACKAGE: Final = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One side: its interpreter, where it imports from, and the tree that must hold its code.

    It stands in the first of its paths. ``home`` is the checkout that the user stands in, of which
    it may run nothing; None where that is its tree. ``environment`` are folders of that checkout
    that are the user's environment and no version's: what is imported from them is the same on all
    sides.
    """

    name: str  # "base" or "candidate"
    python: str
    paths: tuple[Path, ...]
    tree: Path
    home: Path | None = None
    environment: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """The user's repository or folder, and a temporary folder for its other versions.

    ``itself`` is whether it is gradbench's own: then each version measures with its own gradbench.
    ``build`` is a command of the user's for each tree that is checked out.
    """

    root: Path
    inside: Path  # where in it the user stands
    itself: bool
    folder: Path
    build: str = ""
    ignored: tuple[Path, ...] = ()  # folders of the import path in it that git ignores

    @contextlib.contextmanager
    def checked_out(self, revision: str, name: str) -> Iterator[Path]:
        """Check a revision out into a folder of this name, and build it; raise `CannotBuild`."""
        with checked_out(self.root, revision, self.folder / name) as tree:
            inside = tree / self.inside
            building.build(self.build, inside if inside.is_dir() else tree)
            yield tree

    def version(self, name: str, tree: Path, *, python: str | None = None) -> Version:
        """Return a tree of the project as a side to be measured."""
        measuring = [] if self.itself else [self.folder / MEASURING]
        elsewhere = tree != self.root
        root = self.root.resolve()
        # what --build has made in the tree is the version's own
        lacking = [one for one in self.ignored if not (tree / one.relative_to(root)).is_dir()]
        return Version(
            name=name,
            python=python or sys.executable,
            paths=(*import_paths(tree, self.inside), *measuring),
            tree=tree,
            home=self.root if elsewhere else None,
            environment=tuple(lacking) if elsewhere else (),
        )


def link_measuring(folder: Path) -> None:
    """Make the folder in a folder that versions without a gradbench of their own import it from."""
    measuring = folder / MEASURING
    measuring.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # as of another process of this machine
        (measuring / "gradbench").symlink_to(PACKAGE, target_is_directory=True)


@contextlib.contextmanager
def opened_project(here: Path, *, at_commits: bool, build: str = "") -> Iterator[Project]:
    """Find the project that a folder lies in, and make a temporary folder for it.

    With ``at_commits`` it must be a git repository, whose worktrees the temporary folder may hold.
    Meanwhile this process imports models from where the sides do, too, behind all else.
    """
    root = repository(here) if at_commits else _root_or(here)
    notes = {REPOSITORY: str(root)} if at_commits else {}
    inside = here.resolve().relative_to(root.resolve())
    ignored = tuple(ignored_on_path(root)) if at_commits else ()
    with scratch.folder(**notes) as folder, _importing_from(import_paths(root, inside)):
        link_measuring(folder)
        yield Project(
            root=root,
            inside=inside,
            itself=(root / "gradbench" / "runner").is_dir(),
            folder=folder,
            build=build,
            ignored=ignored,
        )


@contextlib.contextmanager
def _importing_from(folders: Sequence[Path]) -> Iterator[None]:
    """Let this process import from these folders, too, behind all else."""
    more = [one for one in map(str, folders) if one not in sys.path]
    sys.path += more
    try:
        yield
    finally:
        sys.path[:] = [one for one in sys.path if one not in more]


def ignored_on_path(root: Path) -> Iterator[Path]:
    """Yield folders of a repository from which this process may import, and which git ignores.

    No commit holds them: they are the user's environment. Those of an environment that is known by
    its folders' names are left out, as is what commits hold all the same.
    """
    top = root.resolve()
    named = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), *sys.path]
    folders = dict.fromkeys(Path(name).resolve() for name in named if name)
    for folder in folders:
        inside = top in folder.parents and folder.is_dir()
        if inside and not side_imports.is_installed(folder) and is_ignored(root, folder):
            yield folder


@contextlib.contextmanager
def checked_out_versions(
    *, here: Path, revision: str | None, base_python: str | None, build: str = ""
) -> Iterator[tuple[Version, Version, bool]]:
    """Make the two versions ready; yield base, candidate, and whether they are gradbench itself.

    The candidate is the working tree that ``here`` lies in, as it is; the base is that tree at a
    revision, in a temporary worktree, or the same tree when only the interpreter differs.
    """
    with (
        opened_project(here, at_commits=revision is not None, build=build) as project,
        contextlib.ExitStack() as stack,
    ):
        base = project.root
        if revision is not None:
            base = stack.enter_context(project.checked_out(revision, BASE))
        old = project.version(SIDES[0], base, python=base_python)
        new = project.version(SIDES[1], project.root)
        yield old, replace(new, environment=old.environment), project.itself


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
