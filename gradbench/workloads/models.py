"""The models, and the batches they eat."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import Impossible
from ..experiment import model_names
from ..experiment.matrix import AS_IS, Cell
from ..experiment.model_source import ModelSource
from . import decoder, losses
from .generation import Generation, prompts
from .trees import Batch


@runtime_checkable
class Loadable(Protocol):
    """What is imported before it can be called."""

    def load(self) -> object:
        """Import it."""


@runtime_checkable
class StandIn(Protocol):
    """What is called in the place of a function, which it finds by a path each time."""

    def function(self) -> Callable[..., Any]:
        """Return the function."""


@dataclass(frozen=True, slots=True)
class Model:
    """A module, what it is called with, and its loss.

    ``build`` returns the module. ``batch(size)`` returns what the module is called with: a tensor,
    a tuple of arguments, a dict of them by name, or a `Batch`, which may hold a target, too.
    ``loss(output, batch)`` returns a scalar; without one it is `losses.automatic`. ``head`` is the
    submodule that `frozen_backbone` trains, by its path; without one that workload is skipped.
    ``dtype`` is what cells with the dtype ``as_is`` convert it to. ``generation`` says how it
    makes tokens; without it the workloads that do are skipped. ``source`` says how it is made
    again, where a command line or a file does.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], Any]
    loss: Callable[[Any, Any], Tensor] = losses.automatic
    head: str | None = None
    about: str = ""
    batch_follows: bool = False  # has the batch the dtype of the module's floating parameters?
    dtype: str = AS_IS
    generation: Generation | None = None
    source: ModelSource | None = None
    imports: tuple[str, ...] = ()  # modules that may be imported before its processes are forked

    def __hash__(self) -> int:
        """Return a hash of names alone: a function of the user's may be an object without one."""
        return hash((self.about, self.head, self.dtype, self.imports))

    def load(self) -> None:
        """Import what building it takes: what a module makes when it is imported is not its own."""
        how = self.generation
        making = (how.build, how.prefill, how.decode) if how is not None else ()
        for part in (self.build, self.batch, self.loss, *making):
            if isinstance(part, Loadable):
                part.load()

    def generating(self, cell: Cell) -> "Model":
        """Return the model as it makes tokens: built for that, and given random prompts."""
        how = self.generation
        if how is None:
            raise Impossible(f"{cell.workload} makes tokens, and {cell.model} has no Generation")
        return replace(
            self,
            build=how.build or self.build,
            batch=partial(prompts, tokens=cell.prompt, vocabulary=how.vocabulary),
            batch_follows=False,
        )


def sources_of(cells: Iterable[Cell], models: Mapping[str, Model]) -> dict[str, ModelSource]:
    """Return where the cells' models come from, of those that are not built in."""
    sources = {cell.model: models[cell.model].source for cell in cells if cell.model in models}
    return {name: source for name, source in sources.items() if source is not None}


def classification(size: int, *, shape: Sequence[int], classes: int = 10) -> Batch:
    """Return random inputs (size, \\*shape) with labels (size,) below ``classes``."""
    x = torch.randn(size, *shape)
    return Batch((x,), target=torch.randint(classes, (size,)))


def mlp(*widths: int) -> nn.Sequential:
    """Return linear layers between ``widths``, a ReLU after each but the last."""
    layers: list[nn.Module] = []
    for wide, narrow in itertools.pairwise(widths):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn_small() -> nn.Sequential:
    """Return three convolutions with BatchNorm, for images (B, 3, 32, 32)."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((3, 16), (16, 32), (32, 64)):
        layers += [
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(),
        ]
        layers += [nn.MaxPool2d(2)] if channels_out < 64 else []
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, arXiv:1512.03385, figure 2)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels_in, H, W) to (B, channels_out, H/stride, W/stride)."""
        return functional.relu(self.path(x) + self.shortcut(x), inplace=True)


def resnet18(*, classes: int) -> nn.Sequential:
    """Return a network of ResNet-18's shape (arXiv:1512.03385, table 1) for (B, 3, H, W)."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    channels_in = 64
    for channels, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Residual(channels_in, channels, stride), Residual(channels, channels, 1)]
        channels_in = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, classes)
    )


def cnn(*, depth: int, width: int) -> nn.Sequential:
    """Return convolutions of ``width`` channels with BatchNorm, for images (B, 3, H, W)."""
    layers: list[nn.Module] = []
    for index in range(depth):
        layers += [
            nn.Conv2d(3 if index == 0 else width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class RotaryTables(nn.Module):
    """Turns queries and keys by their positions (arXiv:2104.09864).

    The tables are made at the first call and kept as plain attributes, as many libraries have them:
    an evaluation that is the first call leaves its own.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cos: Tensor | None = None
        self.sin: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, heads, T, size) to the same, turned."""
        if self.cos is None or self.sin is None:
            half = x.size(-1) // 2
            rates = 10_000 ** -(torch.arange(half, device=x.device) / half)
            angles = torch.outer(torch.arange(x.size(-2), device=x.device), rates).repeat(1, 2)
            self.cos, self.sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        left, right = x.chunk(2, -1)
        turned: Tensor = x * self.cos + torch.cat((-right, left), -1) * self.sin
        return turned


class RotaryAttention(nn.Module):
    """Self-attention with rotary positions around a shortcut."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.rotary = RotaryTables()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, width) to the same."""
        projected: Tensor = self.project(x)
        split = projected.view(*x.shape[:2], 3, self.heads, -1)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        seen = functional.scaled_dot_product_attention(self.rotary(query), self.rotary(key), value)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return x + out


