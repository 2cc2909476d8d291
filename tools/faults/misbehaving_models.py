"""Models that misbehave, each in a way of its own, and one that does not."""

import atexit
import ctypes
import gc
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import psutil
import torch
from torch import nn

from gradbench.workloads.generation import Generation
from gradbench.workloads.models import Model

LONG_S = 3600


class Net(nn.Module):
    """A linear layer that does something else first."""

    def __init__(self, misbehave: Callable[[], object]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.misbehave = misbehave

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.misbehave()
        return self.layer(x)


def batch(size: int) -> torch.Tensor:
    return torch.randn(size, 4)


def sleep() -> None:
    time.sleep(LONG_S)


def loop() -> None:
    while True:
        pass


def loop_in_c() -> None:
    """Hold the interpreter's lock, so that no signal handler runs."""
    ctypes.PyDLL(None).sleep(LONG_S)


def close_all_and_loop() -> None:
    os.closerange(0, 4096)
    while True:
        time.sleep(0.1)


def close_all() -> None:
    os.closerange(0, 4096)


def write_over_all() -> None:
    for descriptor in range(3, 256):
        try:
            os.write(descriptor, b"\x00\x01\x02garbage\n" * 100)
        except OSError:
            continue


def ignore_signals_and_sleep() -> None:
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)
    sleep()


def block_signals_and_sleep() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))
    sleep()


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def stop_its_parent() -> None:
    os.kill(os.getppid(), signal.SIGSTOP)
    sleep()


def kill_its_parent() -> None:
    os.kill(os.getppid(), signal.SIGKILL)
    sleep()


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate_itself() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def segfault() -> None:
    ctypes.string_at(0)


def abort() -> None:
    os.abort()


def exit_at_once() -> None:
    os._exit(7)


def exit_politely() -> None:
    sys.exit("enough")


def interrupt() -> None:
    raise KeyboardInterrupt


def raise_of_many_lines() -> None:
    raise RuntimeError("first\n" + "more\n" * 1000)


def raise_what_cannot_be_printed() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no words")

    raise Mute


def recurse() -> None:
    recurse()


def alarm() -> None:
    signal.alarm(1)
    sleep()


def alarm_with_handler() -> None:
    def late(*_: object) -> None:
        raise TimeoutError("the model's own alarm")

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    sleep()


def fork_and_return() -> None:
    os.fork()


def leave_a_daemon() -> None:
    """Leave a process that is nobody's child, holds every descriptor and goes on for an hour."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            sleep()
        os._exit(0)


def leave_a_daemon_and_die() -> None:
    leave_a_daemon()
    os._exit(9)


def hang_at_exit() -> None:
    atexit.register(sleep)
    threading.Thread(target=sleep).start()


def leave_a_thread_that_hangs() -> None:
    threading.Thread(target=sleep, daemon=False).start()


def use_up_memory() -> None:
    """Ask for more than this process may have: its limit, and not the machine's, is met."""
    most_bytes = psutil.Process().memory_info().vms + 2**29
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    kept = []
    while True:
        kept.append(torch.empty(2**22))


def use_up_descriptors() -> None:
    kept = []
    while True:
        kept.append(os.dup(0))


def turn_the_collector_against_us() -> None:
    """Hang in a finalizer, which runs when nobody expects it."""

    class Late:
        def __del__(self) -> None:
            time.sleep(LONG_S)

    Late()
    gc.collect()


def make(misbehave: Callable[[], object]) -> nn.Module:
    return Net(misbehave)


def hang_while_building() -> nn.Module:
    sleep()
    return Net(int)


def die_while_building() -> nn.Module:
    os._exit(3)


MISBEHAVING: dict[str, Callable[[], nn.Module]] = {
    one.__name__: partial(make, one)
    for one in (
        *(sleep, loop, loop_in_c, close_all_and_loop, close_all, write_over_all),
        *(ignore_signals_and_sleep, block_signals_and_sleep, stop_itself, stop_its_parent),
        *(kill_its_parent, kill_itself, terminate_itself, segfault, abort, exit_at_once),
        *(exit_politely, interrupt, raise_of_many_lines, raise_what_cannot_be_printed, recurse),
        *(alarm, alarm_with_handler, fork_and_return, leave_a_daemon, leave_a_daemon_and_die),
        *(hang_at_exit, leave_a_thread_that_hangs, use_up_memory, use_up_descriptors),
        turn_the_collector_against_us,
    )
}
MISBEHAVING |= {one.__name__: one for one in (hang_while_building, die_while_building)}
"""What each does in its forward, or while it is built -> how it is made."""


def good() -> nn.Module:
    return Net(int)


class InEvaluation(Net):
    """A linear layer that misbehaves in evaluation alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            self.misbehave()
        return self.layer(x)


VOCABULARY = 7


def in_decode(misbehave: Callable[[], object]) -> Model:
    """Return a model that takes a prompt in, and misbehaves when it makes the next token."""

    def scores(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(tokens), VOCABULARY)

    def prefill(_model: nn.Module, tokens: torch.Tensor, _room: int) -> tuple[torch.Tensor, object]:
        return scores(tokens), [tokens]

    def decode(
        _model: nn.Module, token: torch.Tensor, cache: object
    ) -> tuple[torch.Tensor, object]:
        misbehave()
        return scores(token), cache

    how = Generation(prefill=prefill, decode=decode, vocabulary=VOCABULARY)
    return Model(good, batch, generation=how)


LATER = (sleep, segfault, exit_at_once, close_all_and_loop, raise_of_many_lines, fork_and_return)
"""What is done in a part of a step, too: in an evaluation before training, in making tokens."""

MODELS: dict[str, tuple[str, Model]] = {
    **{name: ("inference", Model(build, batch)) for name, build in MISBEHAVING.items()},
    **{
        f"{one.__name__}_in_evaluation": (
            "evaluate_then_train",
            Model(partial(InEvaluation, one), batch, loss=lambda output, _: output.sum()),
        )
        for one in LATER
    },
    **{f"{one.__name__}_in_decode": ("generate", in_decode(one)) for one in LATER},
}
"""Name -> the workload in which it misbehaves, and the model."""

MAY_STEP = frozenset(
    (
        *("fork_and_return", "leave_a_daemon", "hang_at_exit", "leave_a_thread_that_hangs"),
        *("close_all", "fork_and_return_in_evaluation", "fork_and_return_in_decode"),
    )
)
"""Those whose step may come to an end all the same, so that numbers are no mistake."""
