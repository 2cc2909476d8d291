"""Models of the user's own: by import path, by file, or by the name that a library gives them."""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, NoReturn

import torch
from torch import Tensor, nn

from ..errors import BadModel, in_one_line
from ..experiment.model_source import BATCH, InputTensor, ModelSource
from . import losses
from .generation import Generation
from .models import MODELS, Catalogue, Model
from .trees import Batch
from .weight_files import without_weights

ARGUMENTS: Final = {"model": 0, "batch": 1, "loss": 2}
"""How many arguments a function of the user's is called with, by what it is for."""

MOST_NAMED: Final = 4
"""Names in a file that are shown where none was given."""


def model_of(source: ModelSource) -> Model:
    """Return the model that a source describes; raise `BadModel` for what cannot be had.

    What it names is imported here, so that a wrong path is found before anything runs.
    """
    if source.library:
        from . import library_models

        return library_models.model_of(source)
    target = resolve(source.build)
    loss = ImportedFunction(source.loss, "loss") if source.loss else None
    batch: Callable[[int], Any] | None = None
    if source.batch:
        batch = ImportedFunction(source.batch, "batch")
    elif source.input:
        batch = RandomBatch(source.inputs)
    for part in (batch, loss):
        if isinstance(part, ImportedFunction):
            part.load()
    given = target if isinstance(target, Model) else None
    if batch is None and given is None:
        made = _made(target)
        if isinstance(made, nn.Module | type | None):
            needs_input(source.build, forward_of(made))
        if not isinstance(made, Model):
            raise _no_module(source.build, made)
        given = made
    build = ImportedFactory(source.build, of_module=given is None)
    fed = batch or ImportedBatch(source.build)
    says = given or Model(build, fed)
    return replace(
        says,
        build=build,
        batch=fed,
        loss=loss or (ImportedLoss(source.build) if given else losses.automatic),
        head=source.head or says.head,
        batch_follows=batch.follows if isinstance(batch, RandomBatch) else False,
        about=f"{source.build} on {' '.join(source.input) or source.batch or 'its own batch'}",
        generation=_imported_generation(source.build, given),
        source=source,
    )


def models_of(sources: Mapping[str, ModelSource]) -> Catalogue:
    """Return the models by name: those that are built in, and the user's own.

    A user's are imported from where the user stands, too, behind all else: a random.py there is
    not the library's.
    """
    here = str(Path.cwd())
    if sources and here not in sys.path:
        sys.path.append(here)
    with redirect_stdout(sys.stderr):  # standard output is a command's own: it may be JSON
        return MODELS | {name: model_of(source) for name, source in sources.items()}


def from_path(path: str, *, shape: Sequence[int]) -> Model:
    """Return the model that ``package.module:factory`` names, fed with inputs (B, \\*shape)."""
    taken = InputTensor(shape=(BATCH, *shape))
    return model_of(ModelSource(build=path, input=(str(taken),)))


@dataclass(frozen=True, slots=True)
class RandomBatch:
    """Random tensors of given shapes and dtypes, in the simplest tree that holds them."""

    inputs: tuple[InputTensor, ...]

    @property
    def follows(self) -> bool:
        """Whether its floating numbers are to have the model's own dtype."""
        return not any(
            one.dtype and getattr(torch, one.dtype).is_floating_point for one in self.inputs
        )

    def __call__(self, size: int) -> Any:
        """Return a tensor, a tuple, a dict, or a `Batch` where some have names and some not."""
        args = tuple(_random(one, size) for one in self.inputs if not one.name)
        kwargs = {one.name: _random(one, size) for one in self.inputs if one.name}
        if not kwargs:
            return args[0] if len(args) == 1 else args
        return Batch(args, kwargs) if args else kwargs


