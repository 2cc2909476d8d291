"""Every grad mode, for every cell of the chosen matrix: one test a cell, one function a workload.

Run with ``pytest --benchmark-only`` from the root; ``--gradbench-preset`` chooses the matrix. Each
function is written out: it is the line that CI's annotations of its workload point at.
"""

from collections.abc import Callable

import pytest


@pytest.mark.gradbench("inference")
def test_inference(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("training")
def test_training(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("training_reenabled")
def test_training_reenabled(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("frozen_backbone")
def test_frozen_backbone(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("evaluate_then_train")
def test_evaluate_then_train(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("prefill")
def test_prefill(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("decode")
def test_decode(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("generate")
def test_generate(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("inference_ddp")
def test_inference_ddp(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("training_ddp")
def test_training_ddp(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("inference_fsdp2")
def test_inference_fsdp2(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()


@pytest.mark.gradbench("training_fsdp2")
def test_training_fsdp2(gradbench_cell: object, gradbench: Callable[[], None]) -> None:
    gradbench()
