"""Activation checkpointing: which modules are a model's blocks, and how they are computed again."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from ..errors import Impossible
from ..plurals import counted
from .module_parts import parts
from .steps import Cut

CONTAINERS: Final = (nn.Sequential, nn.ModuleList)

NOT_CHECKPOINTED: Final = "checkpointing=off"
"""What is to be asked for instead where a model cannot be checkpointed."""

NO_BLOCKS: Final = (
    "it has no blocks to compute again: no module made of others, and no Sequential: "
    f"{NOT_CHECKPOINTED}"
)


@dataclass(frozen=True, slots=True)
class Recomputed:
    """A block's forward that keeps its arguments for backward, and nothing of what it computes.

    Every tensor is an argument by position: in what is given by name, or in containers, torch would
    keep it where no hook on saved tensors sees it.
    """

    forward: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block; in backward, it is run again."""
        if not kwargs and all(isinstance(one, Tensor) for one in args):
            return checkpoint(self.forward, *args, use_reentrant=False)
        leaves, tree = tree_flatten((args, kwargs))

        def flat(*leaves: Any) -> Any:
            args, kwargs = tree_unflatten(leaves, tree)
            return self.forward(*args, **kwargs)

        return checkpoint(flat, *leaves, use_reentrant=False)


@dataclass(frozen=True, slots=True)
class RecomputedSegments:
    """A Sequential's forward in segments, of which each but the last is computed again."""

    layers: nn.Sequential
    segments: int

    def __call__(self, x: Any) -> Any:
        """Run the layers in order."""
        return checkpoint_sequential(self.layers, self.segments, x, use_reentrant=False)  # type: ignore[no-untyped-call] # torch leaves it untyped


def compute_again(module: nn.Module) -> str:
    """Let backward compute a module's blocks again; return in words which these are.

    Raise `Impossible` where there are none. Each block has a forward of its own from then on, which
    `keep_everything` takes away.

    A ``Sequential`` of plain layers is cut into about as many segments as each has layers (Chen et
    al. 2016, arXiv:1604.06174).
    """
    by_path = blocks(module)
    for block in by_path.values():
        object.__setattr__(block, "forward", Recomputed(block.forward))  # its author's may refuse
    if by_path:
        names = list(by_path)
        last = f" to {names[-1]}" if names[1:] else ""
        return f"{counted(len(names), 'block')}, {names[0]}{last}"
    layers = module if isinstance(module, nn.Sequential) and _is_plain(module) else ()
    segments = math.isqrt(len(layers))
    if not isinstance(layers, nn.Sequential) or segments < 2:
        raise Impossible(NO_BLOCKS)
    layers.forward = RecomputedSegments(layers, segments)  # type: ignore[method-assign] # a module's own comes first
    each = counted(len(layers) // segments, "layer")
    return f"{counted(segments - 1, 'segment')} of {each}, of {len(layers)} layers"


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Return a module's blocks by path.

    They are the modules made of others in the outermost ``Sequential`` and ``ModuleList``s, or
    else at the top level.
    """
    return dict(_in_containers(module)) or dict(_made_of_others(module))


def _is_plain(module: nn.Sequential) -> bool:
    return type(module).forward is nn.Sequential.forward and "forward" not in vars(module)


def keep_everything(module: nn.Module) -> None:
    """Take away what `compute_again` did to a module that an earlier cell may have had."""
    for part in parts(module):
        match vars(part).get("forward"):
            case Recomputed(forward) if getattr(forward, "__self__", None) is not part:
                object.__setattr__(part, "forward", forward)  # that it had brought along
            case Recomputed() | RecomputedSegments():
                object.__delattr__(part, "forward")


def _in_containers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the blocks in the outermost containers, each with its path."""
    todo = [("", module)]
    while todo:
        path, part = todo.pop(0)
        if isinstance(part, CONTAINERS):
            yield from _in_container(path, part)
        else:
            todo += ((_joined(path, name), child) for name, child in part.named_children())


def _in_container(path: str, container: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in _made_of_others(container):
        nested = isinstance(child, CONTAINERS) and any(_made_of_others(child))
        if nested or isinstance(child, nn.ModuleList):
            yield from _in_container(_joined(path, name), child)
        else:
            yield _joined(path, name), child


def _made_of_others(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children that can be computed again, and for which that can save anything.

    torch's own layers without parts save little beside their input. TorchScript runs past a forward
    that is set, and a head that was cut out must not be met twice.
    """
    for name, child in module.named_children():
        inside = list(parts(child))
        plain = len(inside) == 1 and type(child).__module__.startswith("torch.nn.")
        other = any(isinstance(part, Cut | torch.jit.ScriptModule) for part in inside)
        if not (plain or other):
            yield name, child


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