def _random(one: InputTensor, size: int) -> Tensor:
    shape, dtype = one.sized(size), getattr(torch, one.dtype or "float32")
    if dtype is torch.bool:
        return torch.randint(2, shape).bool()
    if dtype.is_floating_point or dtype.is_complex:
        if one.below is not None:
            return torch.rand(shape, dtype=dtype) * one.below
        return torch.randn(shape, dtype=dtype)
    return torch.randint(one.below or 2, shape, dtype=dtype)


@dataclass(frozen=True, slots=True)
class ImportedFactory:
    """A factory by its path, or a module or `Model` that stands there ready made.

    One that is `of_module` may not return a `Model`: what that says of itself was not asked for.
    """

    path: str
    of_module: bool = False

    def load(self) -> object:
        """Import it."""
        return resolve(self.path)

    def __call__(self) -> nn.Module:
        """Return the module: a fresh one, or the one that is there."""
        target: Any = resolve(self.path)
        made = target if isinstance(target, nn.Module | Model) else target()
        if isinstance(made, Model):
            if self.of_module:
                raise BadModel(
                    f"model {self.path!r} returns a gradbench.Model, which has a batch of its own: "
                    "give no other, or name a function that returns the module"
                )
            made = made.build()
        if not isinstance(made, nn.Module):
            raise _no_module(self.path, made)
        return made


@dataclass(frozen=True, slots=True)
class ImportedBatch:
    """The batch of a `Model` that stands at a path, or that the factory there returns."""

    path: str

    def __call__(self, size: int) -> Any:
        """Return a batch of that size."""
        return _model_at(self.path).batch(size)


@dataclass(frozen=True, slots=True)
class ImportedLoss:
    """The loss of a `Model` at a path."""

    path: str

    def function(self) -> Callable[[Any, Any], Tensor]:
        """Return it. A factory is asked, which may keep what it makes: build the module first."""
        return _model_at(self.path).loss

    def __call__(self, output: Any, batch: Any) -> Tensor:
        """Return the loss of an output."""
        return self.function()(output, batch)


@dataclass(frozen=True, slots=True)
class ImportedPart:
    """A function of the `Generation` of a `Model` at a path."""

    path: str
    name: str

    def function(self) -> Callable[..., Any]:
        """Return it. The factory is asked, so a step is given what this returns."""
        part: Callable[..., Any] = getattr(_model_at(self.path).generation, self.name)
        return part

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self.function()(*args)


def _imported_generation(path: str, given: Model | None) -> Generation | None:
    """Return how a `Model` at a path makes tokens, its functions found by the path again."""
    how = given.generation if given is not None else None
    if how is None:
        return None
    build = ImportedPart(path, "build") if how.build is not None else None
    return replace(
        how,
        prefill=ImportedPart(path, "prefill"),
        decode=ImportedPart(path, "decode"),
        build=build,
    )


@dataclass(frozen=True, slots=True)
class ImportedFunction:
    """A function of the user's by its path."""

    path: str
    what: str  # "batch" or "loss"

    def load(self) -> Callable[..., Any]:
        """Import it; raise `BadModel` when it is not there."""
        function = imported(self.path, self.what)
        if not callable(function):
            raise BadModel(
                f"{self.what} {self.path!r} is {type(function).__name__}, not a function"
            )
        return function

    def function(self) -> Callable[..., Any]:
        """Return it."""
        return self.load()

    def __call__(self, *args: Any) -> Any:
        """Call it."""
        return self.load()(*args)


def _model_at(path: str) -> Model:
    given = _made(resolve(path))
    if not isinstance(given, Model):
        raise BadModel(f"model {path!r} no longer returns a gradbench.Model")
    return given


def _no_module(path: str, made: object) -> BadModel:
    """Return the error for a factory that returned something else than a module."""
    return BadModel(f"model {path!r} returned {type(made).__name__}, not torch.nn.Module")


def _made(target: object) -> object | None:
    """Return what stands at a path; of a factory what it returns, or None where it cannot."""
    if isinstance(target, Model | nn.Module | type) or not callable(target):
        return target
    return _made_without_memory(target)