def attention_rotary(*, width: int = 64, tokens: int = 16) -> nn.Sequential:
    """Return two layers of attention with rotary positions, for (B, tokens, width)."""
    return nn.Sequential(
        RotaryAttention(width, heads=4),
        nn.LayerNorm(width),
        RotaryAttention(width, heads=4),
        nn.LayerNorm(width),
        nn.Flatten(),
        nn.Linear(tokens * width, 10),
    )


class Catalogue(Mapping[str, Model]):
    """Models by name: those that are listed, and any of a family whose name gives its sizes."""

    def __init__(self, listed: Mapping[str, Model]) -> None:
        self._listed = dict(listed)

    def __getitem__(self, name: str) -> Model:
        """Return the model of that name, listed or sized; raise KeyError."""
        return self._listed[name] if name in self._listed else _sized(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)

    def __or__(self, others: Mapping[str, Model]) -> "Catalogue":
        """Return a catalogue with others listed besides."""
        return Catalogue({**self._listed, **others})


def _decoder(*, depth: int, width: int, about: str) -> Model:
    return Model(
        partial(decoder.Decoder, depth=depth, width=width),
        decoder.texts,
        loss=decoder.cross_entropy,
        head="head",
        about=about,
        generation=decoder.GENERATION,
    )


def _sized(name: str) -> Model:
    sizes = model_names.parse(name)
    if sizes is None:
        raise KeyError(name)
    if sizes.family == "mlp":
        return Model(
            partial(mlp, *[sizes.width] * (sizes.depth + 1), 10),
            partial(classification, shape=(sizes.width,)),
            head=str(2 * sizes.depth),
            about=f"{sizes.depth} hidden layers of width {sizes.width}",
        )
    if sizes.family == "decoder":
        return _decoder(
            depth=sizes.depth,
            width=sizes.width,
            about=f"a causal decoder of {sizes.depth} layers of width {sizes.width}",
        )
    return Model(
        partial(cnn, depth=sizes.depth, width=sizes.width),
        partial(classification, shape=(3, sizes.resolution, sizes.resolution)),
        head=str(3 * sizes.depth + 2),
        about=f"{sizes.depth} convolutions of {sizes.width} channels on "
        f"3x{sizes.resolution}x{sizes.resolution}",
    )


MODELS: Final = Catalogue(
    {
        "mlp_tiny": Model(
            partial(mlp, *[64] * 9, 10),
            partial(classification, shape=(64,)),
            head="16",
            about="9 linear layers of width 64: so small that it is host-bound",
        ),
        "mlp_deep": Model(
            partial(mlp, *[128] * 32, 10),
            partial(classification, shape=(128,)),
            head="62",
            about="32 linear layers of width 128: narrow, so activations outweigh the rest",
        ),
        "mlp_wide": Model(
            partial(mlp, 784, 2048, 2048, 2048, 10),
            partial(classification, shape=(784,)),
            head="6",
            about="4 linear layers up to 2048 wide: bound by arithmetic",
        ),
        "cnn_small": Model(
            cnn_small,
            partial(classification, shape=(3, 32, 32)),
            head="13",
            about="3 convolutions with BatchNorm on 3x32x32",
        ),
        "attention_rotary": Model(
            attention_rotary,
            partial(classification, shape=(16, 64)),
            head="5",
            about="2 attention layers whose rotary tables are made at the first call and kept",
        ),
        "resnet18_32": Model(
            partial(resnet18, classes=10),
            partial(classification, shape=(3, 32, 32)),
            head="14",
            about="ResNet-18's shape on 3x32x32",
        ),
        "resnet18_224": Model(
            partial(resnet18, classes=1000),
            partial(classification, shape=(3, 224, 224), classes=1000),
            head="14",
            about="ResNet-18's shape on 3x224x224",
        ),
        "decoder_tiny": _decoder(
            depth=4,
            width=128,
            about="a causal decoder of 4 layers of width 128: so small that it is host-bound",
        ),
    }
)
