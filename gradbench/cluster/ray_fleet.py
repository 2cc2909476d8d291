"""The machines of a Ray cluster: found, checked, and asked for places to measure on."""

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from .. import scratch
from ..errors import ClusterLost, GradbenchError, in_one_line
from ..runner.host_system import usable_cores
from .dispatch import Slot, SlotLost
from .jobs import Answer, HasVariables, Job
from .machine_facts import PAUSE_S, Facts, MachineFacts, Node, alive, in_words, only_on
from .measuring_process import Serve
from .ray_worker import MeasuringWorker

LOCAL: Final = "local"
CLIENT: Final = "ray://"
"""How an address begins of the server for clients that are no machines of the cluster."""
GPU: Final = "GPU"
LONGEST_FOLDER: Final = 40
"""Characters of a folder's name in which the names of Ray's sockets still fit."""
CONNECT_S: Final = 10.0
KNOCKS: Final = 5
"""How often nobody may listen at the head, one after the other, before it is gone."""

_ENVIRONMENT: Final = {"RAY_worker_niceness": "0"}
"""Without it Ray's workers, and what they start, run at niceness 15."""
_ALONE: Final = {"RAY_USAGE_STATS_ENABLED": "0"}
"""A Ray that is started here for one run reports to nobody.

It has a token of its own: without one Ray would write one into the user's home, and from then on
each cluster that is started there would ask for it.
"""
_TRIES: Final = "RAY_NUM_REDIS_GET_RETRIES"
"""The variable that says how often Ray tries to connect; it is read when Ray is imported."""
MOST_TRIES: Final = "3"
"""Of a cluster where somebody listens: 20, which is Ray's default, take minutes without a token."""
HOW_TO_CONNECT: Final = (
    "somebody listens there, and does not answer: where it asks for a token, set "
    "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to what `ray get-auth-token` prints on its head"
)
"""What helps where Ray says no more than that it could not connect."""
UNANSWERED: Final = ("ray client connection timeout", "Failed to connect to Ray cluster")
"""What Ray says of a cluster that refuses who comes without its token, and of others."""


