"""Starts further Pythons of this package: which one, and what it imports from.

``python -c`` and ``python -m`` look first in the folder that the user stands in, where a random.py
is not the library's; and the variable for a path splits a folder's name at its colon.
"""

import os
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = str(Path(__file__).parents[1])
"""The folder that this package is imported from."""
VARIABLE: Final = "PYTHONPATH"
_INSTALLED: Final = "-packages"
"""How the folders of an environment end: site-packages, and Debian's dist-packages."""

_COMMAND: Final = """\
import sys
place = [path.endswith({installed!r}) for path in [*sys.path, {installed!r}]].index(True)
sys.path.insert(place, {root})
sys.argv[0] = "gradbench"
from gradbench.__main__ import main
main()
"""
"""This package is found before another that is installed, and behind the standard library."""


def python(*arguments: str) -> list[str]:
    """Return how to start this interpreter, with no folder on its path but those of everybody."""
    return [sys.executable, "-P", *arguments]


def command(*arguments: str) -> list[str]:
    """Return how to run a command of gradbench, by this package, wherever that comes from."""
    return python("-c", _COMMAND.format(installed=_INSTALLED, root=ascii(ROOT)), *arguments)


def calling(module: str, call: str, *, first: str = "") -> list[str]:
    """Return how to start it in a function of a module of ours, such as ``main(3)``.

    More statements may follow, and ``first`` comes before all else. It needs `loading_path` as its
    `VARIABLE`, and from when the module is loaded it imports as this process does.
    """
    path = ascii([_absolute(entry) for entry in sys.path])
    lines = [first, f"import sys, {module} as module", f"sys.path[:] = {path}", f"module.{call}"]
    return python("-c", "\n".join(filter(None, lines)))


def loading_path() -> str:
    """Return the folders to load this package from, the standard library's before others'.

    A program may have put a folder in front of that after it was loaded, as pytest does with those
    of tests. In a new process a random.py in there would take the library's place. Where the user
    stands there is nothing to load, unless it is this package.
    """
    here = {"", str(Path.cwd())} - {ROOT}
    given = [entry for entry in os.environ.get(VARIABLE, "").split(os.pathsep) if entry]
    library = [entry for entry in sys.path if _is_library(entry)]
    start = sys.path.index(library[0]) if library else 0
    others = [entry for entry in (*sys.path[start:], *sys.path[:start]) if entry not in here]
    entries = dict.fromkeys(map(_absolute, [*given, *library, ROOT, *others]))
    return os.pathsep.join(entry for entry in entries if os.pathsep not in entry)


def _is_library(entry: str) -> bool:
    known = sysconfig.get_paths()
    folders = (known["stdlib"], known["platstdlib"])
    return entry in (*folders, *(str(Path(one, "lib-dynload")) for one in folders))


def _absolute(entry: str) -> str:
    """Return an entry wherever the new process stands; what names no folder is an importer's."""
    return str(Path(entry).absolute()) if not entry or Path(entry).is_dir() else entry
