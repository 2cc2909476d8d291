"""What a proof is: a function that runs torch and says what it saw."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Verdict = Literal["holds", "holds with a qualification", "fails", "not testable"]


class Absent(Exception):
    """What a proof needs is not here; the message says what."""


@dataclass(frozen=True, slots=True)
class ProofResult:
    """What a proof saw: the answer that follows from it, and the sight itself in a few words."""

    answer: str  # a verdict, or of a pitfall "yes", "no"
    words: str


Proof = Callable[[], ProofResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something that the article says, in our words, and how it is put to the test.

    Without a proof it is not testable, and ``truth`` says why. ``alone`` proofs change more than
    their thread's grad mode, or cost an import: they run in another process.
    """

    id: str
    place: str
    says: str
    truth: str
    proof: Proof | None = None
    about: Literal["", "memory", "speed"] = ""
    alone: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Pitfall:
    """A pitfall of the modes: what happens, and two proofs."""

    id: str
    title: str
    happens: str
    why: str
    cure: str
    link: str
    shows: Proof
    cures: Proof
    silent: bool = False  # does it go wrong without an error or a warning?
    alone: bool = False  # as of a claim


def claim_verdict(core: bool, words: str, *, always: bool = True) -> ProofResult:
    """Return the verdict on a claim: is its core so, and is it so without exception?"""
    if not core:
        return ProofResult("fails", words)
    return ProofResult("holds" if always else "holds with a qualification", words)


def yes(so: bool, words: str) -> ProofResult:
    """Return whether bad behaviour was seen, or a cure worked."""
    return ProofResult("yes" if so else "no", words)


def bits() -> tuple[bool, bool]:
    """Return this thread's state: grad on, inference mode on."""
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def leaf(size: int = 3) -> Tensor:
    """Return ones that require grad."""
    return torch.ones(size, requires_grad=True)


def error_of(function: Callable[[], object]) -> str:
    """Return the first sentence of the RuntimeError that a function raises, or ""."""
    try:
        function()
    except RuntimeError as error:
        return first_sentence(error)
    return ""


def first_sentence(error: BaseException) -> str:
    """Return an error's message up to its first full stop or line break.

    Some of torch's messages have no space after a full stop: there the next word tells.
    """
    line = str(error).strip().partition("\n")[0]
    return re.split(r"\.(?=\s|$|[A-Z][a-z]+\s)", line)[0]


def in_a_thread(function: Callable[[], T]) -> T:
    """Return what the function returns in a fresh thread, whose grad mode nobody else shares.

    Whatever it raises is raised here.
    """
    returned: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            returned.append(function())
        except BaseException as error:  # noqa: BLE001 # carried to the caller, whatever it is
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return returned[0]
