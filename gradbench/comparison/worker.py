"""A process of a comparison: a script that steps cells of one version, or of both, on request.

It runs with the side's interpreter and import path, and speaks JSON lines through a socket that it
inherits. It is the candidate's script on both sides; of gradbench it uses what the path has, and
only the names in ``comparison.entry``. For each cell it forks, so that no cell inherits another's
heap, and a crash is the end of that cell alone. It runs as a script, so it names gradbench in full.
"""

import gc
import importlib.util
import itertools
import json
import os
import platform
import resource
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NoReturn

WARM_STEPS: Final = 3
LEAST_S: Final = 0.001
"""How long is waited past a deadline: what has come by then is read."""
READING_S: Final = 5.0
"""How long it may take to read that: a long message comes in parts, as the other side is heard."""
CHUNK_BYTES: Final = 2**16
MOST_BYTES: Final = 2**25
"""Of one message: more than that, a model wrote over the socket."""
DEPTH: Final = 10
"""Errors behind an error that are looked at."""
OWN_NS: Final = 20_000
"""CPU time of other threads of this process in a batch, from which on they took the core."""
STARTED_WITH: Final = dict(os.environ)
"""The environment before anything of the user's could change it."""


class JsonLineSocket:
    """A socket that carries one JSON object a line, question and answer in turn.

    It is used by one process. A model that forks, and returns in its copy of that process too, ends
    the copy when it comes to use the socket.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._rest = b""
        self.user = os.getpid()
        self.deadline: float | None = None
        """Until when to wait for a message, by the monotonic clock; None is for ever."""

    def send(self, **message: Any) -> None:
        """Send one message."""
        self.end_copies()
        self._socket.settimeout(self._left_s())
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the other side is gone.

        Raise `TimeoutError` when there is no whole message in time, and `ValueError` for what is
        none.
        """
        self.end_copies()
        given_up = max(self.deadline or 0.0, time.monotonic()) + READING_S
        while b"\n" not in self._rest:
            left_s = self._left_s()
            if left_s is not None and self._rest:
                left_s = max(left_s, given_up - time.monotonic())
            self._socket.settimeout(left_s)
            more = self._socket.recv(CHUNK_BYTES)
            if not more:
                return None
            self._rest += more
            if len(self._rest) > MOST_BYTES:
                raise ValueError("no message: it has no end")
            late = self.deadline is not None and time.monotonic() > given_up
            if late and b"\n" not in more:  # what comes drop by drop
                raise TimeoutError
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"no message: {line[:80]!r}")  # noqa: TRY004 # of what it says
        return message

    def close(self) -> None:
        """Close it, by which the other side knows that nothing more will be asked."""
        self._socket.close()

    def end_copies(self) -> None:
        """End this process where it is a copy of the one that uses the socket."""
        if os.getpid() != self.user:
            os._exit(0)

    def _left_s(self) -> float | None:
        return None if self.deadline is None else max(self.deadline - time.monotonic(), LEAST_S)


