"""A run as it was asked for: begun when all of that is checked, or gone on with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadModel, Impossible
from ..experiment import shards, toml_config
from ..store.jsonl import check_writable
from . import cluster
from .app import err, option_of, split
from .request import Request, check_named_again
from .screen import shown

if TYPE_CHECKING:
    from ..experiment.model_source import ModelSource
    from ..recording import Recording
    from ..records.measurements import Environment, Started
    from ..records.run import Run
    from ..runner.block_runner import BlockRunner
    from ..workloads.models import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedRun:
    """What options ask of a run: cells, effort and meters of a new one, or which one goes on."""

    request: Request
    plan: Mapping[str, float]
    meter: Sequence[str] | None
    shard: str | None
    resume: str | None
    results: Path
    reports: Path

    @property
    def fixed(self) -> list[str]:
        """The options that were given and that a run which goes on cannot heed."""
        others = (("meter", self.meter), ("shard", self.shard))
        given = [f"--{name}" for name, value in others if value is not None]
        return [*map(option_of, self.plan), *given]

    def sources(self) -> "Mapping[str, ModelSource]":
        """Return the models that are not built in: of the request, or of the run that goes on."""
        from ..store.jsonl import Store, load

        if self.resume is None:
            return self.request.sources()
        return load(Store(self.results).find(self.resume)).header.sources

    def recording(self, *, at_once: bool, elsewhere: cluster.Cluster | None = None) -> "Recording":
        """Return the recording of a new run, or of the one that goes on.

        It is measured ``elsewhere``, or here on several GPUs ``at_once``.
        """
        if self.resume is not None:
            return self._go_on(self.resume, at_once=at_once, elsewhere=elsewhere)
        return self._begin(at_once=at_once, elsewhere=elsewhere)

    def header(
        self, *, there: Sequence[str] | None = None
    ) -> "tuple[Started, Mapping[str, Model]]":
        """Return the header of a new run and its models, when all that was asked for is checked."""
        from ..runner import preflight, started

        cells, chosen, models = self.request.cells(self.plan, there=there)
        meters = [*dict.fromkeys(split(self.meter, "--meter"))] or list(preflight.DEFAULT_METERS)
        preflight.check(cells, models, meters)
        cells = shards.parse(self.shard).take(cells) if self.shard is not None else cells
        check_writable(self.reports, "--reports")
        config = self.request.config
        header = started(
            cells,
            plan=chosen,
            meters=meters,
            models=models,
            shard=self.shard or "",
            places=toml_config.places(config, cells) if config else None,
        )
        return header, models

    def _begin(self, *, at_once: bool, elsewhere: cluster.Cluster | None) -> "Recording":
        from ..recording import Recording
        from ..store.jsonl import Store

        there = elsewhere.devices() if elsewhere is not None else None
        header, models = self.header(there=there)
        who = _measured_by(header, models, at_once=at_once, elsewhere=elsewhere)
        return Recording(Store(self.results).create(), header, models=models, measured_by=who)

    def _go_on(self, name: str, *, at_once: bool, elsewhere: cluster.Cluster | None) -> "Recording":
        """Return the recording of a run that was cut short.

        A file says which code its models are, and somebody else may have written it: whoever goes
        on with models that are not built in names them again.
        """
        from ..recording import Recording
        from ..store.jsonl import Store, load

        refuse_given([*(one for one in self.request.given if one != "--model"), *self.fixed])
        store = Store(self.results)
        own = load(store.find(name)).header.sources
        if not own and "--model" in self.request.given:
            refuse_given(["--model"])
        check_named_again(own, self.request)
        writer, cut = store.resume(name)
        if cut.dropped:
            err.print(f"[yellow]{shown(cut.dropped)}[/yellow]")
        models = _models_of(cut)
        who = _measured_by(
            cut.header, models, at_once=at_once, elsewhere=elsewhere, known=cut.environments
        )
        return Recording(writer, cut.header, models=models, resumed=cut, measured_by=who)


def refuse_given(options: Sequence[str]) -> None:
    """Raise `Impossible` where there are options that a run which goes on cannot heed."""
    if options:
        raise Impossible(f"a resumed run goes on as it began: leave out {', '.join(options)}")


def _measured_by(
    header: "Started",
    models: Mapping[str, "Model"],
    *,
    at_once: bool,
    elsewhere: cluster.Cluster | None,
    known: "Mapping[str, Environment] | None" = None,
) -> "BlockRunner | None":
    """Return who measures the blocks, None for whoever measures them where nobody is named."""
    from ..experiment.plan import Plan
    from ..runner import side_by_side

    if elsewhere is not None:
        return elsewhere.measures(header, models, known)
    if not at_once:
        return None
    plan = Plan.of(header.plan)
    return side_by_side.here(header.cells, plan=plan, models=models, meters=header.meters)


def _models_of(cut: "Run") -> Mapping[str, "Model"]:
    from ..workloads.own_models import models_of

    models = models_of(cut.header.sources)
    for cell in cut.header.cells:
        if cell.model not in models:
            raise BadModel(
                f"model {cell.model!r} was given in Python: resume there, run(..., resumed=run)"
            )
    return models
