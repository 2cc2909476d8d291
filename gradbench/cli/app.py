"""What every command shares: the application, its consoles, its errors, its common options."""

import errno
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args

import typer
from typer.core import TyperCommand, TyperGroup

from .._version import __version__
from ..analysis import format_units
from ..errors import BadModel, BadSetting, GradbenchError, Impossible, UnknownName
from ..exit_status import ExitStatus
from ..experiment.axis import MOST
from ..experiment.matrix import GRAD_MODES
from ..experiment.plan import PROTOCOL
from ..experiment.toml_config import locate
from ..printable import one_line, printable, without_commands
from ..users_traceback import users_traceback
from .screen import Screen, shown, shown_briefly, shown_lines

if TYPE_CHECKING:
    from rich.status import Status

NO_MEANS: Final = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE),
    *(errno.EAGAIN, errno.ENOMEM),
    errno.ENOENT,  # where it is no file: of a folder for temporary ones
)
"""Errors of a machine that has too little: of room, of descriptors, of processes."""
NO_PAGES: Final = (
    *(".pdf", ".png", ".svg", ".jpg", ".json", ".jsonl", ".csv", ".md", ".txt", ".xml"),
    ".parquet",
)
"""Ends of names of files that no browser would open as a page."""
FIRST: Final = ("advise", "run", "show", "report", "explain", "predict", "list")
"""Commands that a newcomer needs; help lists them first."""

_WITH_UNIT: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(%|s|secs?|seconds?)")
_UsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]  # typer names it nowhere else


class Command(TyperCommand):
    """A command whose options and arguments say something, where they are given.

    A shell's unset variable leaves an empty one: as a path it would be the current folder.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; raise a usage error for a value that is empty."""
        try:
            given, _, _ = self.make_parser(ctx).parse_args(args=[*args])  # before they become paths
        except _UsageError as error:
            error.ctx = ctx  # type: ignore[attr-defined] # typer has no name for its class
            raise
        numbers = _numbers(self.callback)
        parameter: Any  # typer has names for their kinds, but not in public
        for parameter in self.params:
            values = given.get(parameter.name or "")
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and not value.strip():
                    is_option = parameter.param_type_name == "option"
                    name = max(parameter.opts, key=len) if is_option else parameter.metavar
                    words = f"{name or parameter.name} {value!r} has an empty value"
                    raise _UsageError(f"{words}: name one, or leave it out", ctx)
                kind = numbers.get(parameter.name or "")
                if isinstance(value, str) and kind and not _is_number(value, kind):
                    option = max(parameter.opts, key=len)
                    raise _UsageError(f"{option} {_no_number(value, kind)}", ctx)
        return super().parse_args(ctx, args)


def _numbers(command: Callable[..., object] | None) -> dict[str, type[float]]:
    """Return which parameters of a command are numbers, whole ones or any."""
    if command is None:
        return {}
    parameters = inspect.signature(command).parameters.items()
    kinds = {name: get_args(one.annotation)[:1] for name, one in parameters}
    types = {name: {*kind, *(get_args(kind[0]) if kind else ())} for name, kind in kinds.items()}
    return {
        name: number for name, known in types.items() for number in (int, float) if number in known
    }


