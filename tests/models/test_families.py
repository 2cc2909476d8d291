"""Families of models that torch alone makes, tiny, in every workload that they can."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from models.held import Family, hold
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

from gradbench.experiment.matrix import OF_BATCHES
from gradbench.workloads.models import Model
from gradbench.workloads.trees import Batch

pytestmark = [
    pytest.mark.usefixtures("measured_here"),
    pytest.mark.slow,
    pytest.mark.thorough,
    pytest.mark.filterwarnings("ignore"),
]
WIDE = 16


def rows(size: int) -> Tensor:
    return torch.randn(size, WIDE)


class Body(nn.Module):
    """Two layers and a head, which others change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(WIDE, 4)

    def features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(WIDE, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, sequence: PackedSequence) -> Tensor:
        _, (hidden, _) = self.rnn(sequence)
        return self.head(hidden[-1])


def packed(size: int) -> PackedSequence:
    lengths = torch.arange(size, 0, -1) + 1
    return pack_padded_sequence(torch.randn(size, size + 1, WIDE), lengths, batch_first=True)


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Transformer(WIDE, 2, 1, 1, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDE, 4)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        return self.head(self.body(src, tgt))


def sentences(size: int) -> dict[str, Tensor]:
    return {"src": torch.randn(size, 5, WIDE), "tgt": torch.randn(size, 3, WIDE)}


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(50, WIDE, sparse=True), nn.Linear(WIDE, 4)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.table(words, offsets))


def bags(size: int) -> tuple[Tensor, Tensor]:
    return torch.randint(50, (3 * size,)), torch.arange(0, 3 * size, 3)


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.head = nn.Linear(WIDE, WIDE), nn.Linear(WIDE, 4)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        sent = self.message(nodes)[edges[0]]
        return self.head(torch.zeros_like(nodes).index_add(0, edges[1], sent))


def graph(size: int) -> Batch:
    edges = torch.randint(4 * size, (2, 8 * size))
    return Batch((torch.randn(4 * size, WIDE),), {"edges": edges})


@dataclass
class Rebuilt:
    image: Tensor
    mean: Tensor
    spread: Tensor


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(WIDE, 8), nn.Linear(4, WIDE)

    def forward(self, x: Tensor) -> Rebuilt:
        mean, spread = self.encoder(x).chunk(2, -1)
        return Rebuilt(self.head(mean + spread.exp() * torch.randn_like(mean)), mean, spread)


def evidence(output: object, x: Tensor) -> Tensor:
    if isinstance(output, Tensor):  # of the head alone
        return functional.mse_loss(output, x)
    divergence = (output.mean.square() + output.spread.exp() - output.spread).mean()
    return functional.mse_loss(output.image, x) + divergence


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class Custom(Body):
    def features(self, x: Tensor) -> Tensor:
        return Doubled.apply(super().features(x))


class Checkpointed(Body):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.reentrant = reentrant

    def features(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return checkpoint(
            lambda h: self.second(h.tanh()).tanh(), first, use_reentrant=self.reentrant
        )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(20, WIDE), nn.Linear(WIDE, WIDE)
        self.head = nn.Linear(WIDE, 20, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids)).relu())


def ids(size: int) -> Tensor:
    return torch.randint(20, (size, 5))


def parametrized() -> nn.Module:
    body = Body()
    parametrizations.weight_norm(body.first)
    parametrizations.orthogonal(body.second)
    return body


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.LazyLinear(WIDE), nn.Linear(WIDE, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class Spectral(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(WIDE // 2 + 1, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.rfft(x) * self.filter


def quantized() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Body().eval(), {nn.Linear}, torch.qint8)


def scripted() -> nn.Module:
    return torch.jit.script(nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh(), nn.Linear(WIDE, 4)))


def exported() -> nn.Module:
    return torch.export.export(Body().eval(), (rows(2),)).module()


class Detector(nn.Module):
    """Images of several sizes in a list; a dict of losses in training, boxes otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None):
        pooled = torch.stack([self.body(image[None]).mean((2, 3))[0] for image in images])
        boxes = self.head(pooled)
        if not self.training:
            return [{"boxes": box, "label": torch.tensor(1)} for box in boxes]
        wanted = torch.stack([target["box"] for target in targets])
        return {"boxes": functional.l1_loss(boxes, wanted), "size": boxes.square().mean()}


def scenes(size: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = [torch.rand(3, 8 + index, 8) for index in range(size)]
    return images, [{"box": torch.rand(4), "label": torch.tensor(1)} for _ in range(size)]


class Cached(nn.Module):
    """A decoder's attention over a cache of keys that is given with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.head = nn.Linear(WIDE, 3 * WIDE), nn.Linear(WIDE, 4)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor]) -> dict[str, object]:
        query, key, value = self.project(x).chunk(3, -1)
        keys, values = torch.cat([past[0], key], 1), torch.cat([past[1], value], 1)
        weights = (query @ keys.transpose(1, 2) / math.sqrt(WIDE)).softmax(-1)
        return {"logits": self.head(weights @ values), "past": (keys, values)}


def cached(size: int) -> dict[str, object]:
    past = (torch.randn(size, 6, WIDE), torch.randn(size, 6, WIDE))
    return {"x": torch.randn(size, 1, WIDE), "past": past}


def parallel() -> nn.Module:
    """Data-parallel in a group of one, which each process makes that builds it."""
    if not torch.distributed.is_initialized():
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    return nn.parallel.DistributedDataParallel(Body())


TRAINS = ("training", "training_reenabled", "frozen_backbone", "evaluate_then_train")
FAMILIES = {
    "body": Family(Model(Body, rows, head="head")),
    "lstm_packed": Family(Model(Recurrent, packed, head="head")),
    "transformer": Family(Model(Translator, sentences, head="head")),
    "embedding_bag_sparse": Family(Model(Bag, bags, head="head")),
    "gnn": Family(Model(Graph, graph, head="head")),
    "vae": Family(Model(Autoencoder, rows, loss=evidence, head="head")),
    "custom_function": Family(Model(Custom, rows, head="head")),
    "checkpoint": Family(
        Model(partial(Checkpointed, reentrant=False), rows, head="head"), counted=False
    ),
    "checkpoint_reentrant": Family(
        Model(partial(Checkpointed, reentrant=True), rows, head="head"), counted=False
    ),
    "tied": Family(Model(Tied, ids, head="head")),
    "parametrized": Family(Model(parametrized, rows, head="head")),
    "lazy": Family(Model(Lazy, rows, head="head")),
    "fft": Family(Model(Spectral, rows)),
    "quantized": Family(
        Model(quantized, rows, head="head"),
        cannot=dict.fromkeys(TRAINS, "no parameters to train"),
    ),
    # in one process with a cell that records, the executor keeps that one's plan
    "scripted": Family(
        Model(scripted, rows), refused={"inference_mode": "Inference tensors cannot be saved"}
    ),
    "exported": Family(Model(exported, rows)),
    "detector": Family(Model(Detector, scenes, head="head")),
    "cache": Family(Model(Cached, cached, head="head")),
    "ddp": Family(Model(parallel, rows, head="module.head")),
}


@pytest.mark.parametrize("workload", OF_BATCHES)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_figures_that_hold_in_every_workload_or_a_reason(name, workload):
    family = FAMILIES[name]
    if workload == "frozen_backbone" and family.model.head is None:
        pytest.skip("it has no head")
    hold(family, workload)
