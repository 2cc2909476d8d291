"""The run of one shard in a folder of its own: begun, gone on with, on whichever host that is."""

import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import StoreError
from ..experiment.matrix import by_block
from ..experiment.shards import Shard
from ..records.measurements import Environment, Reading, Record, Started
from ..records.run import Run
from ..store.jsonl import PART, SEALED, Store, Writer, load, write


def begin(header: Started, shards: Sequence[Shard], folder: Path) -> list[Path]:
    """Write each shard's header, which a task goes on with; return the shards' folders."""
    folders = [folder / f"shard-{shard.index}" for shard in shards]
    for shard, one in zip(shards, folders, strict=True):
        cells = tuple(shard.take(header.cells))
        with Store(one).create() as writer:
            writer.write(replace(header, cells=cells, shard=str(shard)))
    return folders


def parts(folder: Path) -> list[Path]:
    """Return the files of runs that are not complete."""
    return sorted(folder.glob(f"*{PART}"))


def runs(folders: Iterable[Path]) -> list[Run]:
    """Return the complete runs of shards."""
    return [load(path) for folder in folders for path in sorted(folder.glob(f"*{SEALED}"))]


def blocks_done(folder: Path) -> tuple[int, int]:
    """Return how many blocks of a shard are measured, and how many it has."""
    for last in (False, False, True):
        try:
            every = [load(path) for path in (*parts(folder), *folder.glob(f"*{SEALED}"))]
        except StoreError:  # a task has just sealed one
            if last:
                raise
        else:
            break
    total = sum(len(by_block(run.header.cells)) for run in every)
    return total - sum(len(run.unfinished()) for run in every), total


def leave_host(folder: Path, host: str) -> None:
    """Let a run go on that another host began: times of two hosts are no one run's.

    What that host has finished becomes a run by itself, and the rest begins anew. Cut short, it
    can be called again.
    """
    for part in parts(folder):
        run = load(part)
        if run.environment.facts.get("host", host) == host:
            continue
        left = set(run.unfinished())
        finished = tuple(cell for cell in run.header.cells if cell.block not in left)
        rest = tuple(cell for cell in run.header.cells if cell.block in left)
        if finished:
            kept = [r for r in run.records if _is_of(r, set(finished))]
            # the cells become fewer each time, so that no two such files have one name
            name = f"{part.name.removesuffix(PART)}-{len(run.header.cells)}{SEALED}"
            write([replace(run.header, cells=finished), *kept], part.with_name(name))
        if rest:
            _begin_anew(part, replace(run.header, cells=rest))
        else:
            part.unlink()


def _is_of(record: Record, cells: set[object]) -> bool:
    if isinstance(record, Reading):
        return record.cell in cells
    return isinstance(record, Environment)


def _begin_anew(part: Path, header: Started) -> None:
    draft = part.with_name(f".{secrets.token_hex(8)}")
    try:
        with Writer(draft, draft.open("x", encoding="utf-8", newline="\n")) as writer:
            writer.write(header)
        draft.replace(part)
    except OSError as error:
        raise StoreError(f"cannot write {str(part)!r}: {error.strerror}") from error
