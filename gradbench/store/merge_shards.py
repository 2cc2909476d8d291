"""The shards of one matrix, joined into the records of one run."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

from ..errors import StoreError
from ..experiment import shards
from ..experiment.matrix import Block, Cell, by_block
from ..experiment.model_source import ModelSource
from ..plurals import counted
from ..records.machines import joined
from ..records.measurements import Ended, Environment, Reading, Record, Started
from ..records.run import Run
from .comparability import Scope, agreeing, machine_name, mismatch


@dataclass(frozen=True, slots=True)
class Merged:
    """The records of the joined run, and in words what a reader of it should know."""

    records: tuple[Record, ...]
    remarks: tuple[str, ...]


def merge(runs: Sequence[Run], *, different_machines: bool = False) -> Merged:
    """Join shards: same protocol, plan, meters, software and commit, no figure twice.

    Shards from machines that differ are refused unless ``different_machines``. Then every outcome
    names the machine it is from, and no later comparison takes this run for one machine's. Ratios
    between modes and exact figures mean what they did: a block is never split.

    A shard that is missing or was cut short is a remark; its cells are then not measured. Raise
    `StoreError` for what cannot be joined.
    """
    if not runs:
        raise StoreError("there is no run to merge")
    runs = sorted(runs, key=_position)
    _check(runs, different_machines=different_machines)
    mixed = any(len(run.environments) > 1 or _moved(runs[0], run, "machine") for run in runs)
    records = [_started(runs), *(_by_machine(runs) if mixed else _on_one_machine(runs))]
    if all(run.ended for run in runs):
        records.append(_ended([run.ended for run in runs if run.ended]))
    return Merged(tuple(records), tuple(_remarks(runs, mixed=mixed)))


def _position(run: Run) -> tuple[int, str]:
    return (_shard(run).index, run.name) if run.header.shard else (0, run.name)


def _shard(run: Run) -> shards.Shard:
    return shards.parse(run.header.shard)


def _check(runs: Sequence[Run], *, different_machines: bool) -> None:
    first = runs[0]
    for run in runs[1:]:
        for what in ("protocol", "plan", "meters"):
            own, other = getattr(first.header, what), getattr(run.header, what)
            if own != other:
                raise StoreError(
                    f"{run.name} and {first.name} are not shards of one matrix: {what} "
                    f"{_difference(other, own)}"
                )
        if differ := _moved(first, run, "software"):
            raise StoreError(f"{run.name} cannot be merged with {first.name}: {differ}")
        if not different_machines and (differ := _moved(first, run, "machine")):
            raise StoreError(
                f"{run.name} was measured on another machine than {first.name}: {differ}; "
                "merge them all the same with --allow-different-machines"
            )
    _check_sources(runs)
    _check_twice(runs)
    counts = {_shard(run).count for run in runs if run.header.shard}
    if len(counts) > 1:
        shards = ", ".join(f"{run.name} is {run.header.shard or 'no shard'}" for run in runs)
        raise StoreError(f"these are not shards of one matrix: {shards}")


def _difference(other: object, own: object) -> str:
    if isinstance(other, Mapping) and isinstance(own, Mapping):
        keys = [key for key in {**other, **own} if other.get(key) != own.get(key)]
        return ", ".join(f"{key} {other.get(key)!r} against {own.get(key)!r}" for key in keys)
    return f"{other!r} against {own!r}"


def _check_sources(runs: Sequence[Run]) -> None:
    sources: dict[str, ModelSource] = {}
    for run in runs:
        for model, source in run.header.sources.items():
            known = sources.setdefault(model, source)
            if known != source:
                raise StoreError(
                    f"{run.name} measured {model!r} as {_words(source)}, another shard as "
                    f"{_words(known)}: they are not shards of one matrix"
                )


def _words(source: ModelSource) -> str:
    return " ".join(source.arguments("")[1:])


def _check_twice(runs: Sequence[Run]) -> None:
    owner: dict[Cell, Run] = {}
    for run in runs:
        for cell in dict.fromkeys([*run.header.cells, *(o.cell for o in run.outcomes)]):
            other = owner.setdefault(cell, run)
            if other is not run:
                raise StoreError(
                    f"{cell} is in both {other.name} and {run.name}: shards share no cell, "
                    "leave one of them out"
                )
        read = Counter((outcome.cell, outcome.meter) for outcome in run.outcomes)
        for (cell, meter), count in read.items():
            if count > 1:
                raise StoreError(
                    f"{run.name} holds {meter} of {cell} {counted(count, 'time')}: leave it out"
                )


def _moved(first: Run, other: Run, scope: Scope) -> str:
    """Return in words how two shards differ in the facts that times depend on, or ``""``.

    Of software the commit is one. A device counts where both have measured on it.
    """
    names = agreeing("timed", ["cpu", *_devices(first, other)], scope=scope)
    if scope == "software":
        names = (*names, "git_commit")
    return mismatch(first.environment.facts, other.environment.facts, names)


def _devices(*runs: Run) -> list[str]:
    """Return the devices that all of the runs have cells on."""
    first, *others = ({cell.device for cell in run.header.cells} for run in runs)
    return sorted(first.intersection(*others))


def _started(runs: Sequence[Run]) -> Started:
    first = runs[0].header
    return replace(
        first,
        started_at=min(run.header.started_at for run in runs),
        command=("gradbench", "merge", *(run.name for run in runs)),
        cells=tuple(cell for members in _blocks(runs) for cell in members),
        sources={model: s for run in runs for model, s in run.header.sources.items()},
        shard="",
        places={cell: place for run in runs for cell, place in run.header.places.items()},
    )


def _blocks(runs: Sequence[Run]) -> list[list[Cell]]:
    """Return the blocks in the order of the matrix that was dealt out to the shards."""
    hands = [list(by_block(run.header.cells).values()) for run in runs]
    if not all(run.header.shard for run in runs):
        return list(chain.from_iterable(hands))
    return [members for row in zip_longest(*hands) for members in row if members is not None]


def _on_one_machine(runs: Sequence[Run]) -> Iterator[Record]:
    yield joined([run.environment for run in runs])
    for run in runs:
        yield from (record for record in run.records if isinstance(record, Reading))


def _by_machine(runs: Sequence[Run]) -> Iterator[Record]:
    """Yield an environment a machine, then what was read, with the name of its machine."""
    devices = {cell.device for run in runs for cell in run.header.cells}
    known: dict[str, Environment] = {}
    names: list[dict[str, str]] = []
    for run in runs:
        names.append({})
        for own, environment in run.environments.items():
            name = machine_name(environment.facts, known, devices)
            both = joined([known.get(name, environment), environment])
            names[-1][own], known[name] = name, replace(both, machine=name)
    yield from known.values()
    for run, renamed in zip(runs, names, strict=True):
        for record in run.records:
            if isinstance(record, Reading):
                yield replace(record, machine=renamed.get(record.machine, ""))


def _ended(ends: Sequence[Ended]) -> Ended:
    phases = dict.fromkeys(phase for end in ends for phase in end.seconds)
    return Ended(
        seconds={phase: sum(end.seconds.get(phase, 0.0) for end in ends) for phase in phases},
        load_after=max(end.load_after for end in ends),
    )


def _remarks(runs: Sequence[Run], *, mixed: bool) -> list[str]:
    remarks = []
    if mixed:
        machines = dict.fromkeys(
            str(one.facts.get("host", "unknown")) for r in runs for one in r.environments.values()
        )
        remarks.append(
            f"measured on {counted(len(machines), 'machine')} ({', '.join(machines)}): times are "
            "not comparable between blocks or with another run; ratios between modes and exact "
            "figures are"
        )
    known = [_shard(run) for run in runs if run.header.shard]
    if known:
        count = known[0].count
        have = {shard.index for shard in known}
        missing = [f"{index}/{count}" for index in range(1, count + 1) if index not in have]
        if missing:
            remarks.append(f"shard {', '.join(missing)} is not here: its cells are missing")
    for run in runs:
        cut: list[Block] = run.unfinished()
        if cut:
            more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
            remarks.append(f"{run.name} was cut short: {cut[0]}{more} is not measured")
        if run.dropped:
            remarks.append(run.dropped)
    return remarks