def _made_without_memory(factory: Callable[[], object]) -> object | None:
    """Return what a factory returns where tensors take no memory, or None where it cannot."""
    try:
        with torch.device("meta"):
            return factory()
    except (Exception, SystemExit):  # noqa: BLE001 # it may raise anything; it is asked again
        return None


def resolve(path: str) -> object:
    """Import a factory, module or `Model` by its path; raise `BadModel` when it is not there."""
    target = imported(path, "model")
    if not callable(target) and not isinstance(target, Model):
        raise BadModel(f"model {path!r} is {type(target).__name__}, not a factory to be called")
    if not isinstance(target, Model | nn.Module) and (missing := _required(target)):
        raise BadModel(
            f"model {path!r} needs {', '.join(missing)}, but it is called without arguments: "
            "name a function that calls it with them"
        )
    return target


def _required(factory: object) -> list[str]:
    """Return the arguments that a factory cannot be called without, as far as that is known."""
    try:
        signature = inspect.signature(factory)  # type: ignore[arg-type] # it is callable
    except (TypeError, ValueError):  # written in C
        return []
    return _required_of(signature.parameters.values())


def _required_of(parameters: Iterable[inspect.Parameter]) -> list[str]:
    return [
        one.name
        for one in parameters
        if one.default is inspect.Parameter.empty
        and one.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]


def imported(path: str, what: str) -> object:
    """Return what ``package.module:name`` or ``file.py:name`` names; raise `BadModel`."""
    where, _, attribute = path.rpartition(":")
    file = path.removesuffix(":")
    if file.endswith(".py"):
        where, attribute = file, ""
    elif not where or not attribute:
        kind = "factory" if what == "model" else "function"
        raise BadModel(f"{what} {path!r}: write it as package.module:{kind} or file.py:{kind}")
    module: ModuleType | None = None
    try:
        module = _module(where)
        target: object = module
        for name in attribute.split(".") if attribute else ():
            target = getattr(target, name)
    except BadModel:
        raise
    except (ImportError, AttributeError) as error:
        meant = _meant(module, attribute, what) if module is not None else ""
        raise BadModel(f"{what} {path!r} cannot be imported: {error}{meant}") from error
    except SystemExit as error:
        raise BadModel(
            f"{what} {path!r} cannot be imported: SystemExit: {error}: put what is to run behind "
            "if __name__ == '__main__'"
        ) from error
    except Exception as error:  # a user's module may raise anything
        words = without_weights(error) or in_one_line(error)
        raise BadModel(f"{what} {path!r} cannot be imported: {words}") from error
    if not attribute:
        raise BadModel(_which_of(module, file, what))
    return target


def _which_of(module: ModuleType, file: str, what: str) -> str:
    """Return that a file alone says too little, and which names in it could be meant."""
    names = _names(module, what)
    if not names:
        return f"{what} {file!r} names a file, and nothing in it could be a {what}: {file}:NAME"
    others = f", or {', '.join(names[1:MOST_NAMED])}" if names[1:] else ""
    return f"{what} {file!r} lacks the name of what to take from it: {file}:{names[0]}{others}"


def _meant(module: ModuleType, name: str, what: str) -> str:
    """Return which name in a module stands for one that is not there, or all that could."""
    names = _names(module, what)
    if close := get_close_matches(name, names, n=1):
        return f": did you mean {close[0]!r}?"
    return f": it has {', '.join(names[:MOST_NAMED])}" if names else ""


def _names(module: ModuleType, what: str) -> list[str]:
    """Return the names in a module that could be meant, those that can be called alone first."""
    found = {name: one for name, one in vars(module).items() if _could_be(what, one, module)}
    needy = {name for name, one in found.items() if isinstance(one, type) and _required(one)}
    return sorted(found, key=needy.__contains__)


