"""Generating tokens: how a model does it, and a step of one token that begins alike every time."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadModel, Impossible
from .state import own_attributes

Prefill = Callable[[Any, Tensor, int], tuple[Tensor, Any]]
Decode = Callable[[Any, Tensor, Any], tuple[Tensor, Any]]
Enter = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """How a model makes tokens, with a cache of keys and values.

    ``prefill(model, tokens, room)`` takes in prompts, whole numbers (batch, tokens) below
    ``vocabulary``, and returns the scores of the next token (batch, vocabulary) and a cache with
    room for so many tokens more. ``decode(model, token, cache)`` takes in one token of each,
    (batch, 1), and returns the next one's scores and the cache, the same one or another. ``model``
    is the module, compiled where a cell says so. ``build`` makes the module
    where it is another than the one that is trained, with a head say.
    """

    prefill: Prefill
    decode: Decode
    vocabulary: int
    build: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        """Raise `BadModel` where no token could be drawn of the vocabulary."""
        known = self.vocabulary
        if isinstance(known, bool) or not isinstance(known, int) or known < 1:
            raise BadModel(
                f"the vocabulary of a Generation is how many tokens there are, not {known!r}: "
                "a whole number from 1 up"
            )


def held_to_contract(how: Generation, *, size: int) -> Generation:
    """Return a way to make tokens whose first answers are looked at, of so many texts at once.

    Raise `Impossible` from a call that returns something else than scores and a cache.
    """
    unseen = {"prefill", "decode"}

    def checked(name: str, made: Any) -> Any:
        if name in unseen:
            _check_made(name, made, size)
            unseen.discard(name)
        return made

    return replace(
        how,
        prefill=lambda model, tokens, room: checked("prefill", how.prefill(model, tokens, room)),
        decode=lambda model, token, cache: checked("decode", how.decode(model, token, cache)),
    )


def _check_made(name: str, made: Any, size: int) -> None:
    wanted = f"scores of shape ({size}, vocabulary), and a cache"
    if not (isinstance(made, tuple | list) and len(made) == 2):
        raise Impossible(f"its {name} is to return {wanted}; it returned a {type(made).__name__}")
    scores = made[0]
    if not isinstance(scores, Tensor):
        raise Impossible(
            f"its {name} is to return {wanted}; the first of the two is a {type(scores).__name__}"
        )
    if scores.dim() != 2 or len(scores) != size:
        raise Impossible(
            f"its {name} is to return {wanted}; its scores are of shape {tuple(scores.shape)}"
        )


def prompts(size: int, *, tokens: int, vocabulary: int) -> Tensor:
    """Return random prompts (size, tokens)."""
    return torch.randint(vocabulary, (size, tokens))


def likeliest(scores: Tensor) -> Tensor:
    """Return the token (batch, 1) that has the largest score."""
    return scores.argmax(-1, keepdim=True)


def lengthened(tokens: Tensor, length: int) -> Tensor:
    """Return texts of so many tokens that begin with these and go on with them again."""
    return tokens.repeat(1, -(-length // tokens.shape[1]))[:, :length]


class Decoding:
    """A step of one token, which begins each time with a cache of the same contents.

    A cache grows with each token, in place or by another in its stead. So each call has one of its
    own: containers and numbers are copied, tensors are detached and lie in the same memory. What a
    step writes behind what is there, the next one writes there again. `provide` makes them before
    a timed batch, so that no call pays for its own.
    """

    def __init__(self, set_up: Callable[[], Any], decode: Callable[[Any], Any], enter: Enter):
        self._set_up, self._decode, self._enter = set_up, decode, enter
        self._cache: Any = None  # what the caches of single calls are made of
        self._provided: list[Any] = []

    def __call__(self) -> Any:
        """Make a token, from a cache that was provided or is made now."""
        if not self._provided:
            self.provide(1)
        return self._decode(self._provided.pop())

    def provide(self, count: int) -> None:
        """Make the caches of so many calls."""
        with self._enter():
            if self._cache is None:
                self._cache = _apart(self._set_up())
            self._provided = [_apart(self._cache) for _ in range(count)]

    def renew(self) -> None:
        """Make another cache, for the next call alone: of a cache that grows it holds no part."""
        self._cache = None
        self._provided.clear()
        with self._enter():
            self._provided.append(_apart(self._set_up()))

    def provided(self) -> list[Tensor]:
        """Return the tensors of the caches that are there for the next calls."""
        return [tensor for cache in self._provided for tensor in cache_tensors(cache)]

    def entering(self, enter: Enter) -> "Decoding":
        """Return the step as one that enters the mode itself."""
        decode = self._decode

        def entered(cache: Any) -> Any:
            with enter():
                return decode(cache)

        return Decoding(self._set_up, entered, self._enter)

    def check(self) -> None:
        """Raise `Impossible` where a second step finds another cache than the first one did."""
        self()
        first = self._contents()
        self()
        if not all(map(_alike, first, self._contents())):
            raise Impossible(
                "its decode changes what its cache held before, so that no step can be repeated: "
                "the second one finds another cache than the first"
            )

    def _contents(self) -> list[Tensor]:
        """Return what is in the memory that all calls share, on the host."""
        if self._cache is None:
            self.provide(0)
        return [one.to("cpu", copy=True) for one in cache_tensors(self._cache)]


def provide(step: Callable[[], object], calls: int) -> None:
    """Make what so many calls of a step use up, if it is such a step: before they are timed."""
    if isinstance(step, Decoding):
        step.provide(calls)


def cache_tensors(cache: object) -> list[Tensor]:
    """Return the tensors in a cache: in containers and in attributes of objects, each once."""
    return list(_tensors(cache, set()))


def _alike(one: Tensor, other: Tensor) -> bool:
    """Return whether contents are the same but for rounding, where kernels add in any order.

    As doubles: torch compares neither complex numbers so nor floating-point ones of 8 bits.
    """
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    one, other = one.double(), other.double()
    return torch.allclose(one, other, rtol=1e-2, atol=1e-3, equal_nan=True)


def _tensors(one: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(one) in seen:
        return
    seen.add(id(one))
    if isinstance(one, Tensor):
        yield one
        return
    for part in _parts(one).values():
        yield from _tensors(part, seen)


def _parts(one: Any) -> dict[Any, Any]:
    """Return what a container or an object holds, by key, place or name."""
    match one:
        case nn.Module():
            return {}
        case dict():
            return one
        case list() | tuple() | deque():
            return dict(enumerate(one))
    return own_attributes(one)


def _apart(cache: Any) -> Any:
    """Return the cache in containers of its own, its tensors detached, numbers in them copied."""
    return _copied(cache, {})


def _copied(one: Any, made: dict[int, Any]) -> Any:
    if id(one) in made:
        return made[id(one)]
    made[id(one)] = new = _copied_anew(one, made)
    return new


def _copied_anew(one: Any, made: dict[int, Any]) -> Any:
    if isinstance(one, Tensor):
        return one.detach().clone() if one.numel() == 1 else one.detach()
    parts = _parts(one)
    if not parts:
        return one if not isinstance(one, dict | list) else copy.copy(one)
    if isinstance(one, tuple):
        copies = (_copied(part, made) for part in one)
        return type(one)(*copies) if hasattr(one, "_make") else type(one)(copies)
    made[id(one)] = new = copy.copy(one)
    for key, part in parts.items():
        if isinstance(one, dict | list | deque):
            new[key] = _copied(part, made)
        else:
            object.__setattr__(new, key, _copied(part, made))
    return new
