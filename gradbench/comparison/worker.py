"""One side of a comparison between versions: a script that steps cells and times them on request.

It runs in a fresh process of either side, with that side's interpreter and import path, and speaks
JSON lines through a socket that it inherits. It is the candidate's script on both sides; of
gradbench it uses what the path has, and only the names in ``comparison.entry``. For each cell it
forks, so that no cell inherits another's heap, and a crash is the end of that cell alone. It runs
as a script, so it names gradbench in full.
"""

import gc
import importlib.util
import itertools
import json
import os
import platform
import socket
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

WARM_STEPS: Final = 3
CHUNK_BYTES: Final = 2**16


class JsonLineSocket:
    """A socket that carries one JSON object a line, question and answer in turn.

    It is used by one process. A model that forks, and returns in its copy of that process too, ends
    the copy when it comes to use the socket.
    """

    def __init__(self, descriptor: int, *, timeout_s: float | None = None) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.settimeout(timeout_s)
        self._timeout_s = timeout_s
        self._rest = b""
        self.user = os.getpid()

    def send(self, **message: Any) -> None:
        """Send one message."""
        self._end_copies()
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the other side is gone.

        Raise `TimeoutError` when there is no whole message in time, and `ValueError` for what is
        none.
        """
        self._end_copies()
        deadline = time.monotonic() + (self._timeout_s or 0)
        while b"\n" not in self._rest:
            if self._timeout_s is not None:  # what comes drop by drop makes it no longer
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                self._socket.settimeout(left_s)
            more = self._socket.recv(CHUNK_BYTES)
            if not more:
                return None
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        message = json.loads(line)
        if not isinstance(message, dict):
            raise ValueError(f"no message: {line[:80]!r}")  # noqa: TRY004 # of what it says
        return message

    def close(self) -> None:
        """Close it, by which the other side knows that nothing more will be asked."""
        self._socket.close()

    def _end_copies(self) -> None:
        if os.getpid() != self.user:
            os._exit(0)


def beside(name: str) -> ModuleType:
    """Load a module of this script's own package, which the side may have in another version."""
    place = Path(__file__).resolve().parents[1] / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"gradbench_{name}", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


supervisor: Final = beside("supervisor")


def main(descriptor: int, *, training: bool, paths: Sequence[str]) -> None:
    """Say what was imported, then take cells until the other side closes."""
    line = JsonLineSocket(descriptor)
    supervisor.adopt_orphans()
    ours = [path for path in paths if (Path(path) / "gradbench" / "comparison").is_dir()]
    sys.path[:0] = ours
    sys.path += paths  # behind all else: a psutil.py of the user's is not the one that we need
    import torch

    torch.set_num_threads(1)  # what a user's module does on import must leave no threads behind
    try:
        from gradbench.comparison import entry  # loaded once, for all forks

        if training:  # the first optimizer loads as much again as torch itself
            torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    except Exception as error:  # noqa: BLE001 # the other side says it in one line
        line.send(failed=words(error))
        return
    put_in_front(paths)
    line.send(torch=torch.__version__, python=platform.python_version(), gradbench=entry.__file__)
    while (asked := line.receive()) is not None:
        if "import" in asked:
            line.send(**imported(asked["import"]))
        else:
            in_a_fork(line, asked)


def put_in_front(paths: Sequence[str]) -> None:
    """Let a side's own tree be imported from before whatever else has its modules' names.

    Only the standard library stays before it.
    """
    known = sysconfig.get_paths()
    library = {known["stdlib"], known["platstdlib"], str(Path(known["platstdlib"], "lib-dynload"))}
    first = [path for path in sys.path if path in library or path.endswith(".zip")]
    rest = [path for path in sys.path if path not in {*first, *paths}]
    sys.path[:] = [*first, *paths, *rest]
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])


def imported(path: str) -> dict[str, Any]:
    """Import a user's factory; return the file that its module came from, or why it cannot be.

    A module may start CUDA when it is imported, or ask whether there is a GPU, and a fork of such
    a process can use none. Where torch could start it, a fork tries: then each cell's fork imports
    the module for itself.
    """
    import torch

    if not hasattr(torch._C, "_cuda_isInBadFork"):  # a build without CUDA
        return origin(path)
    answered = from_a_fork(lambda: {**origin(path), **from_a_fork(lambda: {"bad": bad_fork()})})
    return origin(path) if answered.pop("bad", None) is False else answered


def bad_fork() -> bool:
    """Return whether CUDA refuses to start in this process, a fork, because its parent asked."""
    import torch

    return bool(torch._C._cuda_isInBadFork())  # type: ignore[attr-defined] # where torch has CUDA


