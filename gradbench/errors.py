"""The errors a user can cause; anything else is a bug and keeps its traceback."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

MOST_WORDS: Final = 1000
"""Characters of an error in one line: a model may say more than anybody wants to read there."""


class GradbenchError(Exception):
    """Base of every error gradbench raises on purpose: one line, with the remedy."""


class UnknownName(GradbenchError):
    """A name that no catalogue knows; carries ``axis`` and ``name`` for whoever can say where.

    ``meant`` is the known name that it stands for elsewhere, ``note`` what else helps.
    """

    def __init__(
        self, axis: str, name: str, known: Iterable[str], *, meant: str = "", note: str = ""
    ) -> None:
        self.axis, self.name = axis, name
        known = sorted(known)
        close = [meant] if meant else get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        more = f" ({note})" if note else ""
        super().__init__(f"unknown {axis.replace('_', ' ')} {name!r}: {hint}{more}")


class Impossible(GradbenchError):
    """Axis values that contradict one another, or an axis value no axis can have."""


class BadSetting(Impossible):
    """A setting with a value that it cannot have; an option may spell its ``name`` otherwise."""

    def __init__(self, name: str, words: str) -> None:
        self.name, self.words = name, words
        super().__init__(f"{name} {words}")


class WrongDevice(GradbenchError):
    """A call that works on another device than the one that was to be looked at."""


class DeviceUnavailable(GradbenchError):
    """A device that exists as a name, but not on this machine."""


class BadConfig(GradbenchError):
    """A configuration file that cannot be used; the message names file, line and key."""


class BadModel(GradbenchError):
    """A model of the user's that cannot be found, called or sent to another process.

    ``traceback`` is of the user's own frames, where another process raised it.
    """

    def __init__(self, message: str, *, traceback: str = "") -> None:
        self.traceback = traceback
        super().__init__(message)


class StoreError(GradbenchError):
    """A results folder or a run in it that cannot be written or read."""


class ClusterLost(GradbenchError):
    """A cluster that is gone while something is measured on it."""


def message_line(error: BaseException) -> str:
    """Return what an error says in one line: its first, and the second where that announces it.

    A message that quotes a traceback, as TorchScript's do, says at its end what was wrong.
    """
    error = speaking(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        return cut(lines[-1].removeprefix(f"{kind_of(error)}: "))
    announces = (
        lines
        and lines[0].endswith(":")
        and not any(line.startswith("File ") for line in lines[1:2])
    )
    return cut(" ".join(lines[: 2 if announces else 1]))


def in_one_line(error: BaseException) -> str:
    """Return an error's kind and what it says, in one line."""
    error = speaking(error)
    message = message_line(error)
    return cut(f"{kind_of(error)}: {message}" if message else kind_of(error))


def speaking(error: BaseException) -> BaseException:
    """Return the error, or in place of one that cannot say what it is another that does."""
    try:
        str(error)
    except BaseException as mute:  # noqa: BLE001 # a model may raise anything
        return RuntimeError(f"{kind_of(error)}, whose words cannot be had: {kind_of(mute)}")
    return error


def kind_of(error: BaseException) -> str:
    """Return the name of an error's class, in one line, whatever its metaclass would answer."""
    name = type.__dict__["__name__"].__get__(type(error))
    return cut(" ".join(name.split()) or "an error without a name")


def cut(words: str) -> str:
    """Return words, cut where they are longer than a reason may be."""
    return words if len(words) <= MOST_WORDS else f"{words[:MOST_WORDS]}..."
