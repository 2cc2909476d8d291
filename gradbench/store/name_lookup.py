"""Which of a folder's records is meant: by its name, the beginning of that, or ``latest``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import StoreError

LATEST: Final = "latest"
SHOWN: Final = 5
"""Names that a message shows, at most."""


def check_named(name: str, kind: str) -> None:
    """Raise `StoreError` where nothing is named; ``kind`` is what was to be, ``run`` say."""
    if not name.strip():
        raise StoreError(f"{name!r} names no {kind}: give its name, its beginning or {LATEST}")


def meant(name: str, names: Sequence[str], *, beginning: str, kind: str, folder: Path) -> str:
    """Return the one of the names, of which the last is the latest, that a user means by ``name``.

    ``beginning`` is that without the ending of a file. Raise `StoreError` where it is none of the
    ``folder``'s, or several.
    """
    close = names[-1:] if name == LATEST else [one for one in names if one.startswith(beginning)]
    if len(close) == 1:
        return close[0]
    if close:
        more = f" and {len(close) - SHOWN} more" if len(close) > SHOWN else ""
        raise StoreError(f"{name!r} fits several {kind}s: {', '.join(close[:SHOWN])}{more}")
    latest = ", ".join(names[-SHOWN:]) or "none"
    raise StoreError(f"no {kind} {name!r} in {str(folder)!r}; the latest there: {latest}")
