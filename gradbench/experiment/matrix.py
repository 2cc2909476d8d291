"""The design of an experiment: axes in, cells out."""

import inspect
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Final

from ..errors import Impossible, UnknownName
from ..plurals import counted
from ..printable import brief, printable
from .axis import Axis, Value, axes_of

GRAD_MODES: Final = ("global_on", "global_off", "no_grad", "inference_mode")
RECORDING: Final = "global_on"
"""The mode in which every step can be made that can be made at all."""
EQUAL_MODES: Final = ("global_off", "no_grad")
"""Modes that set the same flag, so that one takes what the other does: an A/A control."""
MOST_CELLS: Final = 100_000
"""To measure as many takes days, and to list many more all of the memory."""
AS_IS: Final = "as_is"
"""The dtype of a model that is not converted."""

OF_BATCHES: Final = (
    *("inference", "training", "training_reenabled"),
    *("frozen_backbone", "evaluate_then_train"),
)
"""Workloads whose step takes a batch: of every model."""

OF_TOKENS: Final = ("prefill", "decode", "generate")
"""Workloads whose step takes prompts and makes tokens: of models that have a `Generation`."""

OF_ONE_PROCESS: Final = (*OF_BATCHES, *OF_TOKENS)
"""Workloads whose step is all there is: no other process takes part."""

OF_RANKS: Final = (
    *("inference_ddp", "training_ddp"),
    *("inference_fsdp2", "training_fsdp2"),
)
"""Workloads of `world_size` processes that step together, each on a batch of its own."""

WORKLOADS: Final = (*OF_ONE_PROCESS, *OF_RANKS)
ENTER_THEMSELVES: Final = ("frozen_backbone", "evaluate_then_train")
"""Workloads whose step enters the grad mode, and leaves it again before it trains."""

LENGTHS: Final = ("prompt", "new_tokens")
"""Axes of the workloads that make tokens alone."""


