"""Whose code a version runs: its own tree's, or the comparison would be one of equal code."""

from collections.abc import Mapping
from pathlib import Path

from ..errors import BadModel
from . import side_imports, worktree
from .checkouts import Version


def check_origin(version: Version, path: str, file: str) -> None:
    """Raise `BadModel` unless the user's module comes from the side's own tree."""
    if not Path(file).resolve().is_relative_to(version.tree.resolve()):
        raise BadModel(
            f"{path} of the {version.name} side comes from {file!r}, not from "
            f"{str(version.tree)!r}: run in the folder that holds its package, or both "
            "sides would be the same code"
        )


def check_modules(version: Version, files: Mapping[str, str]) -> None:
    """Raise `BadModel` where a version runs modules of the checkout that the user stands in.

    They would be the same of every version. So it is with a package of the same repository that is
    installed in place in a way that names no folder of the path, or that a link leads to.
    """
    if version.home is None:
        return
    tree = side_imports.tree(version.home.resolve(), [])
    for name, file in sorted(files.items()):
        place = Path(file).resolve()
        if tree.holds(str(place)) and not _is_of_environment(version, place):
            raise BadModel(
                f"the {version.name} imports {name} from {file!r}, which is the working tree's: "
                "each version would run the same code of it, and no change in it would be seen; "
                "run in the folder that holds it, or put its folder on no path but the tree's own"
            )


def _is_of_environment(version: Version, file: Path) -> bool:
    """Return whether a file of the checkout is no version's: an ignored folder has it, no commit.

    A copy of what commits hold, as one that was built, is.
    """
    assert version.home is not None
    return any(
        folder in file.parents and not worktree.is_kept(version.home, file.relative_to(folder))
        for folder in version.environment
    )
