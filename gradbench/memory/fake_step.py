"""A step run on fake tensors: what it allocates and frees, and which operators it calls."""

import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

import torch
from torch import Tensor, UntypedStorage, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves

from ..call_threads import CallThreads
from ..devices import Device
from ..experiment.matrix import Cell
from ..records.allocations import Change, Entry, Mark, Phase, Within
from ..workloads.arms import assemble, fed, make_arm, steps
from ..workloads.models import Model
from ..workloads.module_parts import parts
from ..workloads.steps import Subject
from .autocast_copies import FunctionsCalled
from .engine import EngineTracker, backward_passes_of, uses_of_one_holder
from .fake_model import SharedFakeMode, UnaskingFakeMode, fake_batch, fake_module, remade
from .fake_ranks import QuietCollectives, fake_ranks
from .host_numbers import HostNumbers
from .measured_step import WARM_UP_STEPS
from .module_threads import in_sight
from .outline import Outline
from .probe import Call, needs_probe
from .step_phases import Marks
from .storage_tracker import Creation
from .storages import key as storage_key, tensors_among

SCRIPTED: Final = "TorchScript runs it, which fuses and frees by its own plan"
RESIZED: Final = "resize_"
COMPILED: Final = "compiled code allocates by its own plan, which nobody can run yet"


class Compiled(Exception):
    """A step that runs compiled code, in whole or in part."""


class Unfaithful(Exception):
    """A step that does not do on fake tensors what it does for real; the message says why.

    ``frames`` is the part of the traceback that is the user's, where their code raised.
    """

    def __init__(self, why: str, *, frames: str = "") -> None:
        super().__init__(why)
        self.frames = frames


