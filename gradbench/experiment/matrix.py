"""The design of an experiment: axes in, cells out."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Final

from ..errors import Impossible, UnknownName

GRAD_MODES: Final = ("global_on", "global_off", "no_grad", "inference_mode")
WORKLOADS: Final = ("inference", "training", "training_reenabled", "frozen_backbone")
DTYPES: Final = ("float32", "bfloat16", "float16")
MEMORY_FORMATS: Final = ("contiguous", "channels_last")
COMPILE: Final = ("off", "on")
ENTRIES: Final = ("held", "per_call")
MALLOCS: Final = ("pinned", "system")
L2: Final = ("hot", "cold")
OPTIMIZERS: Final = ("sgd", "sgd_momentum", "adamw")

# Axes whose values are known without asking a catalogue that needs torch.
CLOSED_AXES: Final[Mapping[str, tuple[str, ...]]] = {
    "grad_mode": GRAD_MODES,
    "workload": WORKLOADS,
    "dtype": DTYPES,
    "memory_format": MEMORY_FORMATS,
    "compile": COMPILE,
    "entry": ENTRIES,
    "malloc": MALLOCS,
    "l2": L2,
    "optimizer": OPTIMIZERS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One value per axis: what is measured, and nothing about how.

    An axis added later has a default, so that results recorded before it keep their key.
    """

    model: str
    workload: str
    grad_mode: str
    device: str = "cpu"
    batch_size: int = 32
    dtype: str = "float32"
    threads: int = 1
    memory_format: str = "contiguous"
    compile: str = "off"
    entry: str = "held"  # is the mode entered once around many steps, or in each?
    malloc: str = "pinned"  # do timed processes keep freed memory, or as the system does?
    l2: str = "hot"  # of a GPU: does a step find the last one's data in its cache?
    optimizer: str = "sgd"  # of workloads that train: what keeps state beside the parameters

    def __post_init__(self) -> None:
        for axis, known in CLOSED_AXES.items():
            if getattr(self, axis) not in known:
                raise UnknownName(axis, str(getattr(self, axis)), known)
        for axis in ("model", "device"):
            if not isinstance(getattr(self, axis), str):
                raise Impossible(f"{axis} must be a name, not {getattr(self, axis)!r}")
        for axis in ("batch_size", "threads"):
            value = getattr(self, axis)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise Impossible(f"{axis} must be a whole number from 1 up, not {value!r}")

    def axes(self) -> dict[str, str | int]:
        """Return axis name -> value, every axis, in declared order."""
        return asdict(self)

    @property
    def block(self) -> "Block":
        """What this cell shares with the cells it is interleaved with."""
        return Block(replace(self, grad_mode=GRAD_MODES[0]))

    @property
    def holds_mode(self) -> bool:
        """Whether steps run inside a mode that was entered before, or enter it themselves."""
        return self.entry == "held" and self.workload != "frozen_backbone"

    @property
    def id(self) -> str:
        """Readable name, ``cpu-mlp_deep-b32-no_grad``: axes at their default are left out."""
        return f"{self.block.setting}-{self.grad_mode}"

    def __str__(self) -> str:
        return f"{self.workload}[{self.id}]"


AXES: Final = tuple(field.name for field in fields(Cell))


@dataclass(frozen=True, slots=True)
class Block:
    """The axes that a group of interleaved cells share: all but the grad mode."""

    cell: Cell  # its grad mode is a placeholder

    @property
    def setting(self) -> str:
        """Readable name without the workload: ``cpu-mlp_deep-b32-bfloat16-t2``."""
        return self._setting(f"b{self.cell.batch_size}")

    @property
    def family(self) -> str:
        """The block's name without its batch size, which blocks of one curve share."""
        return f"{self.cell.workload}[{self._setting()}]"

    def _setting(self, *batch: str) -> str:
        cell = self.cell
        extras = [
            *([cell.dtype] if cell.dtype != "float32" else []),
            *([f"t{cell.threads}"] if cell.threads != 1 else []),
            *([cell.memory_format] if cell.memory_format != "contiguous" else []),
            *(["compiled"] if cell.compile == "on" else []),
            *([cell.entry] if cell.entry != "held" else []),
            *(["system_malloc"] if cell.malloc == "system" else []),
            *(["cold_l2"] if cell.l2 == "cold" else []),
            *([cell.optimizer] if cell.optimizer != "sgd" else []),
        ]
        return "-".join([cell.device, cell.model, *batch, *extras])

    def __str__(self) -> str:
        return f"{self.cell.workload}[{self.setting}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """The full factorial of its axes; iterate over it to get the cells.

    Cells that differ only in grad mode come out next to one another.
    """

    models: Sequence[str]
    workloads: Sequence[str] = ("inference",)
    grad_modes: Sequence[str] = GRAD_MODES
    devices: Sequence[str] = ("cpu",)
    batch_sizes: Sequence[int] = (32,)
    dtypes: Sequence[str] = ("float32",)
    threads: Sequence[int] = (1,)
    memory_formats: Sequence[str] = ("contiguous",)
    compile: Sequence[str] = ("off",)
    entries: Sequence[str] = ("held",)
    mallocs: Sequence[str] = ("pinned",)
    l2: Sequence[str] = ("hot",)
    optimizers: Sequence[str] = ("sgd",)

    def __post_init__(self) -> None:
        for field in fields(self):
            values = getattr(self, field.name)
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise Impossible(f"{field.name} takes a list of values, not {values!r}")
            if not values:
                raise Impossible(f"{field.name} is empty: name at least one value")
        for _ in self:  # a wrong value is found here, where it was written
            pass

    def __iter__(self) -> Iterator[Cell]:
        axes = {axis: getattr(self, name) for name, axis in AXIS_OF.items()}
        order = [axis for axis in axes if axis != "grad_mode"]
        for values in product(*(axes[axis] for axis in order), axes["grad_mode"]):
            yield Cell(**dict(zip([*order, "grad_mode"], values, strict=True)))


AXIS_OF: Final[Mapping[str, str]] = {
    field.name: axis for field, axis in zip(fields(Matrix), AXES, strict=True)
}


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


def select(cells: Iterable[Cell], axis: str, values: Sequence[str | int]) -> list[Cell]:
    """Narrow or widen cells along one axis.

    Cells that have one of the values stay. A value that no cell has is added: every cell is
    repeated with it. So ``device=cuda`` moves a CPU matrix to the GPU, ``model=mlp_deep`` keeps
    that model's cells, and ``batch_size=32, 4096`` keeps 32 and adds 4096 for every model.
    """
    cells = list(cells)
    present = {getattr(cell, axis) for cell in cells}
    chosen = [cell for cell in cells if getattr(cell, axis) in values]
    for value in values:
        if value not in present:
            chosen += [Cell(**{**cell.axes(), axis: value}) for cell in cells]  # type: ignore[arg-type] # checked by Cell
    return unique(chosen)
