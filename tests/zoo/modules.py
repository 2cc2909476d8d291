"""Modules that people have, small: each keeps, sets, raises or lies where another does not.

A row names a factory by the path of this module, so that every way in builds it for itself.
"""

import _thread
import copy
import functools
import itertools
import os
import queue
import random
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.autograd import grad
from torch.utils.checkpoint import checkpoint

WIDTH = 16
AT_IMPORT = torch.zeros(10_000)  # nobody's, and no model's peak


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, 32), nn.Linear(32, 4)

    def forward(self, x):
        return self.last(self.first(x).relu())


READY = Plain()


class Lone(nn.Linear):
    """Its graph keeps its weight and its input, which are there without one."""

    def __init__(self):
        super().__init__(WIDTH, 4)


class Rotary(Plain):
    """A table made when it is first needed, in whatever mode that is."""

    table = None

    def forward(self, x):
        if self.table is None:
            self.table = torch.arange(WIDTH, dtype=x.dtype).cos()
        return super().forward(x * self.table)


class Growing(Plain):
    """A cache that every call makes longer."""

    def __init__(self):
        super().__init__()
        self.past = []

    def forward(self, x):
        self.past.append(super().forward(x))
        return torch.stack(self.past).sum(0)


class Bounded(Growing):
    """A cache that is full one day."""

    def forward(self, x):
        if len(self.past) >= 40:
            raise RuntimeError("the cache is full")
        return super().forward(x)


class Carrying(nn.Module):
    """A hidden state carried from call to call, detached."""

    def __init__(self):
        super().__init__()
        self.rnn, self.hidden = nn.GRU(WIDTH, 8, batch_first=True), None

    def forward(self, x):
        y, hidden = self.rnn(x[:, None], self.hidden)
        self.hidden = hidden.detach()
        return y


class Stepping(Plain):
    """Takes more the more often it was called, and counts in an object of its own."""

    class Count:
        __slots__ = ("calls",)

    def __init__(self):
        super().__init__()
        self.count = self.Count()
        self.count.calls = 0

    def forward(self, x):
        self.count.calls += 1
        return super().forward(x.repeat(self.count.calls, 1))


class Dropping(Plain):
    """Keeps as many rows as three generators of random numbers say."""

    def forward(self, x):
        kept = 1 + int(torch.rand(1) * 8) + random.randrange(8) + np.random.randint(8)
        return super().forward(x.repeat(kept, 1))


class Averaging(nn.Module):
    """BatchNorm changes buffers unseen, and trains no batch of one."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 32), nn.BatchNorm1d(32), nn.ReLU())

    def forward(self, x):
        return self.body(x)


class SwitchesOff(Plain):
    def forward(self, x):
        torch.set_grad_enabled(False)
        return super().forward(x)


class Serving(Plain):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class Particular(Plain):
    """Wrong in one mode, by an error that has nothing to do with graphs."""

    def forward(self, x):
        if not torch.is_grad_enabled():
            return x @ torch.ones(3, 3)
        return super().forward(x)


class Hungry(Plain):
    def forward(self, x):
        return super().forward(x) + torch.empty(2**48)


class Quits(Plain):
    def forward(self, x):
        if torch.is_inference_mode_enabled():
            sys.exit("enough of this")
        return super().forward(x)


class TrainsItself(Plain):
    """``train`` and ``eval`` are words for something else."""

    def train(self, loader):
        return loader

    def eval(self, loader):
        return loader


class Fixed(nn.Module):
    def forward(self, x):
        return x.relu() * 2


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(9, dtype=torch.cfloat))

    def forward(self, x):
        assert self.weight.is_complex()
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=WIDTH)


class Halved(nn.Module):
    """A body of bfloat16 that expects its inputs so."""

    def __init__(self, dtype=torch.bfloat16):
        super().__init__()
        self.dtype, self.body = dtype, Plain().to(dtype)

    def forward(self, x):
        assert x.dtype == self.dtype == self.body.first.weight.dtype
        return self.body(x).float()


class MixedDtypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inside, self.outside = Plain().bfloat16(), nn.Linear(4, 4)

    def forward(self, x):
        assert (x.dtype, self.inside.first.weight.dtype) == (torch.float32, torch.bfloat16)
        return self.outside(self.inside(x.bfloat16()).float().relu())


class Graph(nn.Module):
    """A sparse buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("adjacency", torch.eye(WIDTH).to_sparse())
        self.layer = Plain()

    def forward(self, x):
        return self.layer(torch.sparse.mm(self.adjacency, x.T).T)


