"""The models of tools/gate_quality.py: a tree holds this file, and ``turns.json`` beside it.

Each forward is followed by turns of an empty loop: how many, that file says, by model and mode. So
a slowdown is work that is really executed.
"""

import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from gradbench.workloads.models import MODELS as BUILT_IN

BASE_TURNS = 10
"""Turns on both sides: what the loop costs beside its turns cancels."""


class Residual(nn.Module):
    """x + f(norm(x)), as transformers and mixers have it."""

    def __init__(self, width: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm, self.inner = nn.LayerNorm(width), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class Attention(nn.Module):
    """Self-attention by torch's fused operator."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.into, self.out = (
            heads,
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.into(x).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last output."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Embedded(nn.Module):
    """Looked-up rows, summed, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.head = nn.EmbeddingBag(2000, 64, mode="sum"), nn.Linear(64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rows(ids))


class Gated(nn.Module):
    """A gated linear unit, as large language models have it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def two_layers(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


def separable(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(),
    )


UNSEEN: Mapping[str, Callable[[], nn.Module]] = {
    "residual_mlp": lambda: nn.Sequential(*(Residual(64, two_layers(64)) for _ in range(4))),
    "attention": lambda: nn.Sequential(
        *(Residual(64, inner) for _ in range(2) for inner in (Attention(64, 4), two_layers(64)))
    ),
    "depthwise_cnn": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), *(separable(16) for _ in range(3)), nn.Flatten()
    ),
    "lstm": lambda: Recurrent(nn.LSTM(32, 32, batch_first=True), 32),
    "gru": lambda: Recurrent(nn.GRU(32, 32, batch_first=True), 32),
    "embedding": Embedded,
    "gated_mlp": lambda: nn.Sequential(*(Residual(96, Gated(96)) for _ in range(3))),
    "batch_norm_mlp": lambda: nn.Sequential(
        *(
            layer
            for _ in range(4)
            for layer in (nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU())
        )
    ),
    "group_norm_cnn": lambda: nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.SiLU(),
        nn.MaxPool2d(4),
        nn.Flatten(),
        nn.Linear(1024, 10),
    ),
    "conv1d": lambda: nn.Sequential(
        nn.Conv1d(8, 32, 5), nn.ReLU(), nn.Conv1d(32, 32, 5), nn.ReLU(), nn.AdaptiveAvgPool1d(1)
    ),
    "autoencoder": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2, stride=2)
    ),
    "dropout_mlp": lambda: nn.Sequential(
        nn.Linear(256, 256), nn.Tanh(), nn.Dropout(0.1), nn.Linear(256, 64), nn.Softmax(-1)
    ),
}
"""Models that the rule's constants were not chosen on."""

INPUTS: Mapping[str, str] = {
    "residual_mlp": "B,64",
    "attention": "B,32,64",
    "depthwise_cnn": "B,3,32,32",
    "lstm": "B,12,32",
    "gru": "B,12,32",
    "embedding": "B,16:int64<2000",
    "gated_mlp": "B,96",
    "batch_norm_mlp": "B,128",
    "group_norm_cnn": "B,3,32,32",
    "conv1d": "B,8,64",
    "autoencoder": "B,3,32,32",
    "dropout_mlp": "B,256",
    "mlp_tiny": "B,64",
    "mlp_wide": "B,784",
    "cnn_small": "B,3,32,32",
}
BATCH_SIZES: Mapping[str, tuple[int, ...]] = {
    "residual_mlp": (1, 16),
    "attention": (1,),
    "depthwise_cnn": (4,),
    "lstm": (1,),
    "gru": (16,),
    "embedding": (64,),
    "gated_mlp": (8,),
    "batch_norm_mlp": (64,),
    "group_norm_cnn": (2,),
    "conv1d": (8,),
    "autoencoder": (1,),
    "dropout_mlp": (32,),
    "mlp_tiny": (1,),
    "mlp_wide": (8,),
    "cnn_small": (8,),
}
TUNED = ("mlp_tiny", "mlp_wide", "cnn_small")
"""Models that an earlier rule's constants were chosen on."""


class Padded(nn.Module):
    """A model whose forward is followed by turns of an empty loop."""

    def __init__(self, name: str) -> None:
        super().__init__()
        file = Path(__file__).with_name("turns.json")
        self.inner = (UNSEEN.get(name) or BUILT_IN[name].build)()
        self.turns = json.loads(file.read_text("utf-8")).get(name, {}) if file.exists() else {}

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        mode = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
        mode = "global_on" if torch.is_grad_enabled() else mode
        deque(itertools.repeat(None, BASE_TURNS + self.turns.get(mode, 0)), maxlen=0)
        return out


for _name in INPUTS:
    globals()[_name] = partial(Padded, _name)
