"""``run --on slurm``: submit the shards of a matrix, wait for them, and join what they measured."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer

from .. import output_files
from ..cluster import shard_runs, slurm
from ..errors import Impossible, StoreError, in_one_line
from ..exit_status import ExitStatus
from ..experiment.matrix import by_block
from ..experiment.shards import Shard
from ..plurals import counted
from ..store.jsonl import Store, being_written, load
from ..store.merge_shards import merge
from .app import err, out, say_in_log
from .screen import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ..records.measurements import Started
    from ..records.run import Run

FOLDER: Final = "slurm"
LOGS: Final = "logs"
SBATCH: Final = "sbatch.json"
"""Has the options of sbatch that a submission was given: its folder is gone on with by the same."""
LOOK_S: Final = 5.0
"""Between two looks at the tasks; submitit asks Slurm less often."""
MOST_TASKS: Final = 8


def begin(header: "Started", tasks: int | None, *, results: Path) -> Path:
    """Begin the runs of a matrix's shards; return the folder that holds them."""
    blocks = len(by_block(header.cells))
    count = tasks or min(blocks, MOST_TASKS)
    Shard(1, count).take(header.cells)  # refuses more than there are blocks, before any is made
    folder = results / FOLDER / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    shard_runs.begin(header, [Shard(index + 1, count) for index in range(count)], folder)
    return folder


def find(name: str, *, results: Path) -> Path:
    """Return the folder of an earlier submission by its path, its name, or ``latest``."""
    known = sorted(one for one in (results / FOLDER).glob("*") if any(one.glob("shard-*")))
    named = [one for one in (Path(name), results / FOLDER / name) if any(one.glob("shard-*"))]
    matches = named or (known if name == "latest" else [])
    if not matches:
        there = ", ".join(one.name for one in known[-5:]) or "none"
        raise StoreError(f"no submission {name!r} in {str(results / FOLDER)!r}: {there}")
    return matches[-1] if name == "latest" else matches[0]


def remembered(folder: Path, given: Sequence[str]) -> list[str]:
    """Return the options of sbatch of a submission, those given now after those of before.

    They are written down; of two with one key the later counts.
    """
    path = folder / SBATCH
    try:
        before = json.loads(path.read_text("utf-8")) if path.exists() else []
        if not (isinstance(before, list) and all(isinstance(one, str) for one in before)):
            raise StoreError(f"{str(path)!r} is no list of options of sbatch: remove it")
        every = [*(one for one in before if one not in given), *given]
        content = json.dumps(every).encode()
        output_files.write(path, content, like=output_files.JSON, what="list of options of sbatch")
    except ValueError as error:
        raise StoreError(f"{str(path)!r} cannot be read: {in_one_line(error)}") from error
    except OSError as error:
        raise StoreError(f"cannot use {str(path)!r}: {error.strerror}") from error
    return every


def measure(
    folder: Path, sbatch: Mapping[str, str | bool], *, wait: bool, results: Path
) -> "tuple[Run, Path]":
    """Submit what is left of each shard, wait, and join all; return the run and its file.

    End the command where that is not to be waited for, or a shard is not complete.
    """
    folders = sorted(folder.glob("shard-*"), key=lambda one: int(one.name.rpartition("-")[2]))
    left = [one for one in folders if shard_runs.parts(one)]
    for one in left:
        if any(being_written(part) for part in shard_runs.parts(one)):
            raise Impossible(f"{one.name} is being measured: wait for its task, or scancel it")
    if left:
        if there := slurm.still_there(folder / LOGS):
            jobs_there = " ".join(there)
            raise Impossible(
                f"job {jobs_there} of this submission still waits or runs: wait for it, or end it "
                f"by scancel {jobs_there}"
            )
        tasks = [slurm.ShardTask(folder=one.resolve(), models=_own_models(one)) for one in left]
        jobs = slurm.submit(tasks, (folder / LOGS).resolve(), sbatch)
        array = jobs[0].job_id.partition("_")[0]
        err.print(f"job {array} has {counted(len(jobs), 'task')}, of one shard each: {folder}")
        if not wait:
            _say_what_to_do(folder, results)
            raise typer.Exit
        _await(jobs, left, folder, results)
    merged = merge(shard_runs.runs(folders), different_machines=True)
    run = Store(results).save(merged.records)
    for remark in merged.remarks:
        err.print(f"[yellow]{shown(remark)}[/yellow]")
    return run, Store(results).find(run.name)


def _own_models(folder: Path) -> tuple[str, ...]:
    return tuple(load(shard_runs.parts(folder)[0]).header.sources)


def _await(jobs: Sequence[slurm.Job], left: Sequence[Path], folder: Path, results: Path) -> None:
    """Wait for the tasks; end the command where a shard is not complete."""
    try:
        with _progress() as say:
            missing = slurm.wait(jobs, left, say=say, pause=lambda: time.sleep(LOOK_S))
    except KeyboardInterrupt:
        array = jobs[0].job_id.partition("_")[0]
        err.print(f"the tasks go on without this command; to end them: scancel {array}")
        _say_what_to_do(folder, results)
        raise typer.Exit(ExitStatus.INTERRUPTED) from None
    for line in missing:
        err.print(f"[yellow]{shown(line)}[/yellow]")
    if missing:
        _say_what_to_do(folder, results)
        raise typer.Exit(ExitStatus.NOTHING_MEASURED)


def _say_what_to_do(folder: Path, results: Path) -> None:
    where = shlex.quote(str(results))
    out.print(
        "measure what is missing, and join all:\n  gradbench run --on slurm --resume "
        f"{folder.name} --results {where}\n"
        "join the shards that are complete:\n  gradbench merge --allow-different-machines "
        f"--results {where} {shlex.quote(str(folder))}/shard-*/*.jsonl"
    )


@contextmanager
def _progress() -> "Iterator[Callable[[int, int, Mapping[str, int]], None]]":
    """Show how far the tasks are: in one line, or where nobody looks, in a line a change."""
    last = ""
    with err.status("waiting for the tasks") as status:

        def say(done: int, total: int, states: Mapping[str, int]) -> None:
            nonlocal last
            tasks = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
            words = f"[{done}/{total}] {tasks}"
            if err.is_terminal:
                status.update(shown(words))
            elif words != last:
                say_in_log(words)
            last = words

        yield say
