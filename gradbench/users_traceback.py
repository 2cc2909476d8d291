"""The part of a traceback that is the user's: from their own first frame on, ours cut."""

import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from .errors import speaking
from .plurals import counted

OURS: Final = str(Path(__file__).parent)
MOST_FRAMES: Final = 12
"""Frames that are shown; of a longer traceback the last."""
LONGEST: Final = 10_000
"""Characters of one frame, or of what was raised: an error may say a hundred megabytes."""


def users_traceback(error: BaseException) -> str:
    """Return an error's traceback from the user's first frame on, "" where none is theirs.

    What called the user's code stands before it: this package, and torch, which calls modules.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(_users_part(error.__traceback__))
        if not frame.filename.startswith("<frozen")
    ]
    error = speaking(error)
    if not frames and not isinstance(error, SyntaxError):
        return ""
    left_out = len(frames) - MOST_FRAMES
    cut = [f"  ({counted(left_out, 'call')} before)\n"] if left_out > 0 else []
    lines = [*cut, *map(_brief, traceback.format_list(frames[-MOST_FRAMES:]))]
    return "".join([*lines, _brief("".join(traceback.format_exception_only(error)))]).rstrip("\n")


def _brief(text: str) -> str:
    """Return a part of a traceback, cut where it is longer than anybody reads."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}... ({counted(len(text) - LONGEST, 'more character')})\n"


def _users_part(trace: TracebackType | None) -> TracebackType | None:
    """Return the traceback after our last frame, without what torch calls first."""
    users = trace
    while trace is not None:
        if trace.tb_frame.f_code.co_filename.startswith(OURS):
            users = trace.tb_next
        trace = trace.tb_next
    while users is not None and _is_torchs(users.tb_frame.f_code.co_filename):
        users = users.tb_next
    return users


def _is_torchs(filename: str) -> bool:
    torch = sys.modules.get("torch")
    if filename.startswith("<frozen"):  # importlib
        return True
    own = getattr(torch, "__file__", None)
    return (own is not None and filename.startswith(str(Path(own).parent))) or (
        f"{Path(filename).parent.name}/{Path(filename).name}" == "importlib/__init__.py"
    )
