"""Small programs of the article's kinds, as first written and repaired, and how far each comes."""

import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from textwrap import dedent
from typing import Final

from ..records.semantics import ListingResult


@dataclass(frozen=True, slots=True)
class Listing:
    """A program as one would write it who believes the article, and one that does what he wants."""

    id: str
    wanted: str
    source: str  # "" where there is only a pattern to follow
    repaired: str


@dataclass(frozen=True, slots=True)
class Ran:
    """What a program printed, and the line and the error that it stopped with, if it did."""

    printed: str
    stopped_at: str = ""
    error: str = ""


def run(source: str) -> Ran:
    """Run a program in a namespace of its own; it may leave this thread's grad mode changed."""
    name, printed = "<listing>", StringIO()
    try:
        with redirect_stdout(printed):
            exec(compile(source, name, "exec"), {"__name__": "__main__"})  # noqa: S102 # our own text
    except Exception as error:  # noqa: BLE001 # how it ends is what is asked
        frames = traceback.extract_tb(sys.exc_info()[2])
        number = next(frame.lineno for frame in frames if frame.filename == name)
        line = source.splitlines()[(number or 1) - 1].strip()
        return Ran(printed.getvalue(), line, f"{type(error).__name__}: {error}")
    return Ran(printed.getvalue())


def listing_result(listing: Listing, *, repaired: bool, ran: Ran) -> ListingResult:
    """Return the record of a run."""
    return ListingResult(
        id=listing.id,
        wanted=listing.wanted,
        source=listing.repaired if repaired else listing.source,
        repaired=repaired,
        printed=ran.printed,
        stopped_at=ran.stopped_at,
        error=ran.error,
    )


def _text(source: str) -> str:
    return dedent(source).strip() + "\n"


LISTINGS: Final[Mapping[str, Listing]] = {
    listing.id: listing
    for listing in (
        Listing(
            "local-disable",
            "leave one term out of the gradient, and have the gradient of the rest",
            _text("""
                import torch

                torch.set_grad_enabled(True)  # it was on already
                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                scaled = weight * 2
                with torch.no_grad():
                    shifted = scaled + 1  # cut off from weight, for good
                result = shifted * 3
                result.backward()  # nothing to go back through
                print(weight.grad)
            """),
            _text("""
                import torch

                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                scaled = weight * 2
                with torch.no_grad():
                    shift = scaled.mean()  # a number for use below, not part of the graph
                result = (scaled - shift) * 3  # from weight, not through the block
                result.sum().backward()  # a scalar: three elements need a gradient argument
                print(weight.grad)
            """),
        ),
        Listing(
            "global-disable",
            "run without gradients, and train again afterwards",
            _text("""
                import torch

                torch.set_grad_enabled(False)
                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                scaled = weight * 2
                with torch.no_grad():  # changes nothing: it is off already
                    shifted = scaled + 1
                result = shifted * 3
                try:
                    result.backward()
                except RuntimeError as error:
                    print(f"caught: {error}")
                print(torch.is_grad_enabled())  # and off it stays
            """),
            _text("""
                import torch

                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                with torch.set_grad_enabled(False):  # the same switch, and it is put back
                    evaluated = (weight * 2).sum()
                print(evaluated.requires_grad, torch.is_grad_enabled())
                (weight * 2).sum().backward()
                print(weight.grad)
            """),
        ),
        Listing(
            "nested-reenable",
            "take a gradient inside a block that records nothing",
            _text("""
                import torch

                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                scaled = weight * 2
                with torch.no_grad():
                    shifted = scaled + 1
                    with torch.enable_grad():
                        doubled = shifted * 2  # on again, but shifted requires no gradient
                        doubled.backward()
                result = shifted * 3
                try:
                    result.backward()
                except RuntimeError as error:
                    print(f"caught: {error}")
                print(weight.grad)
            """),
            _text("""
                import torch

                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
                with torch.no_grad():
                    shifted = weight * 2 + 1
                    with torch.enable_grad():
                        start = shifted.detach().requires_grad_()  # a leaf to differentiate by
                        (start * 2).sum().backward()
                print(start.grad, weight.grad)
            """),
        ),
        Listing(
            "conditional",
            "train and evaluate with one function",
            "",
            _text("""
                import torch

                weight = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)

                def loss(batch, *, training):
                    with torch.set_grad_enabled(training):
                        return ((weight * batch) ** 2).mean()

                batch = torch.ones(3)
                for training in (False, True):
                    value = loss(batch, training=training)
                    print(value.requires_grad, torch.is_grad_enabled())
                value.backward()
                print(weight.grad)
            """),
        ),
    )
}