def _could_be(what: str, one: object, module: ModuleType) -> bool:
    """Return whether something in a file is a model, or is its own and called as what is meant."""
    if what == "model" and isinstance(one, Model | nn.Module):
        return True
    if not isinstance(one, type | FunctionType) or one.__module__ != module.__name__:
        return False
    if isinstance(one, type):
        return what == "model" and issubclass(one, nn.Module)
    return len(_required(one)) == ARGUMENTS[what] and not one.__name__.startswith("_")


def file_of(path: str) -> str:
    """Return the file that what a path names comes from, or ``""``."""
    imported(path, "model")
    return getattr(_module(path.rpartition(":")[0]), "__file__", None) or ""


def _module(where: str) -> ModuleType:
    return _from_file(where) if where.endswith(".py") else importlib.import_module(where)


def _from_file(where: str) -> ModuleType:
    """Import a file as what it is: a module of its package, or one beside others in its folder."""
    file = _found(where)
    names, folder = [file.stem], file.parent
    while (folder / "__init__.py").exists():
        names.insert(0, folder.name)
        folder = folder.parent
    name = ".".join(names)
    known = sys.modules.get(name)
    if known is not None and _is_from(known, file):
        return known
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    if known is None:
        module = importlib.import_module(name)
        if _is_from(module, file):
            return module
    # another module has that name
    alias = f"{name}_{abs(hash(str(file))):x}" if len(names) == 1 else name
    if alias in sys.modules and _is_from(sys.modules[alias], file):
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, file)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[alias]
        raise
    return module


def _found(where: str) -> Path:
    """Return a file, looked for as modules are: a comparison's sides have trees of their own."""
    if Path(where).is_absolute():
        candidates = [Path(where)]
    else:
        candidates = [Path(folder or ".") / where for folder in sys.path]
    for one in candidates:
        if one.is_file():
            return one.resolve()
    raise BadModel(f"no file {where!r} here")


def _is_from(module: ModuleType, file: Path) -> bool:
    own = getattr(module, "__file__", None)
    return own is not None and Path(own).resolve() == file


_EXAMPLES: Final = (("mask", "{}=8,128:bool"), ("ids", "{}=8,128:int64<1000"))


def forward_of(target: object) -> inspect.Signature | None:
    """Return how a module, or one of a class, is called; None where that cannot be known."""
    forward = getattr(target, "forward", None)
    if forward is None or getattr(forward, "__name__", "") == "_forward_unimplemented":
        return None
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # written in C
        return None
    parameters = list(signature.parameters.values())
    return inspect.Signature(parameters[1:] if isinstance(target, type) else parameters)


def needs_input(build: str, signature: inspect.Signature | None) -> NoReturn:
    """Raise `BadModel` that says how the module is called, with an option that would do."""
    parameters = list(signature.parameters.values()) if signature is not None else []
    plain = inspect.Signature([one.replace(annotation=one.empty) for one in parameters])
    words = f": it is called as forward{plain}" if signature is not None else ""
    raise BadModel(f"model {build!r} needs --input{words}; for example {_example(parameters)}")


def _example(parameters: Sequence[inspect.Parameter]) -> str:
    """Return options that would do for a forward, as far as its parameters say what it takes."""
    names = _required_of(parameters)
    if any(_is_container(one.annotation) for one in parameters if one.name in names):
        return "--batch file.py:function"
    kinds = {one.kind for one in parameters} if not names else set()
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        return "--input 8,64"
    if inspect.Parameter.VAR_KEYWORD in kinds:
        return "--input NAME=8,64"
    if len(names) == 1 and not any(part in names[0] for part, _ in _EXAMPLES):
        return "--input 8,3,224,224"
    if not parameters:  # nobody knows how it is called
        return "--input 8,64"
    options = []
    for name in names or [parameters[0].name]:
        text = next((form for part, form in _EXAMPLES if part in name), "{}=8,64")
        options.append(f"--input '{text.format(name)}'")
    return " ".join(options)


def _is_container(annotation: object) -> bool:
    """Return whether a parameter takes a dict, a list or a tuple, which no option says."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    return name.lower().startswith(("dict", "list", "tuple", "mapping", "sequence"))