def beside(name: str) -> ModuleType:
    """Load a module or a package of this script's own, of which the side may have other versions.

    ``name`` is its path in gradbench, without the ending of a file.
    """
    place = Path(__file__).resolve().parents[1] / name
    is_package = place.is_dir()
    own_name = f"beside_{place.name}"
    spec = importlib.util.spec_from_file_location(
        own_name,
        place / "__init__.py" if is_package else place.with_suffix(".py"),
        submodule_search_locations=[str(place)] if is_package else None,
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[own_name] = module
    spec.loader.exec_module(module)
    return module


supervisor: Final = beside("supervisor")
side_imports: Final = beside("comparison/side_imports")


class Sides:
    """The trees in this process, one or both, in the order in which each thing is done to them."""

    def __init__(self, sides: Sequence[Mapping[str, Any]], *, order: Sequence[int]) -> None:
        shared_state = beside("comparison/shared_state")  # which brings torch
        self.shared_state, self.order, self.alone = shared_state, order, len(sides) == 1
        self.trees = [
            side_imports.tree(
                Path(side["tree"]),
                side["paths"],
                home=side["home"],
                environment=side["environment"],
            )
            for side in sides
        ]
        self.turns = side_imports.Turns(self.trees)
        self._paths = [side["paths"] for side in sides]
        self._homes = [side["home"] for side in sides]
        self.entries: list[Any] = [None for _ in sides]
        self.registrations = shared_state.Registrations(self.trees[0]) if self.alone else None
        self.bindings: Any = None
        self.in_forks = False  # whether each cell's fork imports the models

    def load(self, *, training: bool) -> None:
        """Import each side's gradbench, once for all forks."""
        import torch

        for index in self.order:
            paths = self._paths[index]
            self.turns.give(index)
            own_path = list(sys.path)
            measuring = [
                path for path in paths if (Path(path) / "gradbench" / "comparison").is_dir()
            ]
            # behind all else: a psutil.py of the user's is not the one that we need
            sys.path[:] = [*measuring, *(path for path in sys.path if path not in paths), *paths]
            from gradbench.comparison import entry

            self.entries[index] = entry
            if training:  # the first optimizer loads as much again as torch itself
                torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            sys.path[:] = own_path
            if self.alone:
                os.environ["PYTHONPATH"] = os.pathsep.join([*paths, *self._others(index)])
        if self.alone:
            self.bindings = self.shared_state.Bindings()

    def _others(self, index: int) -> list[str]:
        """Return what else a process that a tree starts is to import from."""
        others = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        tree, home = self.trees[index], self._homes[index]
        moved = (
            side_imports.at_home(one, root=tree.root, home=home, environment=tree.environment)
            for one in others
            if one
        )
        return [one for one in moved if one]

    def origins(self, path: str) -> dict[str, Any]:
        """Import a user's factory on each side; return the modules' files, or why it cannot be."""
        files = [""] * len(self.trees)
        for index in self.order:
            self.turns.give(index)
            entry = self.entries[index]
            try:
                if hasattr(entry, "file_of"):
                    files[index] = entry.file_of(path)
                else:  # an older gradbench
                    entry.resolve(path)
                    module = sys.modules[path.partition(":")[0]]
                    files[index] = getattr(module, "__file__", None) or ""
            except (Exception, SystemExit) as error:  # noqa: BLE001 # a user's module may do anything
                return {"failed": str(error)}
        return {"files": files}


def main(descriptor: int, asked: Mapping[str, Any]) -> None:
    """Say what was imported, then take cells until the other side closes."""
    line = JsonLineSocket(descriptor)
    supervisor.adopt_orphans()
    import torch

    torch.set_num_threads(1)  # what a user's module does on import must leave no threads behind
    try:
        sides = Sides(asked["sides"], order=asked["order"])
        sides.load(training=asked["training"])
    except Exception as error:  # noqa: BLE001 # the other side says it in one line
        line.send(failed=words(error))
        return
    if "importing" in asked:
        sides.in_forks = True
        line.send(**imported(sides, asked["importing"]))
    else:
        line.send(torch=torch.__version__, python=platform.python_version())
    while (message := line.receive()) is not None:
        if "import" in message:
            line.send(**imported(sides, message["import"]))
        else:
            in_a_fork(line, sides, message)


def imported(sides: Sides, path: str) -> dict[str, Any]:
    """Import a user's factory; return the files that its modules came from, or why it cannot be.

    A module may start CUDA when it is imported, or ask whether there is a GPU, and a fork of such
    a process can use none; or start threads, as of a pool, which no fork has. Where torch could
    start CUDA, a fork tries. A process that has threads now begins anew. From then on each cell's
    fork imports the module for itself.
    """
    import torch

    if sides.in_forks:
        return from_a_fork(lambda: sides.origins(path))
    if not hasattr(torch._C, "_cuda_isInBadFork"):  # a build without CUDA
        before = threads()
        answer = sides.origins(path)
        if threads() > before:
            begin_anew(importing=path)
        return answer
    answered = from_a_fork(
        lambda: {**sides.origins(path), **from_a_fork(lambda: {"bad": bad_fork()})}
    )
    return sides.origins(path) if answered.pop("bad", None) is False else answered


def threads() -> int:
    """Return how many threads this process has, those of libraries among them."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208 # their number alone
    except OSError:  # not Linux
        return threading.active_count()


def begin_anew(*, importing: str) -> None:
    """Run this script once more in this process, which then answers what it was asked to import.

    Not under valgrind, which would not go on with it.
    """
    if "vgpreload" in os.environ.get("LD_PRELOAD", ""):
        return
    script, descriptor, asked = sys.argv
    again = json.dumps({**json.loads(asked), "importing": importing})
    command = [sys.executable, "-P", script, descriptor, again]
    os.execve(sys.executable, command, STARTED_WITH)  # noqa: S606 # itself, and no shell is meant


def bad_fork() -> bool:
    """Return whether CUDA refuses to start in this process, a fork, because its parent asked."""
    import torch

    return bool(torch._C._cuda_isInBadFork())  # type: ignore[attr-defined] # where torch has CUDA


def from_a_fork(function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what a function returns in a child of this process; nothing if that ends early."""
    parent = os.getpid()
    with tempfile.TemporaryFile() as file:  # which nobody waits for: what it starts may live on
        child = os.fork()
        if child == 0:
            supervisor.end_with_parent(parent)
            text = json.dumps(function()).encode()
            if os.getppid() == parent:  # or a copy, which the module has forked
                file.write(text)
                file.flush()
            os._exit(0)
        os.waitpid(child, 0)
        supervisor.end_descendants()
        file.seek(0)
        text = file.read()
    return json.loads(text) if text else {"failed": "its import ends the process"}


def in_a_fork(line: JsonLineSocket, sides: Sides, asked: dict[str, Any]) -> None:
    """Answer from a child; if it dies before its last answer, say so in its stead."""
    gc.collect()
    gc.freeze()
    parent = os.getpid()
    with tempfile.TemporaryFile() as mark:  # has a byte from the child's last answer on
        child = os.fork()
        if child == 0:
            supervisor.end_with_parent(parent)
            line.user = os.getpid()
            os.environ.update(asked["environment"])  # before anything starts what it hides
            answer(line, sides, asked, mark.fileno())
        _, status = os.waitpid(child, 0)
        supervisor.end_descendants()
        answered = bool(os.fstat(mark.fileno()).st_size)
    if not answered:  # a second answer would be taken for that to the next question
        line.send(ended=os.waitstatus_to_exitcode(status))


def answer(line: JsonLineSocket, sides: Sides, asked: dict[str, Any], mark: int) -> NoReturn:
    """Answer what is asked about a cell, mark the last answer, and end."""
    status = 1
    try:
        last = last_answer(line, sides, asked)
        line.end_copies()
        sys.stderr.flush()
        os.pwrite(mark, b".", 0)
        line.send(**last)
        status = 0
    except OSError as error:  # the model has closed the socket, perhaps all that was open
        os.ftruncate(mark, 0)
        os.write(2, f"{words(error)}\n".encode())
    finally:
        os._exit(status)


def last_answer(line: JsonLineSocket, sides: Sides, asked: dict[str, Any]) -> dict[str, Any]:
    """Take a cell's turns; whatever the model raises is the answer to what was asked last."""
    try:
        if "examine" in asked:
            return examined(sides, asked)
        if asked.get("instructions"):
            both = beside("comparison/interleaved_sides")
            count = beside("comparison/counted_steps").counted
            counts: dict[str, Any] = count(sides, asked, built, both)
            return counts
        if not sides.alone:
            time_both = beside("comparison/interleaved_sides").timed
            times: dict[str, Any] = time_both(sides, asked, built, beside("runner/timing_rules"))
            return times
        time_slices(line, sides, asked)
    except BaseException as error:  # noqa: BLE001 # a model may even exit: it is the outcome
        return {"failed": words(error), "missing": missing_file(error)}
    return {"stopped": True}


def time_slices(line: JsonLineSocket, sides: Sides, asked: dict[str, Any]) -> None:
    """Prepare a cell, say how long its step takes, then time slices of batches on request."""
    arm, _, device = built(sides, 0, asked)
    line.send(typical_ns=warmed_up(arm, device, seconds=asked["warm_up_s"]))
    gc.disable()
    while (request := line.receive()) is not None and "stop" not in request:
        line.send(ns=slice_ns(arm, device, request["iterations"], request["batches"]))
    gc.enable()


def built(sides: Sides, index: int, asked: dict[str, Any]) -> tuple[Any, Any, Any]:
    """Build the cell's step on a side, in its turn; return arm, subject and device."""
    sides.turns.give(index)
    entry = sides.entries[index]
    cell = entry.Cell(**asked["cell"])
    device = entry.settle(cell)
    return (*made(entry, cell, device, asked), device)


def made(entry: Any, cell: Any, device: Any, asked: dict[str, Any]) -> tuple[Any, Any]:
    """Make the cell's step on a device that is settled; return arm and subject."""
    import torch

    source = asked["source"]
    model = own_model(entry, source) if source is not None else entry.MODELS[cell.model]
    subject = entry.build(cell, model, seed=asked["seed"])
    torch.set_num_threads(cell.threads)  # which the module may have set when it was imported
    if hasattr(device, "set_precision"):  # an older gradbench fixes it when it settles
        device.set_precision(asked["cell"].get("precision", "ieee"))
    return entry.make_arm(cell, subject), subject


def own_model(entry: Any, source: dict[str, Any]) -> Any:
    """Return the model of the user's that a source describes."""
    if hasattr(entry, "model_of"):
        return entry.model_of(entry.ModelSource.read(source))
    shape = [int(size) for size in source["input"][0].split(",")[1:]]  # an older gradbench
    return entry.from_path(source["build"], shape=shape)


def warmed_up(arm: Any, device: Any, *, seconds: float) -> float:
    """Step until some time has passed; return a step's typical ns."""
    times: list[int] = []
    end_ns = time.perf_counter_ns() + int(seconds * 1e9)
    with arm.held():
        while len(times) < WARM_STEPS or time.perf_counter_ns() < end_ns:
            start_ns = time.perf_counter_ns()
            arm.step()
            device.synchronize()
            times.append(time.perf_counter_ns() - start_ns)
    return float(sorted(times[len(times) // 2 :])[len(times) // 4])


def slice_ns(arm: Any, device: Any, iterations: int, batches: int) -> list[int]:
    """Return the ns of batches of steps, one after the other, after one step that is not timed.

    Batches in which the kernel gave the core to other processes are left out where others remain.
    """
    batches_ns, undisturbed = [], []
    clock_ns, synchronize, step = time.perf_counter_ns, device.synchronize, arm.step
    with arm.held():
        step()
        for _ in range(batches):
            repeats = itertools.repeat(None, iterations)
            synchronize()
            before = taken_away()
            start_ns = clock_ns()
            for _ in repeats:
                step()
            synchronize()
            batches_ns.append(clock_ns() - start_ns)
            switches, own_ns = (now - then for now, then in zip(taken_away(), before, strict=True))
            if not switches or own_ns > OWN_NS:
                undisturbed.append(batches_ns[-1])
    return undisturbed or batches_ns


def taken_away() -> tuple[int, int]:
    """Return how often the kernel has taken the core from this thread, and the ns of other threads.

    Those are CPU time, of this process: what they take from the steps is the version's own.
    """
    switches = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
    return switches, time.process_time_ns() - time.thread_time_ns()


def examined(sides: Sides, asked: dict[str, Any]) -> dict[str, Any]:
    """Return what a step makes torch do and, where all is asked for, what the tree would share."""
    shared = sides.shared_state
    arm, counts = counted(sides, asked)
    report: dict[str, Any] = {"operations": counts}
    report["outside"] = dict(shared.outside(sides.trees[0]))
    if asked["examine"] == "all":
        sides.bindings.learn_counters(sides.trees[0], partial(one_step, arm))
        report["obstacles"] = list(
            shared.obstacles(sides.trees[0], sides.registrations, sides.bindings)
        )
        report["settings"] = dict(shared.settings(sides.bindings))
        report["own"] = sorted(sides.trees[0].modules)
        report["values"] = sides.bindings.later_values(sides.trees[0])
    return report


def counted(sides: Sides, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the cell's arm and its step's counts, as far as the side's gradbench has them."""
    sides.turns.give(0)
    entry = sides.entries[0]
    if not hasattr(entry, "counted_step"):
        return counted_by_older(sides, asked)
    cell = entry.Cell(**asked["cell"])
    device = entry.settle(cell)
    arm, counts = entry.counted_step(device, lambda: made(entry, cell, device, asked)[0])
    return arm, plain(counts)


def counted_by_older(sides: Sides, asked: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return arm and counts by an older gradbench, whose peak is of another kind, if it has any."""
    entry = sides.entries[0]
    arm, subject, _ = built(sides, 0, asked)
    for _ in range(WARM_STEPS):
        one_step(arm)
    unread = {"peak_bytes": "this version of gradbench does not read it so"}
    if hasattr(entry, "operations_of"):
        return arm, {**plain(entry.operations_of(arm)), "peak_bytes": None, "unread": unread}
    recorder = entry.SavedTensors(apart=subject.resident())
    try:
        with arm.held(), recorder:
            arm.step()
    except Exception as error:  # noqa: BLE001 # hooks meet any code: without a number no verdict
        return arm, {"unread": {**unread, "saved_bytes": words(error)}}
    return arm, {"saved_bytes": recorder.nbytes, "unread": unread}


def plain(counts: Any) -> dict[str, Any]:
    """Return counts as they are sent."""
    return {name: getattr(counts, name) for name in counts.__slots__}


def one_step(arm: Any) -> None:
    """Make a step."""
    with arm.held():
        arm.step()


def missing_file(error: BaseException | None) -> str:
    """Return the path of a file that was not there, where that is what an error is over."""
    for _ in range(DEPTH):
        if isinstance(error, FileNotFoundError) and isinstance(error.filename, str):
            return str(Path(error.filename).absolute()) if error.filename else ""
        error = error and (error.__cause__ or error.__context__)
    return ""


def words(error: BaseException) -> str:
    """Return an error in one line."""
    name = type(error).__name__
    try:
        first = (str(error).strip().splitlines() or [""])[0]
    except Exception as why:  # noqa: BLE001 # the model's own code makes them
        return f"{name}, whose words cannot be had: {type(why).__name__}"
    return f"{name}: {first}" if first else name


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
