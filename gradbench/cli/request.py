"""The options that say what to measure, which several commands share."""

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadModel
from ..experiment.matrix import AXES, Cell, select
from ..experiment.plan import Plan
from ..experiment.presets import PRESETS
from ..experiment.toml_config import choose, parse_input
from .app import one_line_errors, split

if TYPE_CHECKING:
    from ..workloads.models import Model


class Request:
    """The options that say what to measure, which several commands share."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.config: Path | None = options["config"]
        self._preset: str = options["preset"]
        self._input: str | None = options["input"]
        self._selections = {axis: split(options[axis], row.option) for axis, row in AXES.items()}
        options_given = {"--config": self.config, "--input": self._input} | {
            AXES[axis].option: values for axis, values in self._selections.items()
        }
        self.given = [option for option, value in options_given.items() if value]
        self.given += ["--preset"] if self._preset != "quick" else []

    def arguments(self) -> list[str]:
        """Return the options as they would be given to another command."""
        arguments = ["--config", str(self.config)] if self.config else ["--preset", self._preset]
        for axis, values in self._selections.items():
            for value in values:
                arguments += [AXES[axis].option, value]
        return arguments + (["--input", self._input] if self._input else [])

    @staticmethod
    def parameters() -> list[inspect.Parameter]:
        """Return the options as the parameters of a function."""

        def option(name: str, type_: object, default: object, text: str) -> inspect.Parameter:
            shown = AXES[name].option if name in AXES else f"--{name}"
            info = typer.Option(shown, help=text, rich_help_panel="Matrix")
            return inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=default,
                annotation=Annotated[type_, info],
            )

        presets = "; ".join(f"{name}: {preset.about}" for name, preset in PRESETS.items())
        return [
            option("preset", str, "quick", f"{presets}."),
            option("config", Path | None, None, "A TOML file instead of a preset."),
            *(option(name, list[str] | None, None, axis.help) for name, axis in AXES.items()),
            option("input", str | None, None, "What your own model takes, B first: 8,3,224,224."),
        ]

    def cells(
        self, plan: Mapping[str, float]
    ) -> tuple[list[Cell], Plan, Mapping[str, "Model"], dict[str, tuple[int, ...]]]:
        """Return cells, plan, models and the input shapes of the user's own models."""
        from .. import devices
        from ..workloads.models import MODELS

        paths = [name for name in self._selections["model"] if ":" in name]
        if bool(paths) != (self._input is not None):
            raise BadModel(
                f"model {paths[0]!r} needs --input: its batch size and shape, as in 8,3,224,224"
                if paths
                else "--input goes with --model package.module:factory"
            )
        inputs: dict[str, tuple[int, ...]] = {}
        selections = dict(self._selections)
        if self._input is not None:
            batch, *shape = parse_input(self._input)
            inputs = {path: tuple(shape) for path in paths}
            selections["batch_size"] = selections["batch_size"] or [str(batch)]
        choice = choose(preset=self._preset, file=self.config, selections=selections, plan=plan)
        cells = list(choice.cells)
        if self.config is None and not selections["device"]:
            cells = select(cells, "device", devices.available())
        return cells, choice.plan, MODELS | own_models(inputs), inputs


def own_models(inputs: Mapping[str, tuple[int, ...]]) -> dict[str, "Model"]:
    """Return the user's models by import path."""
    from ..workloads.models import from_path

    here = str(Path.cwd())
    if inputs and here not in sys.path:  # behind all else: a random.py there is not the library's
        sys.path.append(here)
    return {path: from_path(path, shape=shape) for path, shape in inputs.items()}


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Request`; it gets them as its first argument."""

    @wraps(command)
    def wrapper(**options: Any) -> None:
        shared = {name: options.pop(name) for name in names}
        with one_line_errors(shared["config"]):
            command(Request(shared), **options)

    parameters = Request.parameters()
    names = [parameter.name for parameter in parameters]
    own = list(inspect.signature(command).parameters.values())[1:]
    wrapper.__signature__ = inspect.Signature([*parameters, *own])  # type: ignore[attr-defined] # what typer reads
    wrapper.__annotations__ = {p.name: p.annotation for p in [*parameters, *own]}
    return wrapper
