"""The models, and the batches they eat."""

import importlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadModel
from ..experiment import model_names


@dataclass(frozen=True, slots=True)
class Model:
    """A module, its data and its loss.

    ``build`` returns the module. ``batch(size)`` returns ``x`` (size, ...) and the target ``y``.
    ``loss(output, y)`` returns a scalar. ``head`` is the submodule that `frozen_backbone`
    trains, by its path; without one that workload is skipped.
    """

    build: Callable[[], nn.Module]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    head: str | None = None
    about: str = ""
    batch_follows: bool = False  # has the batch the dtype of the module's floating parameters?

    def load(self) -> None:
        """Import what building it takes: what a module makes when it is imported is not its own."""
        if isinstance(self.build, ImportedFactory):
            self.build.load()


def classification(size: int, *, shape: Sequence[int], classes: int = 10) -> tuple[Tensor, Tensor]:
    """Return random ``x`` (size, \\*shape) and labels ``y`` (size,) below ``classes``."""
    return torch.randn(size, *shape), torch.randint(classes, (size,))


def unlabelled(size: int, *, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return random ``x`` (size, \\*shape) and an empty target, for losses that need none."""
    return torch.randn(size, *shape), torch.empty(0)


def mean_square(output: Tensor, _target: Tensor) -> Tensor:
    """Return the mean of the squared output: a loss for any model that returns one tensor."""
    return output.square().mean()


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
    }
)


def from_path(path: str, *, shape: Sequence[int]) -> Model:
    """Return the model that ``package.module:factory`` names, fed with inputs (B, \\*shape).

    The factory is imported here, so that a wrong path raises `BadModel` before anything runs.
    """
    resolve(path)
    return Model(
        ImportedFactory(path),
        partial(unlabelled, shape=tuple(shape)),
        loss=mean_square,
        batch_follows=True,
        about=f"{path} on inputs {tuple(shape)}",
    )


@dataclass(frozen=True, slots=True)
class ImportedFactory:
    """A factory by its import path, or a module that stands there ready made."""

    path: str

    def load(self) -> None:
        """Import it."""
        resolve(self.path)

    def __call__(self) -> nn.Module:
        """Return the module: a fresh one, or the one that is there."""
        target = resolve(self.path)
        module = target if isinstance(target, nn.Module) else target()
        if not isinstance(module, nn.Module):
            raise BadModel(
                f"model {self.path!r} returned {type(module).__name__}, not torch.nn.Module"
            )
        return module


def resolve(path: str) -> Callable[[], nn.Module]:
    """Import ``package.module:factory``; raise `BadModel` when it is not there."""
    module_name, separator, attribute = path.partition(":")
    if not separator or not module_name or not attribute:
        raise BadModel(f"model {path!r}: write it as package.module:factory")
    try:
        target: object = importlib.import_module(module_name)
        for name in attribute.split("."):
            target = getattr(target, name)
    except (ImportError, AttributeError) as error:
        raise BadModel(f"model {path!r} cannot be imported: {error}") from error
    except Exception as error:  # a user's module may raise anything
        raise BadModel(
            f"model {path!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not callable(target):
        raise BadModel(f"model {path!r} is {type(target).__name__}, not a factory to be called")
    return target
