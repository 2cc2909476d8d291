"""The options by which a command measures on a cluster, and what they stand for."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ..errors import BadModel, Impossible, UnknownName
from ..experiment.model_source import ModelSource
from ..experiment.plan import MOST_S, Plan
from ..git import GitError, git
from .app import err
from .screen import shown

if TYPE_CHECKING:
    from ..cluster.ray_fleet import RayFleet
    from ..records.measurements import Environment, Started
    from ..runner.block_runner import BlockRunner
    from ..workloads.models import Model

PANEL: Final = "Clusters"
RAY: Final = "ray"

Address = Annotated[
    str | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="HOST:PORT",
        help="Of the Ray cluster. Without it: a Ray on this machine.",
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        rich_help_panel=PANEL,
        metavar="SECONDS",
        help="How long anything may wait for a machine of Ray. Without it: 300.",
    ),
]
DifferentVersions = Annotated[
    bool,
    typer.Option(
        "--allow-different-versions",
        rich_help_panel=PANEL,
        help="Of torch, Python or gradbench on the machines of Ray.",
    ),
]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that a run was asked to be measured on, connected."""

    fleet: "RayFleet"
    deadline_s: float | None

    @property
    def wait_s(self) -> float:
        """How long anything waits for a machine before that is its reason."""
        from ..cluster.on_ray import WAIT_S

        return WAIT_S if self.deadline_s is None else self.deadline_s

    def devices(self) -> list[str]:
        """Return the families of devices that any of its machines has."""
        from .. import devices

        return devices.in_cluster(self.fleet.resources())

    def measures(
        self,
        header: "Started",
        models: Mapping[str, "Model"],
        known: "Mapping[str, Environment] | None" = None,
    ) -> "BlockRunner":
        """Return who measures a header's cells there; ``known`` are a resumed run's machines."""
        from ..cluster.on_ray import OnRay

        return OnRay(
            self.fleet,
            plan=Plan.of(header.plan),
            models={name: models[name] for name in dict.fromkeys(c.model for c in header.cells)},
            meters=header.meters,
            wait_s=self.wait_s,
            known=known,
        )


def check_named(on: str | None, *known: str) -> None:
    """Raise `UnknownName` for a cluster that a command does not know."""
    if on is not None and on not in known:
        raise UnknownName("cluster", on, known)


def check_deadline(deadline_s: float | None) -> None:
    """Raise `Impossible` for a time that nobody can wait for."""
    if deadline_s is not None and not 0 < deadline_s <= MOST_S:
        raise Impossible(
            f"--deadline is a number of seconds above 0, {MOST_S:g} at most, not {deadline_s!r}"
        )


def check_options(on: str | None, **given: Mapping[str, bool]) -> None:
    """Raise for a cluster that is none, or for options of another one than that asked for."""
    check_named(on, *given)
    for cluster, options in given.items():
        for option in (name for name, was_given in options.items() if was_given):
            if cluster != on:
                raise Impossible(f"{option} goes with --on {cluster}")


@contextmanager
def connected(
    address: str | None,
    *,
    deadline_s: float | None,
    versions: bool,
    sources: Mapping[str, ModelSource],
    outputs: Sequence[Path],
) -> Iterator[Cluster]:
    """Connect to a Ray cluster, to which the code of the sources goes; check its machines.

    With ``versions`` they may have others than this one. What is in ``outputs`` stays here.
    """
    from ..cluster.ray_fleet import RayFleet
    from ..cluster.sent_trees import left_behind

    own = [source for source in sources.values() if names_code(source)]
    for source in own:
        check_travels(source)
        check_goes(source)
    here = Path.cwd()
    code, without = (here, left_behind(here, outputs)) if own else (None, ())
    with RayFleet(address, code=code, without=without, say=say_of_machine) as fleet:
        fleet.refuse_unlike(allowed=versions)
        yield Cluster(fleet, deadline_s)


def say_of_machine(words: str) -> None:
    """Print a line on a machine, while others measure."""
    err.print(f"[yellow]{shown(words)}[/yellow]")


def names_code(source: ModelSource) -> bool:
    """Say whether a source names code of the user's, and not a library's model alone."""
    return not source.library or bool(source.batch or source.loss)


def check_goes(source: ModelSource) -> None:
    """Raise `BadModel` for a file of this folder that stays here, for git ignores it.

    A module too: it would be found here, and nowhere else.
    """
    for text in (source.build, source.batch, source.loss):
        name = text.rpartition(":")[0]
        path = Path(name if name.endswith(".py") else f"{name.replace('.', '/')}.py")
        if name and path.is_file() and _is_ignored(path):
            raise BadModel(
                f"{text!r} is in {path.as_posix()!r}, which .gitignore names: such files do not go "
                "to the machines"
            )


def _is_ignored(path: Path) -> bool:
    """Say whether a file .gitignore names this one: Ray knows no other patterns of git's."""
    try:
        line = git("check-ignore", "--no-index", "--verbose", "--", str(path), folder=Path.cwd())
    except GitError:  # none does, or there is no repository
        return False
    file, _, pattern = line.partition("\t")[0].split(":", 2)
    return file.endswith(".gitignore") and not pattern.startswith("!")


def check_travels(source: ModelSource) -> None:
    """Raise `BadModel` for a file that the machines would not find by its name."""
    for text in (source.build, source.batch, source.loss):
        where = PurePath(text.rpartition(":")[0])
        if where.suffix == ".py" and (where.is_absolute() or ".." in where.parts):
            raise BadModel(
                f"{text!r} is not below this folder, which is what goes to the machines: run from "
                "a folder above it, and name it from there"
            )
