"""Axes in, cells out."""

import inspect
import pickle
from dataclasses import replace

import pytest
from builders import block, cell

from gradbench.errors import Impossible, UnknownName
from gradbench.experiment.matrix import (
    AXES,
    AXIS_OF,
    GRAD_MODES,
    Cell,
    Matrix,
    by_block,
    select,
    unique,
)

DTYPES, COMPILE = AXES["dtype"].values, AXES["compile"].values


def test_a_matrix_is_the_full_factorial_of_its_axes():
    matrix = Matrix(
        models=["a", "b"], batch_sizes=[1, 8], dtypes=DTYPES, threads=[1, 2], compile=COMPILE
    )
    cells = list(matrix)
    assert len(cells) == len(set(cells)) == 2 * len(GRAD_MODES) * 2 * len(DTYPES) * 2 * len(COMPILE)
    assert {(c.model, c.batch_size, c.compile) for c in cells} == {
        (model, size, compiled) for model in "ab" for size in (1, 8) for compiled in COMPILE
    }


def test_grad_modes_vary_fastest_and_the_other_axes_in_declared_order():
    cells = list(Matrix(models=["a", "b"], workloads=["inference", "training"], threads=[1, 2]))
    assert [c.grad_mode for c in cells] == [*GRAD_MODES] * 8
    assert [(c.model, c.workload, c.threads) for c in cells[:: len(GRAD_MODES)]] == [
        (model, workload, threads)
        for model in "ab"
        for workload in ("inference", "training")
        for threads in (1, 2)
    ]


def test_cells_of_a_block_are_neighbours():
    cells = list(Matrix(models=["a", "b"], batch_sizes=[1, 2]))
    assert [c for members in by_block(cells).values() for c in members] == cells


def test_a_matrix_has_the_axes_of_a_cell_pluralised_in_order():
    names = list(inspect.signature(Matrix).parameters)
    assert list(AXIS_OF) == names
    assert list(AXIS_OF.values()) == list(AXES)
    for name, axis in AXIS_OF.items():
        assert name in (axis, f"{axis}s", f"{axis[:-1]}ies"), f"{name} is no plural of {axis}"


def test_a_matrix_of_defaults_makes_cells_of_defaults():
    only = next(iter(Matrix(models=["m"])))
    assert only == Cell(model="m", workload="inference", grad_mode=GRAD_MODES[0])


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        ({}, "cpu-mlp_tiny-b8-no_grad"),
        ({"device": "cuda:1", "batch_size": 32}, "cuda:1-mlp_tiny-b32-no_grad"),
        ({"dtype": "bfloat16", "threads": 2}, "cpu-mlp_tiny-b8-bfloat16-t2-no_grad"),
        (
            {"memory_format": "channels_last", "compile": "default"},
            "cpu-mlp_tiny-b8-channels_last-compiled-no_grad",
        ),
        ({"compile": "max-autotune"}, "cpu-mlp_tiny-b8-compiled_max-autotune-no_grad"),
        ({"checkpointing": "blocks"}, "cpu-mlp_tiny-b8-checkpointed-no_grad"),
    ],
)
def test_an_id_leaves_defaults_out(axes, expected):
    assert cell("no_grad", **axes).id == expected


def test_ids_are_apart_wherever_cells_are_within_a_workload():
    cells = list(
        Matrix(
            models=["a", "b"],
            batch_sizes=[1, 8],
            dtypes=DTYPES,
            threads=[1, 2],
            memory_formats=["contiguous", "channels_last"],
            compile=COMPILE,
        )
    )
    assert len({c.id for c in cells}) == len(cells)


def test_a_cell_and_its_block_read_as_the_workload_of_a_setting():
    assert str(cell("no_grad", workload="training")) == "training[cpu-mlp_tiny-b8-no_grad]"
    assert str(cell("no_grad", workload="training").block) == "training[cpu-mlp_tiny-b8]"


def test_axes_lists_every_axis_by_name_in_order_and_builds_the_cell_again():
    one = cell("inference_mode", threads=4)
    assert list(one.axes()) == list(AXES)
    assert Cell(**one.axes()) == one


def test_cells_pass_between_processes_unchanged():
    assert pickle.loads(pickle.dumps(cell("no_grad"))) == cell("no_grad")


def test_cells_that_differ_only_in_grad_mode_share_a_block():
    assert len({c.block for c in block()}) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"model": "mlp_deep"},
        {"workload": "training"},
        {"device": "cuda"},
        {"batch_size": 9},
        {"dtype": "float16"},
        {"threads": 2},
        {"memory_format": "channels_last"},
        {"compile": "default"},
        {"checkpointing": "blocks"},
    ],
    ids=lambda axes: next(iter(axes)),
)
def test_cells_that_differ_in_another_axis_are_in_different_blocks(other):
    assert cell().block != cell(**other).block


def test_repeats_are_dropped_and_scattered_cells_of_a_block_come_together():
    first, second = block(batch_size=1), block(batch_size=2)
    scattered = [first[0], second[0], first[1], first[0], second[1], second[0]]
    assert unique(scattered) == [*first[:2], *second[:2]]
    assert by_block(scattered) == {first[0].block: first[:2], second[0].block: second[:2]}


