"""Validates the measurement on an accelerator: the first thing to run on a GPU that is new to us.

Every question is asked in a process of its own, so that one that breaks takes no other with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Self, get_args

import psutil

from .. import devices
from ..devices import Device, Unreadable
from ..experiment.matrix import Cell
from ..records.measurements import Environment
from ..records.selfcheck import Check
from ..runner import processes
from ..runner.attempts import capture_environment, settle
from ..runner.fork_server import JobError, MallocProfile, WorkerDied
from ..runner.processes import Processes
from . import device_clocks, device_memory, device_runs

LIMIT_S: Final = 120.0
TRIES: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked, and in which kind of measuring process."""

    about: str
    ask: Callable[[Device], Iterator[Check]]
    malloc: MallocProfile = "time"
    cells: str = ""  # the device whose cells the process measures, where not the one asked about
    tries: int = 1  # of times: other work comes and goes, and a broken clock stays


QUESTIONS: Final = (
    *(
        Question(
            about=f"the device starts, in a process of the kind {kind}",
            ask=partial(device_memory.starts, kind),
            malloc=kind,
        )
        for kind in get_args(MallocProfile)
    ),
    Question(about="a CPU cell starts no accelerator", ask=device_memory.left_alone, cells="cpu"),
    Question(about="ledger", ask=device_memory.counters, malloc="memory"),
    Question(about="known blocks", ask=device_memory.known_blocks, malloc="memory"),
    Question(about="workspaces of libraries", ask=device_memory.workspaces, malloc="memory"),
    Question(about="traces", ask=device_memory.traces, malloc="memory"),
    Question(about="out of memory", ask=device_memory.memory_runs_out, malloc="memory"),
    Question(about="kernels of known length", ask=device_clocks.known_lengths, tries=TRIES),
    Question(about="injected delays and kernels", ask=device_clocks.injections, tries=TRIES),
    Question(about="sensors", ask=device_clocks.sensors),
)


def run(
    name: str, say: Callable[[str], None] = lambda _: None
) -> tuple[list[Check], dict[str, Any]]:
    """Ask every question about a device; return the answers and the environment.

    Raise `DeviceUnavailable` where there is no such device.
    """
    devices.find(name).check()
    load_before = psutil.getloadavg()[0]
    with Servers() as servers:
        here = environment(servers, name)
        checks = []
        for question in QUESTIONS:
            say(question.about)
            checks += answers(servers.of(question.malloc), question, name)
    checks += device_runs.two_runs(name, here, say)
    return checks, {
        **here.facts,
        "device": name,
        "load_before": round(load_before, 2),
        "load_after": round(psutil.getloadavg()[0], 2),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def environment(servers: "Servers", name: str) -> Environment:
    """Return the facts, captured in a process that then ends, or why there are none."""
    try:
        (here,) = servers.of("time").run(capture_environment, [name], limit_s=LIMIT_S)
    except (JobError, WorkerDied) as error:
        return Environment(facts={"environment": f"unknown: {_last_line(error)}"})
    assert isinstance(here, Environment)
    return here


def answers(server: Processes, question: Question, name: str) -> list[Check]:
    """Ask in a process of its own; one that raises or dies is an answer too, and a bad one.

    A line that is BAD is asked again, as often as the question says, and counts as it was best.
    """
    best: dict[str, Check] = {}
    for _ in range(question.tries):
        try:
            for check in server.run(asked, question, name, limit_s=LIMIT_S):
                assert isinstance(check, Check)
                if check.name not in best or check.passed:
                    best[check.name] = check
        except (JobError, WorkerDied) as error:
            died = Check(question.about, None, "", _last_line(error), passed=False)
            return [*best.values(), died]
        if all(check.passed is not False for check in best.values()):
            break
    return list(best.values())


def asked(question: Question, name: str) -> Iterator[Check]:
    """Yield the answers, in the process that was started for them."""
    where = question.cells or name
    settle(Cell(model="mlp_tiny", workload="inference", grad_mode="no_grad", device=where))
    try:
        yield from question.ask(devices.find(name))
    except Unreadable as reason:
        yield Check.unreadable(question.about, str(reason))


class Servers:
    """Measuring processes by kind, started when they are first asked for."""

    def __init__(self) -> None:
        self._started: dict[MallocProfile, Processes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._started.values():
            server.close()

    def of(self, kind: MallocProfile) -> Processes:
        """Return one that can take a job."""
        server = self._started.get(kind)
        if server is None or not server.alive:
            server = self._started[kind] = processes.start(kind)
        return server


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