def device_name(value: Value) -> Value:
    """Return a device's name as cells bear it: ``cuda:0`` is ``cuda``, its family's first."""
    family, _, index = str(value).partition(":")
    if family != "cpu" and index and not index.strip("0"):
        return family
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value per axis: what is measured, and nothing about how.

    A field is an axis, and all there is to one: `Matrix`, TOML files, options, the page, exports
    and keys read it from here. An axis added later has a default, so that results recorded before
    it keep their key.
    """

    model: Annotated[
        str,
        Axis(
            plural="models",
            help="A built-in model, or your own: package.module:factory, file.py:Class, "
            "timm:NAME, torchvision:NAME, transformers:NAME. mine=... calls it so.",
        ),
    ]
    workload: Annotated[
        str,
        Axis(
            plural="workloads",
            help=f"What a step does: {', '.join(WORKLOADS)}.",
            values=WORKLOADS,
            swept=("inference",),
        ),
    ]
    grad_mode: Annotated[
        str,
        Axis(
            plural="grad_modes",
            help=f"{', '.join(GRAD_MODES)}.",
            values=GRAD_MODES,
            swept=GRAD_MODES,
        ),
    ]
    device: Annotated[
        str,
        Axis(
            plural="devices",
            help="cpu, cuda, cuda:N, cuda:all. Without it: cpu, and cuda where there is one.",
            canonical=device_name,
        ),
    ] = "cpu"
    batch_size: Annotated[
        int, Axis(plural="batch_sizes", help="Samples in a step.", label="b{}")
    ] = 32
    dtype: Annotated[
        str,
        Axis(
            plural="dtypes",
            help="as_is: as the model is built; float32, bfloat16, float16: converted.",
            values=(AS_IS, "float32", "bfloat16", "float16"),
        ),
    ] = AS_IS
    threads: Annotated[
        int, Axis(plural="threads", help="Threads within an operator.", label="t{}")
    ] = 1
    memory_format: Annotated[
        str,
        Axis(
            plural="memory_formats",
            help="contiguous, or channels_last for images.",
            values=("contiguous", "channels_last"),
        ),
    ] = "contiguous"
    compile: Annotated[
        str,
        Axis(
            plural="compile",
            help="off, or torch.compile in its mode default, reduce-overhead (CUDA graphs), "
            "max-autotune.",
            values=("off", "default", "reduce-overhead", "max-autotune"),
            label="compiled_{}",
            labels={"default": "compiled"},
            renamed={"on": "default"},
        ),
    ] = "off"
    entry: Annotated[
        str,
        Axis(
            plural="entries",
            help="held: the mode entered once around many steps; per_call: in each step.",
            values=("held", "per_call"),
        ),
    ] = "held"
    malloc: Annotated[
        str,
        Axis(
            plural="mallocs",
            help="pinned: timed processes keep freed memory; system: malloc's defaults.",
            values=("pinned", "system"),
            label="{}_malloc",
        ),
    ] = "pinned"
    l2: Annotated[
        str,
        Axis(
            plural="l2",
            help="hot, cold: a GPU's cache between steps.",
            values=("hot", "cold"),
            label="{}_l2",
        ),
    ] = "hot"
    optimizer: Annotated[
        str,
        Axis(
            plural="optimizers",
            help="sgd, sgd_momentum, adamw: of workloads that train.",
            values=("sgd", "sgd_momentum", "adamw"),
        ),
    ] = "sgd"
    precision: Annotated[
        str,
        Axis(
            plural="precisions",
            help="ieee, tf32: how a GPU multiplies float32 numbers.",
            values=("ieee", "tf32"),
        ),
    ] = "ieee"
    autocast: Annotated[
        str,
        Axis(
            plural="autocasts",
            help="off, bfloat16, float16: torch.autocast around forward and loss.",
            values=("off", "bfloat16", "float16"),
            label="autocast_{}",
        ),
    ] = "off"
    checkpointing: Annotated[
        str,
        Axis(
            plural="checkpointing",
            help="off, blocks: torch.utils.checkpoint around the model's blocks, in training.",
            values=("off", "blocks"),
            label="checkpointed",
        ),
    ] = "off"
    prompt: Annotated[
        int,
        Axis(
            plural="prompts",
            help="Tokens of a prompt: of prefill, decode and generate.",
            label="p{}",
        ),
    ] = 128
    new_tokens: Annotated[
        int,
        Axis(
            plural="new_tokens",
            help="Tokens that generate makes, and that decode has made before.",
            label="n{}",
        ),
    ] = 8
    world_size: Annotated[
        int,
        Axis(
            plural="world_sizes",
            help=f"Ranks: processes that step together, started for you. Of {', '.join(OF_RANKS)}.",
            label="w{}",
        ),
    ] = 1

    def __post_init__(self) -> None:
        for name, axis in AXES.items():
            given = getattr(self, name)
            value = axis.renamed.get(given, given) if axis.renamed else given
            axis.check(value)
            if axis.canonical(value) != given:
                object.__setattr__(self, name, axis.canonical(value))

    def axes(self) -> dict[str, Value]:
        """Return axis name -> value, every axis, in declared order."""
        return {name: getattr(self, name) for name in AXES}

    @property
    def block(self) -> "Block":
        """What this cell shares with the cells it is interleaved with."""
        return Block(replace(self, grad_mode=GRAD_MODES[0]))

    @property
    def holds_mode(self) -> bool:
        """Whether steps run inside a mode that was entered before, or enter it themselves."""
        return self.entry == "held" and self.workload not in ENTER_THEMSELVES

    @property
    def in_ranks(self) -> bool:
        """Whether processes step together, of which there may be one."""
        return self.workload in OF_RANKS

    @property
    def samples(self) -> int:
        """What throughput counts of a step: samples, and of those that generate new tokens.

        Of ranks that step together, those of all.
        """
        tokens = self.new_tokens if self.workload == "generate" else 1
        return self.batch_size * tokens * self.world_size

    @property
    def id(self) -> str:
        """Readable name, ``cpu-mlp_deep-b32-no_grad``: axes at their default are left out."""
        return f"{self.block.setting}-{self.grad_mode}"

    def __str__(self) -> str:
        return f"{self.workload}[{self.id}]"


AXES: Final[Mapping[str, Axis]] = axes_of(Cell)
"""Every axis by its name, in the order of a cell's fields."""

AXIS_OF: Final[Mapping[str, str]] = {axis.plural: name for name, axis in AXES.items()}
"""An axis's name by its plural."""

_ALWAYS_SHOWN: Final = ("device", "model", "workload", "grad_mode", "batch_size")
"""Axes that an id says wherever they stand; of the others it leaves out those at their default."""


@dataclass(frozen=True, slots=True)
class Block:
    """The axes that a group of interleaved cells share: all but the grad mode."""

    cell: Cell  # its grad mode is a placeholder

    @property
    def setting(self) -> str:
        """Readable name without the workload: ``cpu-mlp_deep-b32-bfloat16-t2``."""
        return self._setting(AXES["batch_size"].labelled(self.cell.batch_size))

    @property
    def family(self) -> str:
        """The block's name without its batch size, which blocks of one curve share."""
        return f"{self.cell.workload}[{self._setting()}]"

    def _setting(self, *batch: str) -> str:
        cell = self.cell
        extras = [
            axis.labelled(value)
            for axis, value in zip(AXES.values(), cell.axes().values(), strict=True)
            if axis.name not in _ALWAYS_SHOWN and value != axis.default
        ]
        return printable("-".join([cell.device, cell.model, *batch, *extras]))

    def __str__(self) -> str:
        return f"{self.cell.workload}[{self.setting}]"


