"""The command ``compare`` on a Ray cluster: both trees go to its machines, replicates come back."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Impossible
from ..experiment.matrix import Cell
from ..experiment.model_source import ModelSource
from ..plurals import counted
from .app import err
from .cluster import Cluster, check_travels, names_code, say_of_machine
from .screen import shown

if TYPE_CHECKING:
    from ..cluster.equal_machines import EqualMachines
    from ..cluster.replicates_on_ray import ReplicatesOnRay
    from ..comparison.checkouts import Version
    from ..comparison.effort import Effort


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the options say of the cluster."""

    address: str | None
    deadline_s: float | None
    versions: bool  # whether machines may have others than this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A cluster that has both versions' trees."""

    cluster: Cluster
    trees: Mapping[str, str]
    inside: str
    itself: bool
    base_python: str | None

    def replicates(
        self, cells: Sequence[Cell], *, sources: Mapping[str, ModelSource], effort: "Effort"
    ) -> "ReplicatesOnRay":
        """Return who makes the cells' replicates there; say on which machines."""
        from ..cluster.equal_machines import EqualMachines
        from ..cluster.jobs import ReplicateSetup
        from ..cluster.on_ray import travelling_variables
        from ..cluster.replicates_on_ray import ReplicatesOnRay
        from ..stats import machine_rule

        for source in filter(names_code, sources.values()):
            check_travels(source)
        fleet = self.cluster.fleet
        group = EqualMachines(fleet, resource=_resource(cells), fewest=machine_rule.FEWEST)
        _say_where(group, machine_rule.FEWEST)
        setup = ReplicateSetup(
            trees=self.trees,
            inside=self.inside,
            itself=self.itself,
            base_python=self.base_python,
            sources=sources,
            replication=effort.replication,
            seed=effort.seed,
            variables=travelling_variables(),
            wait_s=self.cluster.wait_s,
        )
        return ReplicatesOnRay(fleet, group, setup)


@contextmanager
def connected(
    asked: Asked,
    *,
    base: "Version",
    candidate: "Version",
    itself: bool,
    base_python: str | None,
) -> Iterator[Spread]:
    """Connect to a Ray cluster, to which both trees go; check its machines."""
    from .. import scratch
    from ..cluster import sent_trees
    from ..cluster.ray_fleet import RayFleet

    same = base.tree == candidate.tree  # and only the interpreter differs
    trees = {base.name: candidate.name if same else base.name, candidate.name: candidate.name}
    with scratch.folder() as folder:
        sent = folder / "trees"
        places = {base.name: base.tree, candidate.name: candidate.tree}
        sent_trees.gather({name: places[name] for name in dict.fromkeys(trees.values())}, sent)
        with RayFleet(asked.address, code=sent, say=say_of_machine) as fleet:
            fleet.refuse_unlike(allowed=asked.versions)
            yield Spread(
                cluster=Cluster(fleet, asked.deadline_s),
                trees=trees,
                inside=str(Path.cwd().resolve().relative_to(candidate.tree.resolve())),
                itself=itself,
                base_python=base_python,
            )


def _resource(cells: Sequence[Cell]) -> str:
    """Return what the cells need of a machine; raise `Impossible` where they differ in that."""
    from .. import devices

    names = sorted({cell.device for cell in cells})
    if numbered := [name for name in names if ":" in name]:
        raise Impossible(f"on a cluster a cell gets any GPU: --device cuda, not {numbered[0]}")
    needed = {devices.find(name).cluster_resource for name in names} or {""}
    if len(needed) > 1:
        raise Impossible(
            f"on a cluster a table is of one kind of machine: give --device {' or '.join(names)}"
        )
    return needed.pop()


def _say_where(group: "EqualMachines", fewest: int) -> None:
    """Say on which machines replicates are made, and which are left out."""
    if not group.count:  # none yet: they are waited for
        return
    machines = counted(group.count, "equal machine")
    how = (
        "each a block of the statistics"
        if group.is_spread
        else f"fewer than {fewest} are no blocks, so replicates are made on one of them at a time"
    )
    err.print(f"[dim]{machines} ({shown(group.in_words())}): {how}[/dim]")
    for line in group.left_out:
        err.print(f"[dim]left out, for unlike machines do not mix: {shown(line)}[/dim]")
