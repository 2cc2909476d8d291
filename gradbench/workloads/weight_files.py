"""Says what a file is that was read as weights and holds none: a Git LFS pointer, a page, text.

Whatever reads weights is given the file's name, and its words for what it finds are its own. So the
calls that failed are looked at: what they name and have open.
"""

import codecs
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO, IOBase
from pathlib import Path, PurePath
from types import FrameType
from typing import Any, Final, cast

from ..errors import BadModel, GradbenchError
from ..users_traceback import OURS

HEAD_BYTES: Final = 512
MOST_NAMES: Final = 1_000
"""Values of one call that are looked at."""
LONGEST_NAME: Final = 4_096
MOST_CAUSES: Final = 8
"""Errors that are looked at, of those that one was raised from."""
SHOWN: Final = 40
"""Characters of a text that are shown."""

_POINTER: Final = b"version https://git-lfs.github.com/spec/"
_PAGE: Final = (b"<!doctype html", b"<html")
_OF_PAGES: Final = (".htm", ".html", ".xhtml", ".jinja", ".j2")
_OF_WEIGHTS: Final = (
    *(".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npy", ".npz", ".onnx", ".pt", ".pt2", ".pth"),
    *(".safetensors", ".tar", ".th", ".weights"),
)
"""How files end that hold no text where they hold weights."""


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Raise `BadModel` that begins with ``what`` in place of an error over a file without weights.

    Any other error passes.
    """
    try:
        yield
    except GradbenchError:
        raise
    except Exception as error:
        if found := without_weights(error):
            raise BadModel(f"{what}: {found}") from error
        raise


def without_weights(error: BaseException) -> str:
    """Return which file that the failed calls name holds no weights, and what it is; or ``""``."""
    for frame in _frames(error):
        for value in _values(frame):
            with suppress(OSError, ValueError):  # a name that no file can have, one nobody may read
                if words := _of_value(value):
                    return words
    return ""


def _frames(error: BaseException) -> Iterator[FrameType]:
    """Yield the calls of others that an error passed through, the innermost first."""
    one: BaseException | None = error
    for _ in range(MOST_CAUSES):
        if one is None:
            return
        trace, frames = one.__traceback__, []
        while trace is not None:
            frames.append(trace.tb_frame)
            trace = trace.tb_next
        for frame in reversed(frames):
            if not frame.f_code.co_filename.startswith(OURS):
                yield frame
        one = one.__cause__ or one.__context__


def _values(frame: FrameType) -> list[Any]:
    """Return what a call names: its variables and its object's, constants, and its module's."""
    here = dict(frame.f_locals)
    own: Mapping[str, Any] = {}
    with suppress(AttributeError):  # past objects that answer for others
        own = object.__getattribute__(here.get("self"), "__dict__")
    others = (frame.f_globals.get(name) for name in frame.f_code.co_names)
    return [*here.values(), *own.values(), *frame.f_code.co_consts, *others][:MOST_NAMES]


def _of_value(value: object) -> str:
    kind = type(value)  # isinstance may ask objects that answer for others
    if issubclass(kind, BytesIO):
        value = cast("BytesIO", value).getvalue()
        kind = bytes
    if issubclass(kind, bytes):
        return _pointer("what it reads") if cast("bytes", value).startswith(_POINTER) else ""
    if issubclass(kind, IOBase):
        value = getattr(value, "name", None)  # a number, where it was opened by one
    if not issubclass(type(value), str | PurePath):
        return ""
    name = str(value)
    if not 0 < len(name) <= LONGEST_NAME or "\n" in name or not Path(name).is_file():
        return ""
    with open(name, "rb") as file:  # noqa: PTH123 # as it was named
        head = file.read(HEAD_BYTES)
    return _of_content(name, head)


def _of_content(name: str, head: bytes) -> str:
    """Return what a file is by its beginning, "" where it may hold weights or is to hold none."""
    if head.startswith(_POINTER):
        return _pointer(repr(name))
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122 # as it was named
    if head.lstrip().lower().startswith(_PAGE) and ending not in _OF_PAGES:
        return f"{name!r} is a web page, not weights: download the file itself"
    if ending not in _OF_WEIGHTS:
        return ""
    if not head:
        return f"{name!r} is empty: get it again"
    text = _text(head)
    return f"{name!r} is text, not weights; it begins {text[:SHOWN]!r}" if text else ""


def _pointer(what: str) -> str:
    return (
        f"{what} is a Git LFS pointer, not the file that it stands for: run git lfs install, then "
        "git lfs pull"
    )


def _text(head: bytes) -> str:
    """Return the first line of a text; "" of what is none."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # it may end within a character
    except UnicodeDecodeError:
        return ""
    readable = all(one.isprintable() or one.isspace() for one in text)
    return text.strip().partition("\n")[0] if readable else ""
