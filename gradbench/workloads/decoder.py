"""A small causal decoder: tokens in, scores of the next one out, keys and values in a cache."""

from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadModel
from .generation import Generation
from .trees import Batch

VOCABULARY: Final = 4096
TOKENS: Final = 64
"""How long a text is where nothing is generated: in workloads that take a batch of texts."""
HEAD_SIZE: Final = 64
ROTARY_BASE: Final = 10_000.0

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (tokens, head size / 2) by which pairs of a head's numbers are turned."""


@dataclass(slots=True)
class KeyValueCache:
    """Keys and values of each layer, (batch, heads, capacity, head size), made at first use."""

    capacity: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    length: int = 0  # tokens that every layer has written

    def extended(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write what follows; return all keys and values of the layer up to there."""
        if layer == len(self.keys):
            batch, heads, _, size = keys.shape
            self.keys.append(keys.new_zeros(batch, heads, self.capacity, size))
            self.values.append(values.new_zeros(batch, heads, self.capacity, size))
        end = self.length + keys.shape[2]
        self.keys[layer][:, :, self.length : end] = keys
        self.values[layer][:, :, self.length : end] = values
        return self.keys[layer][:, :, :end], self.values[layer][:, :, :end]


class Attention(nn.Module):
    """Causal attention with rotary positions (Su et al. 2021, arXiv:2104.09864)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rotation: Rotation, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        """Map (B, T, width) to the same; each token sees those before it, of the cache too."""
        batch, tokens, width = x.shape
        shape = (batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = self.qkv(x).view(shape).permute(2, 0, 3, 1, 4)
        query, key = _turned(query, rotation), _turned(key, rotation)
        if cache is not None:
            key, value = cache.extended(layer, key, value)
        # Several tokens come into an empty cache only; one alone sees all that is there.
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=tokens > 1)
        return self.out(seen.transpose(1, 2).reshape(batch, tokens, width))  # type: ignore[no-any-return] # a module's call is untyped


class SwiGLU(nn.Module):
    """The gated layer of Shazeer 2020 (arXiv:2002.05202)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = -(-8 * width // 3 // HEAD_SIZE) * HEAD_SIZE
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return] # a module's call is untyped


class Layer(nn.Module):
    """Attention and a gated layer, each behind a norm and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.mlp_norm = nn.RMSNorm(width)
        self.mlp = SwiGLU(width)

    def forward(
        self, x: Tensor, rotation: Rotation, cache: KeyValueCache | None, layer: int
    ) -> Tensor:
        """Map (B, T, width) to the same."""
        x = x + self.attention(self.attention_norm(x), rotation, cache, layer)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return] # a module's call is untyped


class Decoder(nn.Module):
    """A decoder of Llama's shape (arXiv:2302.13971), with a head of its own for the scores."""

    def __init__(self, *, depth: int, width: int) -> None:
        super().__init__()
        if width % 2:
            raise BadModel(f"a decoder of width {width} has no pairs to turn: an even width")
        heads = 1 if width % HEAD_SIZE else width // HEAD_SIZE
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        self._pairs = width // heads // 2

    def forward(
        self, tokens: Tensor, cache: KeyValueCache | None = None, *, room: int | None = None
    ) -> Tensor | tuple[Tensor, KeyValueCache]:
        """Return the scores (B, T, vocabulary) of what follows each of the tokens (B, T).

        With a cache, which ``room`` makes for these tokens and so many more, only the scores
        (B, vocabulary) of what follows the last one, and the cache.
        """
        if room is not None:
            cache = KeyValueCache(tokens.shape[1] + room)
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        x = self.embedding(tokens)
        rotation = self._rotation(start, end, x)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, cache, index)
        if cache is None:
            return self.head(self.norm(x))  # type: ignore[no-any-return] # a module's call is untyped
        cache.length = end
        return self.head(self.norm(x[:, -1])), cache

    def _rotation(self, start: int, end: int, like: Tensor) -> Rotation:
        """Return the rotation of these positions, in single precision until the end.

        No buffer has it: converting the module to bfloat16 would round its angles.
        """
        pairs = torch.arange(self._pairs, device=like.device)
        positions = torch.arange(start, end, device=like.device)
        angles = torch.outer(positions, ROTARY_BASE ** (-pairs / self._pairs))
        return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _turned(x: Tensor, rotation: Rotation) -> Tensor:
    (left, right), (cos, sin) = x.chunk(2, -1), rotation
    return torch.cat((left * cos - right * sin, left * sin + right * cos), -1)


def texts(size: int) -> Batch:
    """Return random texts (size, TOKENS), and what is to follow each of their tokens."""
    tokens = torch.randint(VOCABULARY, (size, TOKENS + 1))
    return Batch((tokens[:, :-1],), target=tokens[:, 1:])


def cross_entropy(scores: Tensor, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of the tokens that follow, over all places of all texts."""
    return functional.cross_entropy(scores.flatten(0, 1), batch.target.flatten())


def prefill(decoder: nn.Module, tokens: Tensor, room: int) -> tuple[Tensor, KeyValueCache]:
    """Take in prompts; return the scores of the next token, and the cache."""
    scores, cache = decoder(tokens, room=room)
    return scores, cache


def decode(decoder: nn.Module, token: Tensor, cache: KeyValueCache) -> tuple[Tensor, KeyValueCache]:
    """Take in one more token; return the scores of the next one, and the cache."""
    scores, cache = decoder(token, cache)
    return scores, cache


GENERATION: Final = Generation(prefill=prefill, decode=decode, vocabulary=VOCABULARY)
