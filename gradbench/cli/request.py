"""The options that say what to measure, which several commands share."""

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..errors import BadModel, Impossible
from ..experiment.matrix import AXES, GRAD_MODES, Cell, select, unique
from ..experiment.model_source import (
    ModelSource,
    is_source,
    parse_input,
    parse_model,
    unknown_model,
)
from ..experiment.plan import Plan
from ..experiment.presets import PRESETS
from ..experiment.toml_config import check_preset, choose
from .app import one_line_errors, split

if TYPE_CHECKING:
    from ..workloads.models import Model

DEFAULT_BATCH: Final = "8"
"""The batch size of a model of the user's where nothing says another."""

COMMON: Final = (
    *("model", "batch_size", "workload", "grad_mode", "device"),
    *("preset", "config"),
)
"""Options that help lists first, in this order."""

MODEL_OPTIONS: Final = ("input", "batch", "loss", "head", "pretrained")
"""Options that go with a model that is not built in."""

UNASKED: Final = ("workload", "grad_mode", "preset", "optimizer")
"""Options that a command about one model's inference in every mode has no use for."""


class Request:
    """The options that say what to measure, which several commands share."""

    def __init__(self, options: Mapping[str, Any], context: typer.Context) -> None:
        self._context = context
        self.config: Path | None = options["config"]
        self._preset: str = options.get("preset", "quick")
        self._of_model = {name: options[name] for name in MODEL_OPTIONS if options[name]}
        self._selections = {
            axis: split(options.get(axis), row.option) for axis, row in AXES.items()
        }
        self._check_choices()
        options_given: dict[str, object] = {"--config": self.config}
        options_given |= {f"--{name}": value for name, value in self._of_model.items()}
        options_given |= {AXES[axis].option: values for axis, values in self._selections.items()}
        self.given = [option for option, value in options_given.items() if value]
        self.given += self.typed({"preset": "--preset"})

    def _check_choices(self) -> None:
        """Raise for a value that none can have, before anything that is missing is said.

        Models and devices are looked up later, with torch.
        """
        if self.config is None:
            check_preset(self._preset)
        for axis, texts in self._selections.items():
            for text in texts:
                AXES[axis].check(AXES[axis].parse(text))

    def typed(self, options: Mapping[str, str]) -> list[str]:
        """Return the options of the command that its user typed, of these: by parameter, as typed.

        A value alone does not say: it may be the usual one.
        """
        source = self._context.get_parameter_source
        return [
            words
            for name, words in options.items()
            if (found := source(name)) is not None and found.name == "COMMANDLINE"
        ]

    @property
    def models(self) -> list[str]:
        """The models that were asked for, as they were written."""
        return self._selections["model"]

    def arguments(self) -> list[str]:
        """Return the options as they would be given to another command."""
        arguments = ["--config", str(self.config)] if self.config else ["--preset", self._preset]
        for axis, values in self._selections.items():
            for value in values:
                arguments += [AXES[axis].option, value]
        for name, value in self._of_model.items():
            for one in value if isinstance(value, list) else [value]:
                arguments += [f"--{name}"] if one is True else [f"--{name}", one]
        return arguments

    @staticmethod
    def parameters(*, without: Collection[str] = ()) -> list[inspect.Parameter]:
        """Return the options, but for those named, as the parameters of a function."""

        def option(
            name: str, type_: object, default: object, text: str, *, metavar: str | None = None
        ) -> inspect.Parameter:
            shown = AXES[name].option if name in AXES else f"--{name}"
            own = "Your own model" if name in MODEL_OPTIONS else "Further axes"
            panel = None if name in COMMON else own
            info = typer.Option(shown, help=text, rich_help_panel=panel, metavar=metavar)
            return inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[type_, info],
            )

        axes = {
            name: option(name, list[str] | None, None, axis.help) for name, axis in AXES.items()
        }
        common = [axes.pop(name) for name in COMMON if name in axes]
        further = list(axes.values())
        presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
        parameters = [
            *common,
            option("preset", str, "quick", f"{presets}."),
            option("config", Path | None, None, "A TOML file instead of a preset."),
            option(
                "input",
                list[str] | None,
                None,
                "A tensor that it takes, the batch first or marked B: 8,3,224,224 or "
                "'ids=8,128:int64<30522'. Once for each.",
                metavar="[NAME=]SHAPE[:DTYPE][<HIGH]",
            ),
            option(
                "batch",
                str | None,
                None,
                "A function that returns what it takes, called with a batch size.",
                metavar="FILE.py:FUNCTION",
            ),
            option(
                "loss",
                str | None,
                None,
                "A function of output and batch, for workloads that train.",
                metavar="FILE.py:FUNCTION",
            ),
            option("head", str | None, None, "The submodule that frozen_backbone trains."),
            option("pretrained", bool, False, "With timm:, torchvision:, transformers:: weights."),
            *further,
        ]
        return [one for one in parameters if one.name not in without]

    def sources(self) -> Mapping[str, ModelSource]:
        """Return the models that are not built in, by name."""
        from ..workloads.models import MODELS

        described = choose(file=self.config).sources if self.config is not None else {}
        return {**described, **self._sources(MODELS)[0]}

    def cells(
        self, plan: Mapping[str, float], *, there: Sequence[str] | None = None
    ) -> tuple[list[Cell], Plan, Mapping[str, "Model"]]:
        """Return cells, plan and models, the user's own among these.

        Without a word on devices they are on those ``there``, or else here.
        """
        from .. import devices
        from ..runner import preflight
        from ..workloads.models import MODELS
        from ..workloads.own_models import models_of

        sources, batch = self._sources(MODELS)
        selections = dict(self._selections)
        selections["model"] = [
            parse_model(text)[0] if _is_own(text) else text for text in selections["model"]
        ]
        sizes = selections["batch_size"] or ([batch] if batch else [])
        if sources and self.config is None:
            sizes = sizes or [DEFAULT_BATCH]
        selections["batch_size"] = sizes if self.config is not None or not sources else []
        choice = choose(preset=self._preset, file=self.config, selections=selections, plan=plan)
        cells = list(choice.cells)
        if sources and self.config is None:
            cells = _resized(cells, set(sources), sizes)
        if self.config is None and not selections["device"]:
            cells = select(cells, "device", there or devices.available())
        return (
            preflight.on_each_device(cells),
            choice.plan,
            models_of({**choice.sources, **sources}),
        )

    def one_model(self, what: str) -> tuple[Cell, "Model"]:
        """Return the inference of one model that the options describe, under a mode of ours.

        For a command that looks at one model in one setting; ``what`` names it.
        """
        from .. import devices
        from ..workloads.models import MODELS
        from ..workloads.own_models import models_of

        own, batch = self._sources(MODELS)
        described: Mapping[str, ModelSource] = {}
        if self.config is not None:
            described = choose(file=self.config).sources
        for axis, values in self._selections.items():
            if len(values) > 1:
                raise Impossible(f"{what} looks at one setting: give {AXES[axis].option} once")
        if not self._selections["model"]:
            raise Impossible(f"{what} needs a model: --model resnet18_32, or one of your own")
        chosen = {axis: AXES[axis].parse(one) for axis, (one, *_) in self._given_axes()}
        given = {"device": devices.available()[-1], "batch_size": int(batch or DEFAULT_BATCH)}
        name = parse_model(text)[0] if _is_own(text := self._selections["model"][0]) else text
        models = models_of({**described, **own})
        if name not in models:
            raise unknown_model(name, models)
        modes = {"workload": "inference", "grad_mode": GRAD_MODES[-1], "model": name}
        return Cell(**{**given, **chosen, **modes}), models[name]  # type: ignore[arg-type] # parsed

    def _given_axes(self) -> Iterable[tuple[str, list[str]]]:
        return ((axis, values) for axis, values in self._selections.items() if values)

    def _sources(self, known: Mapping[str, object]) -> tuple[dict[str, ModelSource], str]:
        """Return the user's models by name, and the batch size that their inputs say, or ""."""
        given = [text for text in self._selections["model"] if _is_own(text)]
        if self._of_model and not given:
            raise _no_model_of_yours(f"--{next(iter(self._of_model))}", self.models)
        inputs, batch = _inputs(self._of_model.get("input", ()))
        options = {key: value for key, value in self._of_model.items() if key != "input"}
        sources: dict[str, ModelSource] = {}
        for text in given:
            name, build = parse_model(text)
            source = ModelSource(build=build, input=inputs, **options)
            if name in known or sources.setdefault(name, source) != source:
                raise BadModel(
                    f"model {text!r} would be called {name!r}, and so is another: "
                    f"name it, as in --model mine={build}"
                )
        return sources, batch


