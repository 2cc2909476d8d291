"""Whatever a model raises is a reason of one line, with a traceback that has an end."""

import pytest

from gradbench.devices.cpu import CPU
from gradbench.errors import MOST_WORDS
from gradbench.runner.attempts import guarded
from gradbench.users_traceback import LONGEST, MOST_FRAMES

MANY = 2_000_000


class Mute(Exception):
    def __str__(self):
        raise ValueError("no words")


class Numeric(Exception):
    def __str__(self):
        return 5  # noqa: PLE0307 # that is the case


class Untouchable(Exception):
    def __getattribute__(self, name):
        raise ZeroDivisionError(name)


class Classless(Exception):
    @property
    def __class__(self):
        raise ZeroDivisionError


class Unnamed(type):
    @property
    def __name__(cls):
        raise ZeroDivisionError


class Nameless(Exception, metaclass=Unnamed):
    pass


class Outside(BaseException):
    pass


def with_notes(notes):
    error = RuntimeError("noted")
    error.__notes__ = notes
    return error


ERRORS = {
    "a message of megabytes": (RuntimeError("A" * MANY), "RuntimeError: AAA"),
    "a message of a million lines": (RuntimeError("line\n" * MANY), "RuntimeError: line"),
    "a class whose name has lines": (type("A\nB", (Exception,), {})("x"), "A B: x"),
    "a class with a name of megabytes": (type("E" * MANY, (Exception,), {})("x"), "EEE"),
    "a class without a name": (Nameless("x"), "Nameless: x"),
    "no class": (Classless("x"), "Classless"),
    "no words": (Mute(), "RuntimeError: Mute, whose words cannot be had: ValueError"),
    "words that are a number": (Numeric(), "RuntimeError: Numeric, whose words cannot be had"),
    "nothing that can be asked": (Untouchable("x"), "Untouchable"),
    "a syntax error of nowhere": (SyntaxError("x", ("f", "no", "number", "t")), "SyntaxError"),
    "a syntax error of megabytes": (SyntaxError("x", ("f", 1, 9, "t" * MANY)), "SyntaxError: x"),
    "notes that are none": (with_notes(5), "RuntimeError: noted"),
    "notes of megabytes": (with_notes(["n" * MANY]), "RuntimeError: noted"),
    "a group": (BaseExceptionGroup("of\ntwo", [KeyboardInterrupt()]), "BaseExceptionGroup: of"),
    "an exit": (SystemExit(0), "SystemExit: 0"),
    "no exception": (Outside("x"), "Outside: x"),
    "a generator's end": (GeneratorExit(), "GeneratorExit"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_whatever_is_raised_is_one_line_and_a_traceback_that_ends(name):
    error, words = ERRORS[name]

    def step():
        raise error

    why = guarded(step, CPU())
    assert why.cause == "failed"
    assert why.reason.startswith(words)
    assert len(why.reason.splitlines()) == 1
    assert len(why.reason) <= 2 * MOST_WORDS + 100
    assert len(why.traceback) <= (MOST_FRAMES + 2) * (LONGEST + 100)