def origin(path: str) -> dict[str, Any]:
    """Import a user's factory here; return the file of its module, or why it cannot be."""
    from gradbench.comparison import entry

    try:
        if hasattr(entry, "file_of"):
            return {"file": entry.file_of(path)}
        entry.resolve(path)  # an older gradbench
        return {"file": getattr(sys.modules[path.partition(":")[0]], "__file__", None) or ""}
    except (Exception, SystemExit) as error:  # noqa: BLE001 # a user's module may do anything
        return {"failed": str(error)}


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


def in_a_fork(line: JsonLineSocket, asked: dict[str, Any]) -> None:
    """Answer from a child; if it dies, say so in its stead."""
    gc.collect()
    gc.freeze()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        supervisor.end_with_parent(parent)
        line.user = os.getpid()
        os.environ.update(asked["environment"])  # before anything starts what it hides
        answer(line, asked)
        sys.stderr.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    supervisor.end_descendants()
    code = os.waitstatus_to_exitcode(status)
    if code:
        line.send(ended=code)


def answer(line: JsonLineSocket, asked: dict[str, Any]) -> None:
    """Take a cell's turns; whatever the model raises is the answer to what was asked last."""
    try:
        time_slices(line, asked)
    except BaseException as error:  # noqa: BLE001 # a model may even exit: it is the outcome
        line.send(failed=words(error))


def time_slices(line: JsonLineSocket, asked: dict[str, Any]) -> None:
    """Prepare a cell, say how long its step takes, then time slices of batches on request."""
    arm, subject, device, typical_ns = prepare(asked)
    line.send(typical_ns=typical_ns)
    gc.disable()
    while (request := line.receive()) is not None and "stop" not in request:
        if "saved" in request:
            line.send(saved=saved_bytes(arm, subject))
        else:
            line.send(ns=slice_ns(arm, device, request["iterations"], request["batches"]))
    gc.enable()
    line.send(stopped=True)


def prepare(asked: dict[str, Any]) -> tuple[Any, Any, Any, float]:
    """Build the cell's step and warm it up; return arm, subject, device and a step's ns."""
    import torch

    from gradbench.comparison.entry import MODELS, Cell, build, make_arm, settle

    cell = Cell(**asked["cell"])
    model = own_model(asked["source"]) if asked["source"] is not None else MODELS[cell.model]
    device = settle(cell)
    subject = build(cell, model, seed=asked["seed"])
    torch.set_num_threads(cell.threads)  # which the module may have set when it was imported
    if hasattr(device, "set_precision"):  # an older gradbench fixes it when it settles
        device.set_precision(asked["cell"].get("precision", "ieee"))
    arm = make_arm(cell, subject)
    times: list[int] = []
    end_ns = time.perf_counter_ns() + int(asked["warm_up_s"] * 1e9)
    with arm.held():
        while len(times) < WARM_STEPS or time.perf_counter_ns() < end_ns:
            start_ns = time.perf_counter_ns()
            arm.step()
            device.synchronize()
            times.append(time.perf_counter_ns() - start_ns)
    return arm, subject, device, float(sorted(times[len(times) // 2 :])[len(times) // 4])


def own_model(source: dict[str, Any]) -> Any:
    """Return the model of the user's that a source describes."""
    from gradbench.comparison import entry

    if hasattr(entry, "model_of"):
        return entry.model_of(entry.ModelSource.read(source))
    shape = [int(size) for size in source["input"][0].split(",")[1:]]  # an older gradbench
    return entry.from_path(source["build"], shape=shape)


def slice_ns(arm: Any, device: Any, iterations: int, batches: int) -> list[int]:
    """Return the ns of batches of steps, one after the other, after one step that is not timed."""
    batches_ns = []
    clock_ns, synchronize, step = time.perf_counter_ns, device.synchronize, arm.step
    with arm.held():
        step()
        for _ in range(batches):
            repeats = itertools.repeat(None, iterations)
            synchronize()
            start_ns = clock_ns()
            for _ in repeats:
                step()
            synchronize()
            batches_ns.append(clock_ns() - start_ns)
    return batches_ns


def saved_bytes(arm: Any, subject: Any) -> int | None:
    """Return the bytes that a step saves for backward, or None where that cannot be read."""
    from gradbench.comparison.entry import SavedTensors

    recorder = SavedTensors(apart=subject.resident())
    try:
        with arm.held(), recorder:
            arm.step()
        return recorder.nbytes
    except Exception:  # noqa: BLE001 # hooks meet any code: without a number there is no verdict
        return None


def words(error: BaseException) -> str:
    """Return an error in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


if __name__ == "__main__":
    main(int(sys.argv[1]), training=sys.argv[2] == "training", paths=sys.argv[3:])
