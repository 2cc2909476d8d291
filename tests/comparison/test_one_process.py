"""Two versions in one process where they keep to themselves, in pairs of processes where not."""

import sys

import pytest
from patience import PATIENCE_S
from two_trees import written

from gradbench.analysis.operation_changes import in_words
from gradbench.comparison import checkouts
from gradbench.comparison.replicate_effort import Replication
from gradbench.comparison.replication import Replicator
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource

QUICK = Replication(
    warm_up_s=0.0,
    limit_s=PATIENCE_S,
    cell_s=0.0,
    least_rounds=4,
    turns=3,
    least_turns=3,
    slice_s=0.001,
)


@pytest.fixture
def versions(tmp_path):
    """A base and a candidate that differ in an operator, a name and a setting."""
    measuring = tmp_path / "measuring"
    measuring.mkdir()
    (measuring / "gradbench").symlink_to(checkouts.PACKAGE, target_is_directory=True)
    return [
        checkouts.Version(
            name=name,
            python=sys.executable,
            paths=(written(tmp_path / name, name), measuring),
            tree=tmp_path / name,
        )
        for name in checkouts.SIDES
    ]


def replicated(versions, name):
    """Examine a model of the trees and make a replicate; return its results, and its cell."""
    cell = Cell(model=name, workload="inference", grad_mode="global_on", batch_size=4)
    source = ModelSource(build=f"{name}:make", input=("B,8",))
    replicator = Replicator(*versions, replication=QUICK, sources={name: source})
    replicator.examine([cell])
    replicator.replicate([cell])
    assert replicator.results.failures == {}
    assert len(replicator.results.replicates[cell]) == 1
    return replicator.results, cell


@pytest.mark.slow
def test_sides_that_keep_to_themselves_share_a_process_and_each_runs_its_own_code(versions):
    results, cell = replicated(versions, "plain")
    assert results.apart == {}
    assert in_words(*results.operations[cell]) == (
        "operators: -1 aten.detach, or an output that is saved, +1 aten.sin.default, "
        "-1 aten.tanh.default; saved +256 B; peak +64 B"
    )
    assert len(results.replicates[cell][0].base_ns) == 1  # four rounds are one turn


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("sets", "float32 matmul precision is highest on the base and high on the candidate"),
        pytest.param(
            "registers",
            "it calls torch.library.Library('shop_of_a_test'), which registers for",
            marks=pytest.mark.thorough,
        ),
        pytest.param(
            "patches",
            "it puts its own code into torch.nn.functional.relu_of_a_test",
            marks=pytest.mark.thorough,
        ),
    ],
)
def test_sides_that_would_share_more_than_they_may_take_turns_in_pairs(versions, name, why):
    results, cell = replicated(versions, name)
    assert why in results.apart[cell]
    assert len(results.replicates[cell][0].base_ns) == QUICK.turns
