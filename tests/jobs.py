"""What the tests ask measuring processes to do; importable there."""

import atexit
import ctypes
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import psutil
import torch
from torch import nn

from gradbench.experiment.matrix import Cell
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.workloads.models import Model
from gradbench.workloads.trees import Batch


def count(upto: int) -> Iterator[int]:
    yield from range(upto)


def threads_and_malloc() -> Iterator[tuple[int, str]]:
    status = Path("/proc/self/status").read_text("utf-8")
    threads = int(status.split("Threads:")[1].split()[0])
    yield threads, os.environ.get("MALLOC_MMAP_MAX_", "unset")


def segfault() -> Iterator[int]:
    yield 1
    ctypes.string_at(0)


def kill_self() -> Iterator[int]:
    yield 1
    os.kill(os.getpid(), signal.SIGKILL)


def exit_early() -> Iterator[int]:
    yield 1
    sys.stderr.write("the last words\n")
    sys.stderr.flush()
    os._exit(3)


def hang() -> Iterator[int]:
    yield os.getpid()
    time.sleep(600)


def close_all_descriptors() -> Iterator[int]:
    yield os.getpid()
    os.closerange(0, 1024)
    while True:
        time.sleep(0.05)


def close_the_pipe() -> Iterator[int]:
    yield os.getpid()
    os.closerange(3, 1024)
    yield 2


def write_over_all_descriptors() -> Iterator[int]:
    yield os.getpid()
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\x00\x00\x00\x05garbage" * 10)
        except OSError:
            continue
    time.sleep(600)


def ignore_signals() -> Iterator[int]:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    yield os.getpid()
    time.sleep(600)


def stop_supervisor_and_parent() -> Iterator[int]:
    yield 1
    for above in (psutil.Process(os.getppid()).ppid(), os.getppid()):
        os.kill(above, signal.SIGSTOP)
    time.sleep(600)


def stop_the_parent() -> Iterator[int]:
    yield os.getpid()
    os.kill(os.getppid(), signal.SIGSTOP)
    time.sleep(600)


def daemon() -> int:
    """Start a process that is nobody's child, in a session of its own; return its number."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        grandchild = os.fork()
        if grandchild == 0:
            time.sleep(600)
        os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(reader, 32))


def leave_a_daemon() -> Iterator[int]:
    yield daemon()


def leave_a_daemon_and_die() -> Iterator[int]:
    yield daemon()
    os._exit(3)


def leave_a_daemon_and_hang() -> Iterator[int]:
    yield daemon()
    time.sleep(600)


def hang_at_the_end() -> Iterator[int]:
    atexit.register(time.sleep, 600)
    threading.Thread(target=time.sleep, args=(600,)).start()
    yield os.getpid()


def fork_and_return() -> Iterator[int]:
    for number in range(3):
        os.fork()
        yield number


def interrupt_by_alarm() -> Iterator[int]:
    def late(*_: object) -> None:
        raise TimeoutError("the model's own alarm")

    signal.signal(signal.SIGALRM, late)
    yield os.getpid()
    signal.setitimer(signal.ITIMER_REAL, 0.1)  # only now: until then it would meet our sending
    time.sleep(600)


class Unreadable:
    """Can be sent, and not be received."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return int, ("no number",)


def fail() -> Iterator[int]:
    yield 1
    raise ValueError("a bug")


def process_of(
    cells: Sequence[Cell], _model: Model, _plan: Plan, wanted: Collection[str]
) -> Iterator[Measurement]:
    """Stand for a pass: read which process a cell is in, and how that treats freed memory."""
    for cell in cells:
        for name in wanted:
            yield Measurement(
                cell=cell,
                meter=name,
                unit="bytes",
                values=(os.getpid(),),
                iterations=1,
                exact=False,
                notes={"mmap_max": os.environ.get("MALLOC_MMAP_MAX_", "unset")},
            )


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError


class Net(nn.Module):
    """A linear layer that misbehaves on demand, by grad mode."""

    def __init__(self, when: str = "") -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.when = when

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.when == "crash under inference_mode" and torch.is_inference_mode_enabled():
            ctypes.string_at(0)
        if self.when == "raise under no grad" and not torch.is_grad_enabled():
            raise ValueError("not like this")
        if self.when == "raise what has no words":
            raise Mute
        if self.when == "hang":
            time.sleep(600)
        if self.when == "out of memory":
            torch.empty(2**50)
        return self.layer(x)


def batch(size: int) -> Batch:
    return Batch((torch.randn(size, 4),), target=torch.randint(3, (size,)))


def refuse_to_build() -> nn.Module:
    raise RuntimeError("no weights here")


def raises_under_no_grad() -> nn.Module:
    return Net("raise under no grad")


class FakeRequests:
    """Writes the dumps that callgrind would, with chosen counts: an arm's steps cost more."""

    def __init__(self) -> None:
        self.start = self.zero = lambda: None
        self._written = 0

    def dump(self, name: str):
        index, what = name.split()
        total = 7 + (1000 * (int(index) + 1) if what == "step" else 0)

        def write() -> None:
            self._written += 1
            text = f"desc: Trigger: Client Request: {name}\ntotals: {total}\n"
            Path(f"dump.{self._written}").write_text(text, "utf-8")

        return write


def count_in(folder: str, job: bytes) -> Iterator[None]:
    """Count as a process does that is started in a folder, and given its job by standard input."""
    os.chdir(folder)
    sys.stdin = io.TextIOWrapper(io.BytesIO(job))
    count_with_fake_requests()
    yield from ()


def count_with_fake_requests() -> None:
    from gradbench.runner import callgrind, instructions_pass

    callgrind.Requests = FakeRequests
    instructions_pass.main()
