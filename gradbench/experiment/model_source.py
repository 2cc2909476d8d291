"""How a model that is not built in is made, as users say it: where it is, and what it is fed."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import PurePath
from typing import Any, Final, Self

from ..errors import BadModel, Impossible, UnknownName

BATCH: Final = "B"
"""How a shape says the dimension of the samples."""

DTYPES: Final = (
    *("float32", "float64", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
HIGHEST: Final = {
    **{f"int{bits}": 2 ** (bits - 1) - 1 for bits in (8, 16, 32, 64)},
    "uint8": 2**8 - 1,
    "float16": 65504,
}
"""The highest number of a dtype that has no higher ones which an option can say."""
LIBRARIES: Final = ("timm", "torchvision", "transformers")
"""Packages whose models go by a name of theirs: ``timm:resnet18``."""

OTHERS: Final = (
    f"a library's: {', '.join(f'{library}:NAME' for library in LIBRARIES)}; "
    "yours: package.module:NAME or file.py:NAME"
)
"""How models that are not built in are named."""

LONGEST_SIZE: Final = 18
"""Digits of a number of 64 bits."""
_INPUT: Final = re.compile(
    r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>[^:<=]+)(?::(?P<dtype>\w+))?(?:<(?P<below>\d{1,18}))?"
)
_NAME: Final = re.compile(r"[\w.-]+")
_NO_NAME: Final = re.compile(r"[^\w.-]+")
_EXAMPLES: Final = "8,3,224,224 or input_ids=8,128:int64<30522"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """One tensor that a model takes: ``input_ids=B,128:int64<30522``."""

    shape: tuple[int | str, ...]  # of numbers and `BATCH`
    name: str = ""  # of a keyword argument; "" for the next positional one
    dtype: str = ""  # "" for floating numbers of the model's own dtype
    below: int | None = None  # its numbers are from 0 up to this

    def __str__(self) -> str:
        """Return it as an option says it, its samples marked by `BATCH`."""
        return (
            (f"{self.name}=" if self.name else "")
            + ",".join(map(str, self.shape))
            + (f":{self.dtype}" if self.dtype else "")
            + (f"<{self.below}" if self.below is not None else "")
        )

    def sized(self, batch: int) -> tuple[int, ...]:
        """Return the shape for a batch size."""
        return tuple(batch if size == BATCH else int(size) for size in self.shape)


def parse_input(text: str) -> tuple[InputTensor, int | None]:
    """Return what ``[NAME=]SHAPE[:DTYPE][<HIGH]`` says, and the batch size if a number does.

    The samples are the dimension ``B``, or without one the first. Raise `Impossible` for what says
    no input.
    """
    match = _INPUT.fullmatch(text.strip())
    if match is None:
        raise Impossible(f"input {text!r} is not [NAME=]SHAPE[:DTYPE][<HIGH]: {_EXAMPLES}")
    sizes = [_size(part.strip(), text) for part in match["shape"].split(",")]
    dtype = match["dtype"] or ""
    if dtype and dtype not in DTYPES:
        raise Impossible(f"input {text!r} has the dtype {dtype!r}: one of {', '.join(DTYPES)}")
    below = int(match["below"]) if match["below"] else None
    if below == 0 or (below is not None and dtype.startswith(("bool", "complex"))):
        raise Impossible(f"input {text!r}: <HIGH is above 0, of whole or floating numbers")
    _check_high(text, below, dtype)
    batch = None
    if BATCH not in sizes:
        if len(sizes) < 2 and not (match["name"] or dtype):
            raise Impossible(f"input {text!r} needs a batch size and a shape: 8,3,224,224")
        batch, sizes[0] = int(sizes[0]), BATCH
    return (
        InputTensor(shape=tuple(sizes), name=match["name"] or "", dtype=dtype, below=below),
        batch,
    )


def _check_high(text: str, below: int | None, dtype: str) -> None:
    """Raise `Impossible` where numbers below ``below`` are none of the dtype's."""
    highest = HIGHEST.get(dtype)
    if below is None or highest is None:
        return
    most = highest if dtype.startswith("float") else highest + 1  # whole numbers stay below it
    if below > most:
        raise Impossible(
            f"input {text!r}: {dtype} has numbers up to {highest}, so <HIGH is {most} at most"
        )


def _size(part: str, text: str) -> int | str:
    if part == BATCH:
        return part
    if not part.isdecimal() or len(part) > LONGEST_SIZE or int(part) < 1:
        raise Impossible(
            f"input {text!r}: a size is a whole number from 1 up, or B for the batch, "
            f"not {part!r:.40}"
        )
    return int(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from and what goes with it, as options or a TOML table say it."""

    build: str  # package.module:factory, file.py:Factory, timm:NAME, ...
    input: tuple[str, ...] = ()  # each as `InputTensor` writes itself
    batch: str = ""  # file.py:function or package.module:function, called with a batch size
    loss: str = ""  # the same, called with output and batch
    head: str = ""  # path of the submodule that frozen_backbone trains
    pretrained: bool = False

    def __post_init__(self) -> None:
        if self.input and self.batch:
            raise BadModel(f"model {self.build!r} has both input and batch: one says what it takes")

    @classmethod
    def read(cls, row: dict[str, Any]) -> Self:
        """Return the source that a record's row describes."""
        known = {one.name for one in fields(cls)}
        values = {key: value for key, value in row.items() if key in known}
        return cls(**{**values, "input": tuple(values.get("input", ()))})

    def row(self) -> dict[str, object]:
        """Return it as a record keeps it."""
        return asdict(self)

    @property
    def library(self) -> str:
        """The package whose name for the model it is, or ``""``."""
        library = self.build.partition(":")[0]
        return library if library in LIBRARIES else ""

    @property
    def inputs(self) -> tuple[InputTensor, ...]:
        """The tensors that it takes, as far as they were given."""
        return tuple(parse_input(text)[0] for text in self.input)

    def arguments(self, name: str) -> list[str]:
        """Return the options of a command line that stand for it."""
        named = self.build if short_name(self.build) == name else f"{name}={self.build}"
        words = ["--model", named]
        for text in self.input:
            words += ["--input", text]
        for option in ("batch", "loss", "head"):
            value = getattr(self, option)
            words += [f"--{option}", value] if value else []
        return words + (["--pretrained"] if self.pretrained else [])


def is_source(text: str) -> bool:
    """Return whether a model's name says where it comes from, and is not one that is known."""
    return ":" in text or text.endswith(".py")


def parse_model(text: str) -> tuple[str, str]:
    """Return the name on screen and the source of ``[NAME=]SOURCE``.

    Raise `BadModel` for a name with other characters than a file's may have.
    """
    name, separator, build = text.partition("=")
    if separator and ":" not in name:
        if not _NAME.fullmatch(name):
            raise BadModel(
                f"model {text!r}: {name!r} is no name: letters, digits, '.', '_' and '-'"
            )
        return name, build
    return short_name(text), text


def short_name(build: str) -> str:
    """Return a name that fits a table: ``bert`` of ``transformers:bert``, ``nets.make``."""
    where, _, what = build.partition(":")
    if where in LIBRARIES:
        return PurePath(what.removesuffix("config.json").rstrip("/")).name or what
    last = PurePath(where).stem if where.endswith(".py") else where.rpartition(".")[2]
    return _NO_NAME.sub("_", f"{last}.{what}" if what else last)


def unknown_model(name: str, known: Iterable[str]) -> UnknownName:
    """Return the error for a name that no model has, with how models of elsewhere are named."""
    return UnknownName("model", name, known, note=OTHERS)