class SparseGradients(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(50, 8, sparse=True), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.table((x.abs() * 10).long().clamp(max=49)).mean(1).relu())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.LazyLinear(32), nn.ReLU(), nn.LazyLinear(4))

    def forward(self, x):
        return self.body(x)


class Ragged(Plain):
    """A nested tensor on the way."""

    def forward(self, x):
        rows = torch.nested.as_nested_tensor(list(x.split(1)))
        return torch.nested.to_padded_tensor(self.first(rows).relu(), 0.0)


class FromNumpy(Plain):
    def __init__(self):
        super().__init__()
        weights = np.random.rand(32, WIDTH).astype("float32")
        self.first.weight = nn.Parameter(torch.from_numpy(weights))


class Mapped(Plain):
    def __init__(self):
        super().__init__()
        descriptor, path = tempfile.mkstemp()
        torch.save(self.state_dict(), path)
        self.load_state_dict(torch.load(path, mmap=True), assign=True)
        os.close(descriptor)
        Path(path).unlink()


class Tied(nn.Module):
    """One storage under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.last.weight = self.first.weight

    def forward(self, x):
        return self.last(self.first(x).relu())


class Littering(Plain):
    """Leaves a knot of garbage when it is built."""

    def __init__(self):
        super().__init__()
        knot = [torch.zeros(100_000)]
        knot.append(knot)


class Greedy(Plain):
    """Sets threads, and a default dtype, as it is built."""

    def __init__(self):
        super().__init__()
        torch.set_num_threads(2)


class Pooled(Plain):
    """The graph is built in another thread."""

    def forward(self, x):
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(super().forward, x).result()


class KeptPool(Plain):
    """The pool is made with the module, and its workers outlive each call."""

    def __init__(self):
        super().__init__()
        self.pool = ThreadPoolExecutor(1)

    def forward(self, x):
        return self.pool.submit(super().forward, x).result()


class InTurn(Plain):
    """Threads of its own, one after the other, each with a layer."""

    def forward(self, x):
        for layer in (self.first, self.last):
            made = []
            thread = threading.Thread(target=lambda f=layer, x=x, made=made: made.append(f(x)))
            thread.start()
            thread.join()
            (x,) = made
        return x


class OwnWorker(Plain):
    """A thread of its own that takes its work from a queue, where nobody sees it."""

    def __init__(self):
        super().__init__()
        self.given, self.done = queue.SimpleQueue(), queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def work(self):
        while True:
            self.done.put(super().forward(self.given.get()))

    def forward(self, x):
        self.given.put(x)
        return self.done.get()


class Raw(Plain):
    """Starts its threads past Python's own module for them."""

    def forward(self, x):
        done = queue.SimpleQueue()
        _thread.start_new_thread(lambda: done.put(Plain.forward(self, x)), ())
        return done.get(timeout=60)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.kept = x.clone()  # where no hook sees it
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.kept * gradient


class Hidden(Plain):
    def forward(self, x):
        return Square.apply(super().forward(x))


class Functional(Plain):
    def forward(self, x):
        return torch.func.grad(lambda one: super(Functional, self).forward(one).sum())(x)