def _resized(cells: Iterable[Cell], own: Collection[str], sizes: Sequence[str]) -> list[Cell]:
    """Return the cells at these batch sizes: the user's own models in each of their workloads.

    A preset measures some workloads at some of its sizes only, which are its own models'.
    """
    batches = [int(AXES["batch_size"].parse(size)) for size in sizes]
    resized = [replace(c, batch_size=b) for c in cells if c.model in own for b in batches]
    others = [cell for cell in cells if cell.model not in own]
    return unique([*(select(others, "batch_size", batches) if others else []), *resized])


def _no_model_of_yours(option: str, models: Sequence[str]) -> BadModel:
    """Return the error for an option about a model of the user's where none was given."""
    words = f"{option} goes with --model package.module:NAME or file.py:NAME"
    if not models:
        return BadModel(words)
    where, _, name = models[0].rpartition(".")
    meant = f": did you mean '{where}:{name}'?" if where and name else ""
    return BadModel(f"{words}, and {models[0]!r} is neither{meant}")


def _is_own(text: str) -> bool:
    return is_source(text) or "=" in text


def _inputs(texts: Sequence[str]) -> tuple[tuple[str, ...], str]:
    parsed = [parse_input(text) for text in texts]
    batches = list(dict.fromkeys(batch for _, batch in parsed if batch is not None))
    if len(batches) > 1:
        raise Impossible(
            f"--input has batch sizes {' and '.join(map(str, batches))}: mark the dimension of the "
            "samples by B where it is not the first"
        )
    names = [one.name for one, _ in parsed if one.name]
    if twice := [name for name in names if names.count(name) > 1]:
        raise Impossible(f"--input {twice[0]} is given twice")
    return tuple(str(one) for one, _ in parsed), str(batches[0]) if batches else ""