def _is_number(text: str, kind: type[float]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _no_number(text: str, kind: type[float]) -> str:
    """Return what is wrong with a text that is to be a number, and how it is to be written."""
    written = _WITH_UNIT.fullmatch(text.strip())
    wanted = "a whole number" if kind is int else "a number"
    if written is None:
        return f"is {wanted}, not {text!r}"
    number = float(written[1])
    right = f"{number / 100 if written[2] == '%' else number:g}"
    of = "share" if written[2] == "%" else "number of seconds"
    return f"is a {of} without a unit, not {text!r}: write {right}"


class Commands(TyperGroup):
    """The commands; a mistake in how one is called costs one line, like every other of a user's."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **options: Any,
    ) -> Any:
        """Run the command that the arguments name, and exit with its status."""
        main = partial(super().main, args, prog_name, complete_var, **options)
        if not standalone_mode:
            return main(standalone_mode=False, windows_expand_args=windows_expand_args)
        try:
            status = main(standalone_mode=False, windows_expand_args=windows_expand_args)
        except _UsageError as error:
            _say_misuse(error)
            sys.exit(ExitStatus.USAGE)
        sys.exit(status or ExitStatus.OK)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="What PyTorch's grad modes cost, in memory and in time, on your model and your machine.",
    epilog="Start with [bold]gradbench run --preset tiny[/bold], under a minute. "
    "Also: [bold]pytest --benchmark-only[/bold] in a checkout, or [bold]import gradbench[/bold].",
)
out = Screen(soft_wrap=True)
err = Screen(soft_wrap=True, stderr=True)

TRY: Final = (
    ("gradbench advise --model resnet18_32", "which mode to use, in a minute"),
    ("gradbench run --preset tiny", "measure all modes side by side"),
    ("gradbench --help", "everything else"),
)
"""What a newcomer is shown who types the name of the command alone."""


@app.callback(invoke_without_command=True)
def without_a_command(
    context: typer.Context,
    *,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)
    ] = False,
) -> None:
    """What PyTorch's grad modes cost, in memory and in time, on your model and your machine."""
    if version:
        out.print(f"gradbench {__version__}, protocol {PROTOCOL}, torch {_torch_version()}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        out.print("What PyTorch's grad modes cost, on your model and your machine. Three to try:\n")
        for command, about in TRY:
            out.print(f"  [bold]{command:<37}[/bold] {about}")


def _torch_version() -> str:
    """Return torch's version without loading it, which takes seconds."""
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"


Results = Annotated[Path, typer.Option(help="Folder of runs.")]
Reports = Annotated[Path, typer.Option(help="Folder of pages.")]
Reference = Annotated[str, typer.Option(help="Grad mode that the table's ratios are taken to.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", help="All notes beneath the tables, not the first few.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead.")]
Strict = Annotated[bool, typer.Option(help="Exit 3 when anything is inconclusive.")]
SameToo = Annotated[bool, typer.Option("--all", help="Show what is the same too.")]
OpenPage = Annotated[bool, typer.Option("--open", help="Show a page of it in the browser.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name, its beginning, path or latest.")]


def _say_misuse(error: Any) -> None:
    """Print what the parser of the command line says; nothing where it has shown the help."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if not message:
        return
    help_of = error.ctx.command_path if error.ctx is not None else "gradbench"
    remedy = "" if "Did you mean" in message else f": see {help_of} --help"
    if "unexpected extra argument" in message and _takes_model(error.ctx):
        remedy = f": a model goes with --model{remedy}"
    first, space, rest = message.partition(" ")
    first = first.lower() if first[1:].islower() else first  # a word, and no name of an argument
    err.print(f"[red]gradbench:[/red] {shown_briefly(f'{first}{space}{rest}{remedy}')}")


def _takes_model(context: Any) -> bool:
    """Return whether the command that was called takes a model, by an option."""
    return context is not None and any(one.name == "model" for one in context.command.params)


@contextmanager
def one_line_errors(config: Path | None = None) -> Iterator[None]:
    """Turn errors of the user's into one line and `ExitStatus.USAGE`."""
    try:
        yield
    except GradbenchError as error:
        where = locate(config, error) if config and isinstance(error, UnknownName) else ""
        if isinstance(error, BadModel):  # what their module raised, as they know it
            cause = error.__cause__
            raised = users_traceback(cause) if cause is not None else error.traceback
            if raised:
                err.print(shown_lines(raised))
        err.print(f"[red]gradbench:[/red] {shown_briefly(where + _as_typed(error))}")
        raise typer.Exit(ExitStatus.USAGE) from None
    except OSError as error:
        if error.filename is not None:
            words = f"{str(error.filename)!r}: {error.strerror}: choose another name or place"
        elif error.errno in NO_MEANS:
            words = f"{error.strerror}: the system has no more of what this needs"
        else:  # of a stream, not of a file that somebody named
            raise
        err.print(f"[red]gradbench:[/red] {shown_briefly(words)}")
        raise typer.Exit(ExitStatus.USAGE) from None


def _as_typed(error: GradbenchError) -> str:
    """Return what is wrong by the name that the user typed: what a file sets has its line."""
    return f"{option_of(error.name)} {error.words}" if isinstance(error, BadSetting) else str(error)


def examples(*lines: str, before: str = "") -> str:
    """Return what stands beneath a command's help: a heading, and an example a line."""
    shown = "\n".join(lines)
    start = f"{before}\n\n" if before else ""
    return f"{start}[bold]Examples[/bold]\n{shown}"


def sort_commands() -> None:
    """Put the commands in the order in which help lists them: `FIRST`, then the others by name."""
    names = {
        one: one.name or getattr(one.callback, "__name__", "") for one in app.registered_commands
    }
    rank = {name: place for place, name in enumerate(FIRST)}
    app.registered_commands.sort(key=lambda one: (rank.get(names[one], len(FIRST)), names[one]))
    for one in app.registered_commands:
        one.cls = Command


def unwrap_help() -> None:
    """Let the paragraphs of help wrap where the screen ends, not where a docstring's lines do."""
    for one in app.registered_commands:
        paragraphs = inspect.cleandoc(one.help or one.callback.__doc__ or "").split("\n\n")
        one.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def check_page_name(page: Path | None) -> None:
    """Raise `Impossible` for a file that its name would have opened as something else."""
    if page is not None and page.suffix.lower() in NO_PAGES:
        raise Impossible(f"-o {str(page)!r}: a page is HTML: name it {page.stem}.html")


def say(status: "Status", words: str) -> None:
    """Show what is being done: in place, or a line each where nobody looks."""
    if err.is_terminal:
        status.update(shown(words))
    else:
        say_in_log(words)


def say_in_log(words: str) -> None:
    """Print a line of its own on standard error, of which nothing acts on a terminal or a CI."""
    print(without_commands(printable(words)), file=sys.stderr, flush=True)


def check_reference(name: str) -> None:
    """Raise `UnknownName` unless it is a grad mode."""
    if name not in GRAD_MODES:
        raise UnknownName("grad_mode", name, GRAD_MODES)


def option_of(setting: str) -> str:
    """Return the option that sets a field of `Plan`, the name by which a user knows it."""
    return f"--{setting.removesuffix('_s').replace('_', '-')}"


def split(values: Sequence[str] | None, option: str) -> list[str]:
    """Return the values of an option that may be given several times, or once with commas.

    Raise `Impossible` for an empty one, as a shell's unset variable leaves it: it would stand for
    all values.
    """
    parts = [(value, part.strip()) for value in values or () for part in value.split(",")]
    for value, part in parts:
        if not part:
            raise Impossible(f"{option} {value!r} has an empty value: name one, or leave it out")
    return [part for _, part in parts]


def size_in_bytes(text: str | None, option: str) -> int | None:
    """Return the bytes that an option means; raise `Impossible` for a number without a unit."""
    if text is None:
        return None
    number = text.strip()
    if number.replace(".", "", 1).isdecimal():
        raise Impossible(f"{option}: {number} has no unit: {number}MiB, {number}GiB?")
    try:
        nbytes = format_units.parse_size(text)
    except ValueError as error:
        raise Impossible(f"{option}: {error}") from None
    if nbytes > MOST:
        raise Impossible(f"{option}: {one_line(number, longest=40)} is more than any machine has")
    return nbytes