class RayFleet:
    """A connection to a Ray cluster, or to one that is started on this machine; a context manager.

    ``code`` is a folder that is to be on all machines, but for what is named ``without``, as git
    writes what it ignores. ``say`` hears of a machine that joins later and may not measure.
    """

    def __init__(
        self,
        address: str | None,
        *,
        code: Path | None = None,
        without: Sequence[str] = (),
        say: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._address, self._code = address or LOCAL, code
        self._without = list(without)
        self._stack = ExitStack()
        self._ray: Any = None
        self._nodes: dict[str, Node] = {}
        self._say = say
        self._facts: MachineFacts
        self._head = ""  # where somebody listens as long as there is a cluster
        self._work: _Work | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            with _signals_kept():
                if self._address != LOCAL:
                    os.environ.setdefault(_TRIES, MOST_TRIES)
                self._ray = _imported()
                folder = stack.enter_context(scratch.folder()) if self._address == LOCAL else None
                stack.callback(self._ray.shutdown)
                self._connect(folder)
            self._facts = MachineFacts(self._ray, say=self._say)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _connect(self, folder: Path | None) -> None:
        runtime: dict[str, Any] = {"env_vars": _ENVIRONMENT}
        if self._code is not None:
            runtime |= {"working_dir": str(self._code), "excludes": self._without}
        options: dict[str, Any] = {
            "address": self._address,
            "runtime_env": runtime,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
        }
        if folder is not None:
            os.environ.update(_ENVIRONMENT | _ALONE)
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            options |= {"num_cpus": len(usable_cores()), "include_dashboard": False}
            if len(str(folder)) <= LONGEST_FOLDER:
                options["_temp_dir"] = str(folder)
        try:
            _knock(self._address)
            self._ray.init(**options)
            is_client = self._address.startswith(CLIENT)
            self._head = self._address if is_client else self._ray.get_runtime_context().gcs_address
        except (
            *(self._ray.exceptions.RayError, RuntimeError, ValueError, OSError),
            OverflowError,  # of a port that none can be
        ) as error:
            raise GradbenchError(
                f"cannot use the Ray cluster {self._address!r}: {self._why_not(error)}"
            ) from error

    def _why_not(self, error: BaseException) -> str:
        """Return in one line why there is no connection."""
        if _goes_unanswered(error):
            return HOW_TO_CONNECT
        is_ray_s = isinstance(error, self._ray.exceptions.RayError)
        return in_words(error) if is_ray_s else in_one_line(error)

    def refuse_unlike(self, *, allowed: bool = False) -> None:
        """Raise `GradbenchError` for a machine whose software is not this one's, unless allowed."""
        self._facts.refuse_unlike(allowed=allowed)

    def facts(self, machine: str) -> Facts | None:
        """Return what a machine is and has installed; None of one that leaves meanwhile."""
        return self._facts.of(machine)

    def resources(self) -> frozenset[str]:
        """Return what blocks can need and any machine has."""
        return frozenset().union(*self.machines().values())

    def machines(self) -> dict[str, frozenset[str]]:
        """Return the machines that are alive and may measure, each with what it has for blocks.

        Raise `ClusterLost` where the head is gone: Ray would end this process a minute later.
        """
        self._hold_that_the_head_is_there()
        there = alive(self._ray)
        self._nodes = {name: one for name, one in there.items() if self._facts.may_measure(one)}
        return {
            name: frozenset(
                resource
                for resource, counted in (("", "CPU"), (GPU, GPU))
                if node["Resources"].get(counted, 0) >= 1
            )
            for name, node in self._nodes.items()
        }

    def measure_with(
        self, serve: Serve, setup: HasVariables, *, longest_s: Callable[[Any], float]
    ) -> None:
        """Have all slots do this with this setup; a job that takes longer than that hangs."""
        self._work = _Work(serve, self._ray.put(setup), longest_s)

    def slots(self, machine: str, resource: str) -> list[Slot]:
        """Ask for the machine as a whole, or for each of its GPUs with a share of its cores."""
        assert self._work is not None
        there = self._nodes[machine]["Resources"]
        count = int(there[GPU]) if resource else 1
        return [
            _RaySlot(
                self._ray,
                self._nodes[machine],
                self._work,
                cpus=int(there.get("CPU", 0)) // count,
                gpus=1 if resource else 0,
                place=(number, count),
            )
            for number in range(count)
        ]

    def _hold_that_the_head_is_there(self) -> None:
        for left in reversed(range(KNOCKS)):
            try:
                _knock(self._head)
            except OSError as error:
                if not left:
                    raise ClusterLost(
                        f"the head of the Ray cluster, {self._head}, is gone: {error.strerror}"
                    ) from error
                time.sleep(1.0)
            else:
                return

    def pause(self, slots: Sequence[Slot]) -> None:
        """Wait until a slot has something to say, for a moment at most."""
        awaited = [slot.awaited for slot in slots if isinstance(slot, _RaySlot) and slot.awaited]
        if awaited:
            self._ray.wait(awaited, num_returns=1, timeout=PAUSE_S)
        else:
            time.sleep(PAUSE_S)


@dataclass(frozen=True, slots=True)
class _Work:
    """What slots do: the function that serves jobs, its setup as Ray holds it, a job's limit."""

    serve: Serve
    setup: Any
    longest_s: Callable[[Any], float]


class _RaySlot:
    """An actor of Ray's on one machine."""

    def __init__(
        self,
        ray: Any,
        node: Node,
        work: _Work,
        *,
        cpus: int,
        gpus: int,
        place: tuple[int, int],
    ) -> None:
        self._ray, self._longest_s = ray, work.longest_s
        self.machine: str = node["NodeID"]
        self.host: str = node["NodeManagerHostname"]
        worker = ray.remote(MeasuringWorker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_restarts=0,  # what is lost is begun again by us, elsewhere
            max_task_retries=0,
            scheduling_strategy=only_on(node),
        )
        self._actor = worker.remote(work.serve, work.setup, slot=place[0], slots=place[1])
        self.awaited: Any = self._actor.ready.remote()

    def taken(self) -> bool:
        """Whether jobs can come; raise `SlotLost` where none ever can."""
        answer = self._answer()
        if isinstance(answer, str) and answer.startswith(":"):
            raise SlotLost(answer[1:])
        return answer is not None

    def submit(self, job: Job) -> None:
        """Have a job done."""
        self.awaited = self._actor.measure.remote(job, self._longest_s(job))

    def result(self) -> Answer | None:
        """Return what came of the job, None while it is done; raise `SlotLost`."""
        answer = self._answer()
        assert answer is None or isinstance(answer, Answer)
        return answer

    def leave(self) -> None:
        """Give the place back: what its worker has started ends with it."""
        self.awaited = None
        self._ray.kill(self._actor)

    def _answer(self) -> object:
        done, _ = self._ray.wait([self.awaited], timeout=0)
        if not done:
            return None
        try:
            answer: object = self._ray.get(self.awaited)
        except self._ray.exceptions.RayError as error:
            raise SlotLost(in_words(error)) from error
        self.awaited = None
        return answer


def _knock(address: str) -> None:
    """Raise `OSError` where nobody listens at an address: Ray would try for minutes."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


def _imported() -> Any:
    try:
        import ray
    except ImportError:
        raise GradbenchError(
            "--on ray needs the package ray: pip install 'torch-gradbench[cluster]'"
        ) from None
    return ray


def _goes_unanswered(error: BaseException) -> bool:
    """Say whether a cluster has not answered at which somebody listens, or refused this one."""
    refused = type(error).__name__ == "AuthenticationError"  # older versions of Ray have none
    return refused or any(words in str(error) for words in UNANSWERED)


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep what signals do to this process: Ray takes SIGTERM over when it is imported."""
    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in map(signal.Signals.__getitem__, names)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
