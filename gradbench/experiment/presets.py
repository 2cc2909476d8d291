"""Ready-made experiments, by name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from .matrix import OF_BATCHES, OF_RANKS, OF_TOKENS, Cell, Matrix, unique
from .model_source import ModelSource
from .plan import Plan

ONE_PASS: Final = ("inference", "training", "training_reenabled", "frozen_backbone")
"""Workloads whose step is one pass over a batch; of the others, ready-made experiments have few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Several matrices measured as one, and how hard."""

    about: str
    matrices: tuple[Matrix, ...]
    plan: Plan
    sources: Mapping[str, ModelSource] = field(default_factory=dict)  # of models not built in

    def __iter__(self) -> Iterator[Cell]:
        return iter(unique(cell for matrix in self.matrices for cell in matrix))


PRESETS: Final[Mapping[str, Experiment]] = {
    "tiny": Experiment(
        about="small models in the workloads of one pass, for CI: under a minute on two cores",
        matrices=(
            Matrix(models=["mlp_tiny"], workloads=ONE_PASS, batch_sizes=[8]),
            Matrix(models=["cnn_small"], workloads=["inference", "training"], batch_sizes=[2]),
        ),
        plan=Plan(budget_s=1.0, warmup_s=0.1, limit_s=60),
    ),
    "quick": Experiment(
        about="every model, every workload of one process, at a laptop's sizes: under five minutes",
        matrices=(
            Matrix(models=["mlp_tiny"], workloads=ONE_PASS, batch_sizes=[1]),
            Matrix(models=["mlp_deep"], workloads=ONE_PASS, batch_sizes=[32]),
            Matrix(models=["mlp_deep"], batch_sizes=[1, 128, 512]),
            Matrix(models=["mlp_wide"], workloads=["inference", "training"], batch_sizes=[32]),
            Matrix(models=["cnn_small"], workloads=ONE_PASS, batch_sizes=[8]),
            Matrix(models=["cnn_small"], batch_sizes=[1, 32]),
            Matrix(models=["resnet18_32"], workloads=["inference", "training"], batch_sizes=[4]),
            Matrix(models=["attention_rotary"], workloads=["evaluate_then_train"], batch_sizes=[8]),
            Matrix(models=["decoder_tiny"], workloads=OF_TOKENS, batch_sizes=[1]),
        ),
        plan=Plan(budget_s=4.0),
    ),
    "full": Experiment(
        about="every axis, dtypes, formats, threads, ranks and torch.compile too: hours on a CPU",
        matrices=(
            Matrix(
                models=["mlp_tiny", "mlp_deep", "mlp_wide", "cnn_small", "resnet18_32"],
                workloads=ONE_PASS,
                batch_sizes=[1, 8, 32, 128, 512],
            ),
            Matrix(
                models=["mlp_tiny", "cnn_small", "resnet18_32", "attention_rotary"],
                workloads=["evaluate_then_train"],
                batch_sizes=[8, 32],
            ),
            Matrix(models=["resnet18_224"], workloads=ONE_PASS, batch_sizes=[1, 8, 32]),
            Matrix(
                models=["mlp_deep", "mlp_wide", "cnn_small", "resnet18_32"],
                workloads=["inference", "training"],
                dtypes=["bfloat16", "float16"],
            ),
            Matrix(
                models=["cnn_small", "resnet18_32", "resnet18_224"],
                workloads=["inference", "training"],
                batch_sizes=[8],
                memory_formats=["channels_last"],
            ),
            Matrix(
                models=["mlp_wide", "resnet18_32"],
                workloads=["inference", "training"],
                threads=[2, 4],
            ),
            Matrix(
                models=["mlp_tiny", "mlp_deep", "cnn_small"],
                workloads=["inference", "training"],
                compile=["default", "reduce-overhead", "max-autotune"],
            ),
            Matrix(
                models=["mlp_wide", "resnet18_32"],
                workloads=["inference", "training"],
                autocasts=["bfloat16", "float16"],
            ),
            Matrix(
                models=["mlp_deep", "resnet18_32", "resnet18_224"],
                workloads=["training", "training_reenabled", "frozen_backbone"],
                batch_sizes=[8],
                checkpointing=["off", "blocks"],
            ),
            Matrix(models=["decoder_tiny"], workloads=OF_BATCHES, batch_sizes=[1, 8]),
            Matrix(
                models=["decoder_tiny"],
                workloads=OF_TOKENS,
                batch_sizes=[1, 8],
                prompts=[32, 512],
                new_tokens=[32, 128],
            ),
            Matrix(models=["decoder_d12_w768"], workloads=OF_TOKENS, batch_sizes=[1]),
            Matrix(
                models=["mlp_deep", "resnet18_32", "decoder_tiny"],
                workloads=OF_RANKS,
                batch_sizes=[8],
                world_sizes=[2],
            ),
        ),
        plan=Plan(budget_s=10.0, min_rounds=20, limit_s=1800),
    ),
}