class _Recorder:
    """Keeps what a step on fake tensors makes and frees on its device, and what it runs."""

    def __init__(self, device: Device, place: str, *, functions: FunctionsCalled | None) -> None:
        self.entries: list[Entry | Call] = []
        self.live: dict[int, int] = {}
        self.operators: set[str] = set()
        self._device, self._place = device, place
        self._numbers_elsewhere = device.place != place  # is the CPU asked in the place of it?
        self._functions, self._casts = functions, False
        self._phase = ""

    def mark(self, mark: Mark) -> None:
        """Keep a mark."""
        if isinstance(mark, Phase):
            self._phase = mark.name
        self.entries.append(mark)

    def created(self, one: Creation) -> None:
        """Keep what was made, unless it lies elsewhere: optimizers count steps on the host."""
        number = one.scalar and self._phase == "optimizer" and self._numbers_elsewhere
        if one.device == self._place and not number:
            self.live[one.key] = one.nbytes
            self.entries.append(Change(one.key, one.nbytes, one.op, cast=self._casts))

    def freed(self, one: Creation) -> None:
        """Keep what was freed."""
        if one.key in self.live:
            self.entries.append(Change(one.key, -self.live.pop(one.key), one.op))

    def resized(self, storage: UntypedStorage) -> None:
        """Keep that a storage has another size now, as sharding frees and fills its own."""
        name = storage_key(storage)
        if name in self.live:
            self.entries.append(Change(name, -self.live.pop(name), RESIZED))
        if nbytes := storage.nbytes():
            self.live[name] = nbytes
            self.entries.append(Change(name, nbytes, RESIZED))

    def called(self, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Keep a call that may allocate inside."""
        _check_call(func, args, kwargs, result)
        name = str(func.overloadpacket).replace(".", "::")
        self.operators.add(name)
        if func.namespace == "c10d":
            given = [one for one in tree_leaves(args) if isinstance(one, Tensor)]
            inside = self._device.inside_collective(name, given)
            self.entries += [Within(inside, name)] if inside else []
        self._casts = self._functions is not None and self._functions.makes_casts(func)
        if needs_probe(func, args):
            self.entries.append(Call.of(func, args, kwargs, result))


@cache
def load() -> None:
    """Import what a step on fake tensors takes, once for all children: a second and more.

    No backward pass: that starts autograd's threads where there is a GPU. Nor is one asked for.
    """
    importlib.import_module("torch._dynamo")
    mode = UnaskingFakeMode()
    with mode, EngineTracker(mode, on_create=lambda _: None):
        layer = nn.Linear(1, 1)
        torch.optim.SGD(layer.parameters(), lr=1.0)
        layer(torch.zeros(1, 1)).relu().mean()


def fake_step(cell: Cell, model: Model, device: Device, *, seed: int, here: bool) -> Outline:
    """Run a warm step on fake tensors and return its outline, in bytes asked for.

    Where the device is here, fake tensors are on it, and its own operators run. Without it they
    are on the CPU, and so are operators and their order: fake tensors of a CUDA device need a
    torch that has CUDA.
    """
    model.load()  # here: what a module makes when it is imported must not become fake
    place = device.place if here else "cpu"
    elsewhere = device.place != place  # is the CPU asked in the place of the device?
    functions = FunctionsCalled() if cell.autocast != "off" else None
    fake = _Recorder(device, place, functions=functions)
    marks = Marks(address=storage_key, unpacking=lambda: functions or nullcontext())
    mode = SharedFakeMode()
    tracker = EngineTracker(mode, on_create=fake.created, on_free=fake.freed, called=fake.called)
    uses_of_one_holder()  # it is asked here, where no step is under way
    threads = CallThreads(partial(_in_a_thread, mode, tracker, functions or nullcontext()))
    past = _seen_past_the_mode(states_elsewhere=elsewhere)
    resizing = _resizing(fake.resized) if cell.in_ranks else nullcontext()
    quiet = QuietCollectives() if cell.in_ranks else nullcontext()
    backward = backward_passes_of(tracker)
    modes = mode, threads, tracker, functions or nullcontext(), quiet, _BiasInPlace(), backward
    with fake_ranks(cell, place), _nothing_compiles(), past, resizing, ExitStack() as entered:
        for one in (*modes, in_sight(threads)):
            entered.enter_context(one)
        subject = _subject(cell, model, device, place, seed=seed, mode=mode, adopt=tracker.adopt)
        gc.collect()  # what building left to the collector: weights that quantization replaced
        numbers = HostNumbers()
        there_before = _real_tensors()
        subject = marks.around(subject)
        arm = make_arm(cell, subject)
        arm.renew()
        with marks.telling(fake.mark, subject.parameters()):
            steps(arm, 1)  # the first makes optimizer state
        for _ in range(WARM_UP_STEPS - 1):  # a cache is as full as in the measured step
            subject.clear_gradients()
            numbers.put_back()
            arm.renew()
            steps(arm, 1)
        subject.clear_gradients()
        numbers.put_back()
        arm.renew()
        resident = {
            key: block
            for key, block in marks.resident(subject, arm.provided()).items()
            if block.part != "optimizer_state" or key in fake.live
        }
        before = {key: block.nbytes for key, block in resident.items()} | fake.live
        fake.entries.clear()
        with marks.telling(fake.mark, subject.parameters()):
            steps(arm, 1)
        if numbers.drawn:
            raise Unfaithful(
                "its step draws random numbers of Python or NumPy, which may decide what it does"
            )
    _hold_that_none_is_real(there_before)
    return Outline(list(fake.entries), resident, before, frozenset(fake.operators))


class _BiasInPlace(TorchFunctionMode):
    """Adds the bias of a linear layer as torch does where no mode looks on: in place.

    So it does for inputs of several dimensions that are not contiguous; the others are one product.
    Raise `Unfaithful` where such a layer is inside an operator.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],  # torch's signature
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run a function."""
        if func is torch.nn.functional.linear and len(args) == 3 and _adds_a_bias(*args):
            x, weight, bias = args
            return torch.matmul(x, weight.t()).add_(bias)
        if func == torch.lstm and _projects_across(args):
            raise Unfaithful("its LSTM adds biases in place, inside of aten::lstm")
        return func(*args, **(kwargs or {}))


def _projects_across(args: Sequence[Any]) -> bool:
    """Return whether an LSTM with projections, which torch's own code runs, has its batch first.

    Then its input is transposed. Of a packed sequence the second argument is no pair of states.
    """
    _, states, *_, batch_first = args
    return batch_first is True and not isinstance(states, Tensor) and _differ(*states)


def _differ(hidden: Tensor, cell: Tensor) -> bool:
    return hidden.shape != cell.shape


def _adds_a_bias(x: Tensor, _weight: Tensor, bias: Tensor | None) -> bool:
    """Return whether a linear layer multiplies first, and then adds its bias."""
    casts = torch.is_autocast_enabled(x.device.type)
    return bias is not None and x.dim() != 2 and not x.is_contiguous() and not casts


@contextmanager
def _resizing(resized: Callable[[UntypedStorage], None]) -> Iterator[None]:
    """Say which storages are given another size, which no operator does: FSDP2 does it so."""
    own = torch.UntypedStorage.resize_

    def resize(storage: UntypedStorage, size: int) -> Any:
        result = own(storage, size)
        resized(storage)
        return result

    torch.UntypedStorage.resize_ = resize  # type: ignore[assignment,method-assign] # on purpose
    try:
        yield
    finally:
        torch.UntypedStorage.resize_ = own  # type: ignore[method-assign] # as it was


@contextmanager
def _in_a_thread(
    mode: SharedFakeMode, tracker: EngineTracker, functions: AbstractContextManager[object]
) -> Iterator[None]:
    """Enter in another thread of the step what its own has: modes are a thread's own."""
    with mode, tracker, functions, _BiasInPlace():
        yield


def _subject(
    cell: Cell,
    model: Model,
    device: Device,
    place: str,
    *,
    seed: int,
    mode: SharedFakeMode,
    adopt: Callable[[Tensor], None],
) -> Subject:
    model = fed(cell, model)

    def build_fake() -> nn.Module:
        module = fake_module(model.build, mode, place, seed=seed, adopt=adopt)
        _check(module)
        return module

    fakes = replace(
        model,
        build=build_fake,
        batch=lambda size: fake_batch(model.batch, mode, size),
    )
    subject = assemble(replace(cell, device=place), fakes, seed=seed, convert=remade)
    optimizer: Callable[..., torch.optim.Optimizer] = subject.optimizer
    return replace(subject, optimizer=partial(optimizer, foreach=device.foreach))