def checked_plan(**settings: float | None) -> dict[str, float]:
    """Return the settings of a plan that were given; raise for a value that none can have.

    Before anything that is missing is said, and before torch is loaded.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    Plan(**given)  # type: ignore[arg-type] # numbers by name, which it checks
    return given


def obstacles(cells: Iterable[Cell], models: "Mapping[str, Model]") -> dict[Cell, str]:
    """Return the cells that cannot run on this machine, with their reasons."""
    from ..runner import preflight

    reasons = ((cell, preflight.obstacle(cell, models)) for cell in cells)
    return {cell: why[1] for cell, why in reasons if why is not None}


def check_named_again(own: Mapping[str, ModelSource], request: Request) -> None:
    """Raise `BadModel` unless whoever goes on with a file names the code that it would run."""
    named = {each for each, source in own.items() if {each, source.build} & {*request.models}}
    if named != set(own):
        code = ", ".join(source.build for source in own.values())
        raise BadModel(
            f"to go on runs code that the run's file names, {code}: "
            f"if it is yours, add --model {','.join(own)}"
        )


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Request`; it gets them as its first argument."""
    return _taking(command, Request.parameters())


def takes_one_model(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command about one model's inference the options of `Request` that it heeds."""
    return _taking(command, Request.parameters(without=UNASKED))


def _taking(
    command: Callable[..., None], parameters: Sequence[inspect.Parameter]
) -> Callable[..., None]:
    @wraps(command)
    def wrapper(*, context: typer.Context, **options: Any) -> None:
        shared = {name: options.pop(name) for name in names}
        with one_line_errors(shared["config"]):
            command(Request(shared, context), **options)

    names = [parameter.name for parameter in parameters]
    own = list(inspect.signature(command).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    own.append(inspect.Parameter("context", kind, annotation=typer.Context))
    wrapper.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined] # what typer reads
    wrapper.__annotations__ = {p.name: p.annotation for p in [*parameters, *own]}
    return wrapper