class Encoder(nn.Module):
    """Takes torch's fused path where nothing is recorded and nobody has hooked on."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2)

    def forward(self, x):
        return self.body(x[:, None])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, 8, batch_first=True)

    def forward(self, x):
        return self.rnn(x[:, None])[0]


class Looking(nn.Module):
    """Looks at values as it is built and as it runs, and copies itself."""

    def __init__(self):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 1, 2)]
        self.body = copy.deepcopy(nn.ModuleList([Plain() for _ in rates]))

    def forward(self, x):
        return self.body[int(x.sum().item() > 0)](x)


class Streaming(Plain):
    def forward(self, x):
        for row in x.split(1):
            yield super().forward(row)


class Silent(Plain):
    def forward(self, x):
        super().forward(x)


@dataclass
class Answer:
    logits: torch.Tensor
    extra: dict


class Answering(Plain):
    def forward(self, x):
        return Answer(super().forward(x), {"features": [x]})


@dataclass
class Branch:
    value: torch.Tensor
    parent: "Branch | None" = None
    children: list["Branch"] = field(default_factory=list)
    later: torch.Tensor = field(init=False)


class Branching(Plain):
    """Returns a tree whose parts know their parents, and lack a field."""

    def forward(self, x):
        root = Branch(super().forward(x))
        root.children.append(Branch(root.value * 2, parent=root))
        return root


class Promising(Plain):
    """Returns before its work is done."""

    def __init__(self):
        super().__init__()
        self.pool = ThreadPoolExecutor(1)

    def forward(self, x):
        def work():
            time.sleep(0.01)
            return Plain.forward(self, x)

        return self.pool.submit(work)


class Profiling(Plain):
    """Runs torch's profiler in each call."""

    def forward(self, x):
        with torch.profiler.profile():
            return super().forward(x)


class Thrifty(Plain):
    """Recomputes what it does not save."""

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Normed(nn.Module):
    """Spectral norm: each call in training moves two buffers on, and none in eval() does."""

    def __init__(self):
        super().__init__()
        norm = nn.utils.parametrizations.spectral_norm
        self.body = nn.Sequential(norm(nn.Linear(WIDTH, 32)), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x):
        return self.body(x)


class Shadowed(Plain):
    """A slow copy of itself that follows in training, and answers otherwise."""

    def __init__(self):
        super().__init__()
        self.shadow = copy.deepcopy(Plain()).requires_grad_(requires_grad=False)
        self.shadow.load_state_dict(self.state_dict(), strict=False)

    def forward(self, x):
        if not self.training:
            return self.shadow(x)
        with torch.no_grad():
            for slow, fast in zip(self.shadow.parameters(), self.parameters(), strict=False):
                slow.lerp_(fast, 0.1)
        return super().forward(x)


class Forgetful(Plain):
    """Recomputes with the same dropped numbers, for which generators' states are kept."""

    def forward(self, x):
        return checkpoint(self.dropped, x, use_reentrant=False)

    def dropped(self, x):
        return nn.functional.dropout(super().forward(x), 0.5, training=True)


class Rewritten(Plain):
    """Hooks return another input and another output than they were given."""

    def __init__(self):
        super().__init__()
        self.first.register_forward_pre_hook(lambda _, given: (given[0] * 2,))
        self.first.register_forward_hook(lambda _, given, output: output + given[0].sum())


class Remembering(Plain):
    """All of a class share one list of past outputs, and a number of calls."""

    past: ClassVar = []
    calls = 0

    def forward(self, x):
        Remembering.calls += 1
        self.past.append(super().forward(x.repeat(Remembering.calls, 1)).sum(0))
        return torch.stack(self.past)


@functools.lru_cache
def cosines(size):
    return torch.arange(size, dtype=torch.float32).cos()


class Tabled(Plain):
    """A function remembers its table, whatever mode that was made in."""

    def forward(self, x):
        return self.last(self.first(x) * cosines(32))


CALLS = 0
PAST: list[torch.Tensor] = []


class Counting(Plain):
    """Counts its calls, and keeps outputs, in its file."""

    def forward(self, x):
        global CALLS  # noqa: PLW0603 # people do
        CALLS += 1
        PAST.append(super().forward(x.repeat(CALLS, 1)).sum(0))
        return torch.stack(PAST)