def test_selecting_a_value_that_cells_have_keeps_those_cells():
    cells = list(Matrix(models=["a", "b"], batch_sizes=[1, 8]))
    assert select(cells, "model", ["b"]) == [c for c in cells if c.model == "b"]
    assert {c.grad_mode for c in select(cells, "grad_mode", ["no_grad"])} == {"no_grad"}


def test_selecting_a_value_that_no_cell_has_moves_every_cell_there():
    cells = list(Matrix(models=["a", "b"], batch_sizes=[1, 8]))
    moved = select(cells, "device", ["cuda"])
    assert moved == list(Matrix(models=["a", "b"], batch_sizes=[1, 8], devices=["cuda"]))


def test_selecting_some_that_are_there_and_some_that_are_not_keeps_and_adds():
    cells = list(Matrix(models=["a", "b"], batch_sizes=[1, 8], grad_modes=["no_grad"]))
    mixed = select(cells, "batch_size", [8, 4096])
    assert [(c.model, c.batch_size) for c in mixed] == [
        ("a", 8),
        ("b", 8),
        ("a", 4096),
        ("b", 4096),
    ]


def test_what_older_records_call_on_is_the_cell_of_today_and_no_value_to_ask_for():
    old = Cell(model="m", workload="inference", grad_mode="no_grad", compile="on")
    assert old == replace(old, compile="default")
    with pytest.raises(UnknownName, match="unknown compile 'on'"):
        select(block(), "compile", ["on"])


def test_a_value_that_some_cells_have_is_not_given_to_the_others():
    small, large = cell(model="a", batch_size=1), cell(model="b", batch_size=8)
    assert select([small, large], "batch_size", [8]) == [large]


def test_selecting_repeats_no_cell():
    cells = list(Matrix(models=["a"], batch_sizes=[1, 2, 4]))
    chosen = select(cells, "batch_size", [64, 64])
    assert len(chosen) == len(set(chosen)) == len(GRAD_MODES)


def test_selecting_an_impossible_value_is_refused():
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        select(block(), "dtype", ["bfloat61"])


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"grad_modes": ["nograd"]}, "unknown grad mode 'nograd': did you mean 'no_grad'?"),
        ({"workloads": ["inferense"]}, "unknown workload 'inferense': did you mean 'inference'?"),
        ({"dtypes": ["x"]}, "unknown dtype 'x': known: as_is, bfloat16, float16, float32"),
        ({"compile": [True]}, "known: default, max-autotune, off, reduce-overhead"),
        ({"compile": ["on"]}, "unknown compile 'on'"),
        ({"memory_formats": ["channels_first"]}, "did you mean 'channels_last'?"),
    ],
)
def test_an_unknown_name_is_named_with_a_way_out(axes, said):
    with pytest.raises(UnknownName) as caught:
        Matrix(models=["m"], **axes)
    assert said in str(caught.value)
    assert caught.value.axis == AXIS_OF[next(iter(axes))]


@pytest.mark.parametrize(
    ("axes", "said"),
    [
        ({"models": "mlp_tiny"}, "models takes a list of values, not 'mlp_tiny'"),
        ({"threads": 2}, "threads takes a list of values, not 2"),
        ({"grad_modes": []}, "grad_modes is empty"),
        ({"models": ()}, "models is empty"),
        ({"batch_sizes": [1, 0]}, "batch_size must be a whole number from 1 up, not 0"),
        ({"batch_sizes": [True]}, "batch_size must be a whole number from 1 up, not True"),
        ({"batch_sizes": [1.0]}, "batch_size must be a whole number from 1 up, not 1.0"),
        ({"threads": [-1]}, "threads must be a whole number from 1 up, not -1"),
        ({"threads": ["2"]}, "threads must be a whole number from 1 up, not '2'"),
    ],
)
def test_a_value_that_no_axis_can_have_is_refused_where_it_is_written(axes, said):
    with pytest.raises(Impossible) as caught:
        Matrix(**{"models": ["m"]} | axes)
    assert said in str(caught.value)


@pytest.mark.parametrize("axes", [{"models": [3]}, {"models": [["a"]]}, {"devices": [0]}])
def test_a_model_or_device_that_is_not_a_name_is_refused(axes):
    with pytest.raises(Impossible):
        Matrix(**{"models": ["m"]} | axes)


@pytest.mark.parametrize("name", ["cuda", "xpu"])
def test_the_first_device_of_a_family_has_one_key(name):
    first, second = cell(device=f"{name}:0"), cell(device=f"{name}:1")
    assert (first, first.id, first.block) == (
        cell(device=name),
        cell(device=name).id,
        cell(device=name).block,
    )
    assert (first.device, second.device) == (name, f"{name}:1")
    cells = [cell(device=name), second]
    assert select(cells, "device", [f"{name}:0"]) == [first]
    assert len(unique(Matrix(models=["m"], devices=[name, f"{name}:0"]))) == len(GRAD_MODES)
