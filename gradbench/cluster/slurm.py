"""The shards of a matrix as one array job of Slurm, by submitit: a task a shard."""

import platform
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from .. import own_python
from ..errors import Impossible
from ..plurals import counted
from ..process_end import how_it_ended
from ..process_tree import ProcessTree
from ..store.jsonl import being_written
from . import shard_runs

MISSING: Final = "submitit is not here: pip install 'torch-gradbench[cluster]'"
DEFAULT_MINUTES: Final = 240
"""How long a task may take where ``time`` is not given; Slurm then ends it, and it is requeued."""
SCRIPT: Final = "_submission.sh"
"""How the name of the script ends that submitit leaves of a job, after its number."""
ASK_S: Final = 60.0
"""How long Slurm may take to say whether a job is there."""
OURS: Final = (
    *("array", "output", "error", "open-mode", "signal"),
    *("nodes", "ntasks", "ntasks-per-node", "job-name"),
    *("chdir", "wrap", "wait", "parsable", "quiet", "test-only"),
)
"""Options of sbatch that make the job what it is, or sbatch say something else than its number."""


class Job(Protocol):
    """A task of the array, as submitit sees it."""

    @property
    def job_id(self) -> str:
        """What Slurm calls it."""

    @property
    def state(self) -> str:
        """What Slurm says of it, in capitals."""

    @property
    def paths(self) -> Any:
        """Where its output is."""

    def done(self, force_check: bool = False) -> bool:
        """Whether it has ended, in whatever way."""


class TaskFailed(Exception):
    """The run of a shard did not come to its end; the message says how its process ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardTask:
    """What a task does: it goes on with the run in its folder, from wherever that is."""

    folder: Path
    models: tuple[str, ...]  # of the user's own: who goes on with their code names them

    def __call__(self) -> None:
        """Measure what is left of the shard, in a fresh process; raise `TaskFailed`."""
        for part in shard_runs.parts(self.folder):
            if being_written(part):  # by a task of another job: it may be on another host
                raise TaskFailed(f"{part.name} is being written by another task")
        shard_runs.leave_host(self.folder, platform.node())
        for part in shard_runs.parts(self.folder):
            with ProcessTree(self._command(part), own_session=False) as process:
                status = process.wait()
            if part.exists():
                raise TaskFailed(f"gradbench run {how_it_ended(status)}")

    def checkpoint(self) -> object:
        """Return what submitit is to run when the task was requeued: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _command(self, part: Path) -> list[str]:
        models = [part for model in self.models for part in ("--model", model)]
        asked = ("run", "--resume", str(part), "--results", str(self.folder), "--no-page")
        return own_python.command(*asked, *models)


def submit(
    tasks: Sequence[ShardTask],
    folder: Path,
    sbatch: Mapping[str, str | bool],
    *,
    cluster: str = "slurm",
) -> Sequence[Job]:
    """Submit one array job; its script and logs are in the folder, which all nodes must see.

    Raise `Impossible` where there is no submitit, no Slurm, or an option that sbatch refuses.
    """
    try:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ImportError:
        raise Impossible(MISSING) from None
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError:
        raise Impossible("there is no Slurm here: srun is not on the path") from None
    executor.update_parameters(
        name="gradbench",
        timeout_min=minutes(sbatch.get("time", str(DEFAULT_MINUTES))),
        slurm_additional_parameters={"requeue": True, **sbatch},
    )
    try:
        with executor.batch():
            jobs = [executor.submit(task) for task in tasks]
    except FailedSubmissionError as error:
        words = str(error).partition("\n")[0]
        raise Impossible(f"sbatch has not said which job it is: {words}") from error
    except (FailedJobError, subprocess.CalledProcessError, OSError) as error:
        raise Impossible(f"sbatch refused the job: {_last_line(error)}") from error
    return jobs


def still_there(logs: Path) -> list[str]:
    """Return the jobs that were submitted from a folder and wait or run, as far as Slurm says."""
    names = (path.name.removesuffix(SCRIPT) for path in logs.glob(f"*{SCRIPT}"))
    return [job for job in sorted(names) if job.isdecimal() and _is_there(job)]


def _is_there(job: str) -> bool:
    asked = ["squeue", "--noheader", f"--jobs={job}"]
    try:
        answer = subprocess.run(asked, capture_output=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):  # no Slurm to ask, or one that has forgotten it
        return False
    return bool(answer.stdout.strip())


def options(texts: Sequence[str]) -> dict[str, str | bool]:
    """Return ``key=value`` and ``key`` as options of sbatch; raise `Impossible` for others."""
    given: dict[str, str | bool] = {}
    for text in texts:
        key, separator, value = text.removeprefix("--").partition("=")
        key = key.replace("_", "-")
        if not re.fullmatch(r"[a-z][a-z0-9-]+", key) or (separator and not value):
            raise Impossible(f"--sbatch {text!r} is not like partition=gpu or exclusive")
        if "\n" in value or "\r" in value:
            raise Impossible(f"--sbatch {key} has a value of two lines")
        if any(ours.startswith(key) for ours in OURS):  # sbatch takes the beginning of a name too
            raise Impossible(f"--sbatch {key} is for gradbench to say: leave it out")
        given[key] = value if separator else True
    return given


def minutes(text: str | bool) -> int:
    """Return a time as Slurm writes it, ``90``, ``1:30:00`` or ``1-12``, in minutes."""
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", str(text))
    if match is None:
        raise Impossible(f"--sbatch time={text} is not like 90, 1:30:00 or 1-12:00")
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1]:
        seconds = (days * 24 + first) * 3600 + second * 60 + third
    elif match[4]:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    return max(1, -(-seconds // 60))


def _last_line(error: BaseException) -> str:
    text = getattr(error, "stderr", None) or str(error)
    lines = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    return (lines.strip().splitlines() or [type(error).__name__])[-1]


def wait(
    jobs: Sequence[Job],
    folders: Sequence[Path],
    *,
    say: Callable[[int, int, Mapping[str, int]], object],
    pause: Callable[[], object],
) -> list[str]:
    """Wait until every task has ended; return, a line a task, which shards are not complete.

    ``say`` hears how many blocks are measured, of how many, and how many tasks are in which state.
    """
    while True:
        over = [job.done() for job in jobs]
        states: dict[str, int] = {}
        for job in jobs:
            states[job.state.lower()] = states.get(job.state.lower(), 0) + 1
        counts = [shard_runs.blocks_done(folder) for folder in folders]
        say(sum(done for done, _ in counts), sum(total for _, total in counts), states)
        if all(over):
            break
        pause()
    return [
        _incomplete(folder, job, *count)
        for folder, job, count in zip(folders, jobs, counts, strict=True)
        if shard_runs.parts(folder)
    ]


def _incomplete(folder: Path, job: Job, done: int, total: int) -> str:
    return (
        f"{folder.name} is not complete ({done} of {counted(total, 'block')}): "
        f"task {job.job_id} is {job.state.lower()}; its log: {job.paths.stderr}"
    )