class Selling(Plain):
    """``parameters`` and ``zero_grad`` are its own, without torch's arguments."""

    def __init__(self):
        super().__init__()
        self.first.requires_grad_(requires_grad=False)

    def parameters(self):
        return list(self.last.parameters())

    def named_parameters(self):
        return self.last.named_parameters()

    def zero_grad(self):
        for parameter in self.parameters():
            parameter.grad = None


class Closed(Plain):
    """Takes no attribute once it is built, and counts in a private slot."""

    class Count:
        __slots__ = ("__calls",)

        def __init__(self):
            self.__calls = 0

        def next(self):
            self.__calls += 1
            return self.__calls

    def __init__(self):
        super().__init__()
        self.count = self.Count()
        self.closed = True

    def __setattr__(self, name, value):
        if vars(self).get("closed") and name != "training":
            raise AttributeError(f"{name} is none of mine")
        super().__setattr__(name, value)

    def forward(self, x):
        return super().forward(x.repeat(self.count.next(), 1))


class HooksOff(Plain):
    """Switches hooks on saved tensors off, in words of its own."""

    def forward(self, x):
        with torch.autograd.graph.disable_saved_tensors_hooks("no offloading in this block"):
            return super().forward(x)


class Skeleton(nn.Module):
    """Parameters stacked, and one of its modules on meta to call them by."""

    def __init__(self):
        super().__init__()
        stacked, _ = torch.func.stack_module_state([Plain() for _ in range(3)])
        self.names, self.stacked = list(stacked), nn.ParameterList(stacked.values())
        self.skeleton = Plain().to("meta")

    def forward(self, x):
        given = dict(zip(self.names, self.stacked, strict=True))

        def one(parameters, x):
            return torch.func.functional_call(self.skeleton, parameters, (x,))

        return torch.func.vmap(one, in_dims=(0, None))(given, x)


class Logged(torch.Tensor):
    """A tensor that notes the functions that it goes through."""

    names: ClassVar = set()

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.names.add(function.__name__)
        return super().__torch_function__(function, types, args, kwargs or {})


class Logging(Plain):
    def forward(self, x):
        return super().forward(x.as_subclass(Logged))