def _unless_named(axis: Axis) -> tuple[Value, ...]:
    """Return what a matrix takes of an axis that it does not name; () where it must."""
    return axis.swept if axis.default is None else (axis.default,)


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Matrix:
    """The full factorial of its axes; iterate over it to get the cells.

    ``Matrix(models=["mlp_deep"], batch_sizes=[1, 32])``: each axis by its plural, with a list of
    values. An axis that is left out takes its default, the workload ``inference``, all grad modes.
    Cells that differ only in grad mode come out next to one another.
    """

    axes: Mapping[str, tuple[Value, ...]]
    """The values of every axis, by its name."""

    def __init__(self, **values: Sequence[str] | Sequence[int]) -> None:
        for plural, given in values.items():
            if plural not in AXIS_OF:
                raise UnknownName("axis", plural, AXIS_OF)
            if isinstance(given, str) or not isinstance(given, Sequence):
                raise Impossible(f"{plural} takes a list of values, not {brief(given)}")
        axes = {
            name: tuple(values.get(axis.plural, _unless_named(axis))) for name, axis in AXES.items()
        }
        _check_number(math.prod(map(len, axes.values())))
        object.__setattr__(self, "axes", axes)
        for name, chosen in axes.items():
            if not chosen:
                raise Impossible(f"{AXES[name].plural} is empty: name at least one value")
            for value in chosen:  # a wrong value is found here, where it was written
                AXES[name].check(value)

    def __iter__(self) -> Iterator[Cell]:
        order = [*(name for name in self.axes if name != "grad_mode"), "grad_mode"]
        for values in product(*(self.axes[name] for name in order)):
            yield Cell(**dict(zip(order, values, strict=True)))  # type: ignore[arg-type] # checked by Cell

    def __repr__(self) -> str:
        given = (
            f"{AXES[name].plural}={list(values)}"
            for name, values in self.axes.items()
            if values != _unless_named(AXES[name])
        )
        return f"Matrix({', '.join(given)})"


Matrix.__signature__ = inspect.Signature(  # type: ignore[attr-defined] # what help() and notebooks read
    [
        inspect.Parameter(
            axis.plural,
            inspect.Parameter.KEYWORD_ONLY,
            default=_unless_named(axis) or inspect.Parameter.empty,
            annotation=Sequence[int] if axis.number else Sequence[str],
        )
        for axis in AXES.values()
    ]
)


def unique(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells once each, in order of first appearance, a block's cells together."""
    blocks = by_block(cells)
    return [cell for block in blocks.values() for cell in block]


def by_block(cells: Iterable[Cell]) -> dict[Block, list[Cell]]:
    """Group cells into blocks, keeping first-seen order and dropping repeats."""
    blocks: dict[Block, dict[Cell, None]] = {}
    for cell in cells:
        blocks.setdefault(cell.block, {})[cell] = None
    return {block: list(members) for block, members in blocks.items()}


def select(cells: Iterable[Cell], axis: str, values: Sequence[Value]) -> list[Cell]:
    """Narrow or widen cells along one axis.

    Cells that have one of the values stay. A value that no cell has is added: every cell is
    repeated with it. So ``device=cuda`` moves a CPU matrix to the GPU, ``model=mlp_deep`` keeps
    that model's cells, and ``batch_size=32, 4096`` keeps 32 and adds 4096 for every model.
    """
    cells = list(cells)
    for value in values:
        AXES[axis].check(value)
    values = [AXES[axis].canonical(value) for value in values]
    present = {getattr(cell, axis) for cell in cells}
    _check_number(len(cells) * sum(value not in present for value in values))
    chosen = [cell for cell in cells if getattr(cell, axis) in values]
    for value in values:
        if value not in present:
            chosen += [Cell(**{**cell.axes(), axis: value}) for cell in cells]  # type: ignore[arg-type] # checked by Cell
    return unique(chosen)


def _check_number(count: int) -> None:
    """Raise `Impossible` for more cells than anybody measures."""
    if count > MOST_CELLS:
        cells = counted(count, "cell")
        raise Impossible(f"that is {cells}: give fewer values, for {MOST_CELLS:,} at most")
