"""A decoder of seven billion parameters, which no laptop holds, is predicted on one; by arithmetic.

Its shape is Llama 7B's: 32 layers of width 4096 with 32 heads, a gated MLP of 11008, 32,000 words.
What autograd keeps of a layer, in numbers a token:

- two norms: the input, the input over its root mean square, that times the weight (3 times the
  width), and the reciprocal root mean square itself: 2 * (3 * 4096 + 1)
- attention: query, key and value as they are multiplied, and the result: 4 * 4096; beside them a
  logarithm of a sum a head: 32
- the MLP: the gate before and after its activation, the other factor, the product: 4 * 11008

and of the head a last norm, 3 * 4096 + 1, and the scores of each word, 32,000, which nobody saves
but who asked for them.
"""

import json
import subprocess
import sys

import pytest

WIDTH, MLP, LAYERS, HEADS, WORDS, TOKENS = 4096, 11008, 32, 32, 32_000, 512
GIBIBYTE = 2**30
PARAMETERS = 2 * WORDS * WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * MLP + 2 * WIDTH) + WIDTH
LAYER = 2 * (3 * WIDTH + 1) + 4 * WIDTH + HEADS + 4 * MLP
SAVED = LAYERS * LAYER + 3 * WIDTH + 1

SCRIPT = f"""
import json, sys, time
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from gradbench.experiment.matrix import Cell
from gradbench.memory.predict import Predictor
from gradbench.workloads.models import Model

WIDTH, MLP, LAYERS, HEADS, WORDS, TOKENS = {WIDTH}, {MLP}, {LAYERS}, {HEADS}, {WORDS}, {TOKENS}


class Norm(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def turned(x, cos, sin):
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.before, self.between = Norm(), Norm()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(WIDTH, MLP, bias=False) for _ in range(2))
        self.down = nn.Linear(MLP, WIDTH, bias=False)

    def forward(self, x, cos, sin):
        normed = self.before(x)
        q, k, v = (
            layer(normed).view(*x.shape[:2], HEADS, -1).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(seen.transpose(1, 2).reshape(x.shape))
        normed = self.between(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm, self.head = Norm(), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids):
        size = WIDTH // HEADS
        rates = 1e4 ** -(torch.arange(0, size, 2) / size)
        angles = (torch.arange(ids.shape[1])[:, None] * rates).repeat(1, 2).to(self.head.weight)
        x = self.words(ids)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))


def batch(size):
    return torch.randint(WORDS, (size, TOKENS))


torch.set_num_threads(1)
began = time.perf_counter()
cell = Cell(model="decoder", batch_size=1, **json.loads(sys.argv[1]))
predictor, model = Predictor("cpu"), Model(Decoder, batch)
if sys.argv[2:]:
    fit = predictor.largest(cell, model, int(sys.argv[2]))
    found = dict(batch=fit.batch_size, peak=fit.peak_bytes, next=fit.next_bytes)
else:
    one = predictor.predict(cell, model)
    found = dict(peak=one.peak_bytes, parts=one.breakdown.parts, phase=one.breakdown.phase,
                 measured_at=one.measured_at)
mark = Path("/proc/self/status").read_text("utf-8").partition("VmHWM:")[2].split()[0]
import resource
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
found |= dict(resident=1024 * max(int(mark), child), seconds=time.perf_counter() - began)
print(json.dumps(found))
"""


def asked(axes, *budget):
    """What a process says that may take 4 GiB, and what it took."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_DATA, ({4 * GIBIBYTE},) * 2)\n"
    done = subprocess.run(
        [sys.executable, "-c", limited + SCRIPT, json.dumps(axes), *map(str, budget)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.thorough
def test_a_decoder_of_seven_billion_parameters_is_predicted_in_four_gibibytes():
    """Parameters to the byte; what is saved within 1%, for the last additions are kept, too."""
    found = asked({"workload": "inference", "grad_mode": "global_on"})
    assert found["parts"]["parameters"] == 4 * PARAMETERS
    assert found["parts"]["saved"] == pytest.approx(4 * TOKENS * SAVED, rel=0.01)
    assert found["parts"]["other"] == pytest.approx(4 * TOKENS * WORDS, rel=0.01)
    assert found["measured_at"] == []


@pytest.mark.slow
@pytest.mark.thorough
def test_its_training_in_half_precision_computes_no_product_of_its_size():
    """A processor without such instructions takes half a minute for one of its hundreds."""
    axes = {"workload": "training", "dtype": "bfloat16", "optimizer": "adamw"}
    found = asked({"grad_mode": "global_on", **axes})
    assert found["phase"] == "optimizer"
    assert found["parts"]["parameters"] == found["parts"]["gradients"] == 2 * PARAMETERS
    numbers = found["parts"]["optimizer_state"] - 2 * 2 * PARAMETERS
    assert 0 <= numbers <= 4 * (LAYERS * 9 + 3)  # a step count each
    assert found["measured_at"] == []