class Doubling(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return result * 2 if function is nn.functional.linear else result


class UnderMode(Plain):
    """A function mode of its own changes what its layers return."""

    def forward(self, x):
        with Doubling():
            return super().forward(x)


class Weighing(nn.Module):
    """Attention that returns its weights, too, and takes no fused operator."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

    def forward(self, x):
        rows = x[None]
        return self.attention(rows, rows, rows, need_weights=True)


class Sorted(nn.Module):
    """A packed sequence on the way into a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(WIDTH, 8, batch_first=True)

    def forward(self, x):
        lengths = torch.arange(len(x), 0, -1)
        rows = x[:, None].expand(-1, len(x), -1)
        packed = nn.utils.rnn.pack_padded_sequence(rows, lengths, batch_first=True)
        return nn.utils.rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


class Ensemble(nn.Module):
    """Three members at once: their parameters stacked, mapped over by torch.func."""

    def __init__(self):
        super().__init__()
        stacked, _ = torch.func.stack_module_state([Plain() for _ in range(3)])
        self.names = list(stacked)
        self.stacked = nn.ParameterList(stacked.values())
        self.skeleton = [Plain().to("meta")]  # in a list: its parameters are nobody's

    def forward(self, x):
        def one(parameters, x):
            return torch.func.functional_call(self.skeleton[0], parameters, (x,))

        given = dict(zip(self.names, self.stacked, strict=True))
        return torch.func.vmap(one, in_dims=(0, None))(given, x)


class Called(Plain):
    """Its parameters, scaled, are given to a call of its body."""

    def __init__(self):
        super().__init__()
        self.body = Plain()

    def forward(self, x):
        scaled = {name: one * 0.5 for name, one in self.body.named_parameters()}
        return torch.func.functional_call(self.body, scaled, (x,))


class Skipping(Plain):
    """Skips layers as generators of its own say: Python's, and both kinds of NumPy's."""

    def __init__(self):
        super().__init__()
        self.python = random.Random(1)
        self.old, self.new = np.random.RandomState(1), np.random.default_rng(1)

    def forward(self, x):
        rows = 1 + self.python.randrange(8) + self.old.randint(8) + int(self.new.integers(8))
        return super().forward(x.repeat(rows, 1))


class Local(Plain):
    """Keeps its outputs in a place of each thread's own."""

    def __init__(self):
        super().__init__()
        self.local = threading.local()

    def forward(self, x):
        past = vars(self.local).setdefault("past", [])
        past.append(super().forward(x))
        return torch.stack(past).sum(0)


class Curt(Plain):
    """``train`` returns nothing, and so does ``eval``."""

    def train(self, mode=True):
        super().train(mode)


class Mutating(Plain):
    """Changes the batch that it is given."""

    def forward(self, x):
        return super().forward(x.mul_(1.5))


class Strict(Plain):
    """Asks for deterministic kernels and for another default dtype as it is built."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        torch.use_deterministic_algorithms(mode=True)
        torch.set_default_dtype(torch.float64)


class Late(Plain):
    """Gets a parameter in its first call."""

    def forward(self, x):
        if "scale" not in self._parameters:
            self.scale = nn.Parameter(torch.ones(4))
        return super().forward(x) * self.scale


class Adapting(Plain):
    """Trains itself a little in each call, whatever the mode outside, and drops the gradients."""

    def forward(self, x):
        with torch.inference_mode(mode=False), torch.enable_grad():
            loss = super().forward(x.clone()).square().mean()
            torch.autograd.grad(loss, list(self.parameters()))
        return super().forward(x)


class Pulling(Plain):
    """Takes a derivative in its forward, and calls torch's function by a name of its own."""

    def forward(self, x):
        with torch.inference_mode(mode=False), torch.enable_grad():
            x = x.clone().requires_grad_()
            y = self.first(x).repeat(1, 8)
            (force,) = grad((y * 2).sum() + (y * 3).sum() + (y * 4).sum(), x)
        return super().forward(force)


class Holding(Plain):
    """A hook of the output keeps a tensor that autograd does not."""

    def forward(self, x):
        y = super().forward(x)
        noise = torch.rand_like(y)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient + noise)
        return y


class Borrowing(Plain):
    """Multiplies by numbers that lie in memory of NumPy's."""

    def forward(self, x):
        return super().forward(x) * torch.from_numpy(np.full((len(x), 4), 0.5, np.float32))


class Talking(Plain):
    """Prints a line in each call, to both streams."""

    def forward(self, x):
        sys.stdout.write("a line of the model's\n")
        sys.stderr.write("another\n")
        return super().forward(x)


def scripted():
    return torch.jit.script(nn.Sequential(nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 4)))


class Forks(Plain):
    """Its layers run at once where TorchScript runs them."""

    def forward(self, x):
        part = torch.jit.fork(self.first, x)
        return self.last(torch.jit.wait(part) + self.first(x).relu())


def forking():
    return torch.jit.script(Forks())


def partly_scripted():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), scripted())


def exported():
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(
        Plain().eval(), (torch.randn(4, WIDTH),), dynamic_shapes=({0: batch},)
    )
    return program.module()


def quantized():
    return torch.ao.quantization.quantize_dynamic(Plain().eval(), {nn.Linear}, torch.qint8)


def frozen():
    return Plain().requires_grad_(requires_grad=False)


def double():
    return Halved(torch.float64)


def refuses():
    raise FileNotFoundError("weights.bin is not here")


def no_module():
    return "a module"


class Waiting(Plain):
    """Waits, where ``TEST_GATE`` names a folder, until a file there has the size of its batch."""

    def forward(self, x):
        gate = os.environ.get("TEST_GATE")
        while gate and not Path(gate, str(len(x))).exists():
            time.sleep(0.01)
        return super().forward(x)


class Sleeper(Plain):
    """Steps of a third of a second, and one day it hangs."""

    calls = itertools.count()  # a class's number would be put back

    def forward(self, x):
        time.sleep(0.3 if next(self.calls) < 13 else 600)
        return super().forward(x)