def _check_call(func: Any, args: Any, kwargs: Any, result: Any) -> None:
    """Raise `Unfaithful` where sizes depend on what is in a tensor, or are symbols."""
    for leaf in tensors_among((*args, *kwargs.values(), result)):
        name = str(func.overloadpacket).replace(".", "::")
        if leaf.layout is not torch.strided:
            raise Unfaithful(f"{name} works on a sparse tensor, whose size depends on its contents")
        if not func.is_view and (leaf.is_conj() or leaf.is_neg()):
            raise Unfaithful(f"{name} may write out a conjugate first, which takes its room")
        if not all(isinstance(size, int) for size in leaf.shape):
            raise Unfaithful(f"{name} returns a size that is a symbol")


def _check(module: nn.Module) -> None:
    """Raise where the module brings an executor of its own, which fake tensors do not meet."""
    for part in parts(module):
        if isinstance(part, torch._dynamo.OptimizedModule) or part._compiled_call_impl is not None:
            raise Compiled(COMPILED)
        if isinstance(part, torch.jit.ScriptModule):
            raise Unfaithful(SCRIPTED)
        if isinstance(part, torch.fx.GraphModule):
            raise Unfaithful("its graph was traced, and keeps the tensors that it was traced with")
        if isinstance(part, nn.parallel.DistributedDataParallel):
            raise Unfaithful("it keeps buckets of gradients, which fake tensors do not show")


@contextmanager
def _nothing_compiles() -> Iterator[None]:
    """Raise `Compiled` where a function that was given to `torch.compile` is called.

    Whoever did so imported the compiler; so does torch itself for each optimizer.
    """
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("fail_on_recompile"):
        try:
            yield
        except RuntimeError as error:
            if "fail_on_recompile" not in str(error):
                raise
            raise Compiled(COMPILED) from error


def _real_tensors() -> list[Tensor]:
    """Return the tensors of this process that have bytes: more than a number's."""
    return [
        one
        for one in gc.get_objects()
        if issubclass(type(one), Tensor)  # what a proxy says it is nobody asks
        and not isinstance(one, FakeTensor)
        and not is_traceable_wrapper_subclass(one)  # what it wraps is asked by itself
        and one.layout is torch.strided
        and one.numel() > 1  # fake tensors keep the numbers that they were made of
        and not one.is_meta
    ]


def _hold_that_none_is_real(there_before: Sequence[Tensor]) -> None:
    """Raise `Unfaithful` where a step keeps a tensor that it made past fake ones."""
    known = set(map(id, there_before))  # no other has one of these while they are kept
    if any(id(one) not in known for one in _real_tensors()):
        raise Unfaithful("its step keeps real tensors, which nobody counts: generators' states")


@contextmanager
def _seen_past_the_mode(*, states_elsewhere: bool) -> Iterator[None]:
    """Let `torch.get_rng_state` return fake tensors, which count: checkpointing keeps many.

    The generator makes them past the dispatcher, where nobody sees them; they lie on the host, and
    so are nothing where the CPU stands for another device. TorchScript's functions run there, and
    files are mapped there, whose whole size counts: both raise `Unfaithful`.
    """

    def scripted(*_args: object, **_kwargs: object) -> None:
        raise Unfaithful(SCRIPTED)

    def mapped(*_args: object, **_kwargs: object) -> None:
        raise Unfaithful("it maps a file of weights, all of which counts")

    random: Any = torch.random
    generator = random.default_generator
    maps, called = torch.UntypedStorage.from_file, torch.jit.ScriptFunction.__call__
    random.default_generator = _FakeStates(
        generator, nbytes=0 if states_elsewhere else generator.get_state().nbytes
    )
    torch.UntypedStorage.from_file = mapped  # type: ignore[assignment] # on purpose
    torch.jit.ScriptFunction.__call__ = scripted  # type: ignore[assignment,method-assign] # on purpose
    try:
        yield
    finally:
        torch.UntypedStorage.from_file = maps  # type: ignore[method-assign] # as it was
        torch.jit.ScriptFunction.__call__ = called  # type: ignore[method-assign] # as it was
        random.default_generator = generator


class _FakeStates:
    """torch's generator, as `torch.random` finds it: its states are fake, and have no numbers."""

    def __init__(self, generator: torch.Generator, *, nbytes: int) -> None:
        self._generator, self._nbytes = generator, nbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def get_state(self) -> Tensor:
        """Return a tensor of a state's size."""
        return torch.empty(self._nbytes, dtype=torch.uint8, device="cpu")

    def set_state(self, new_state: Tensor) -> None:
        """Do nothing: it has no numbers."""
