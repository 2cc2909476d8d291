"""An axis is one row: what deals with axes reads it from the field in `Cell`."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from builders import cell

import gradbench
from gradbench.errors import Impossible, UnknownName
from gradbench.experiment.axis import whole_number
from gradbench.experiment.matrix import AXES, Cell, Matrix
from gradbench.history import figures
from gradbench.store.jsonl import load

ROOT = Path(gradbench.__file__).parent.parent
REFERENCE = next((ROOT / "results/reference").glob("*.jsonl"))
ROW = """\
    backend: Annotated[
        str, Axis(plural="backends", help="eager, aot: of who knows.", values=("eager", "aot"))
    ] = "eager"

"""
SCRIPT = Path(__file__).with_name("one_axis_more.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What a copy of gradbench shows whose `Cell` has one row more, and nothing else."""
    folder = tmp_path_factory.mktemp("one_axis_more")
    copy = folder / "gradbench"
    shutil.copytree(ROOT / "gradbench", copy, ignore=shutil.ignore_patterns("*.pyc.*"))
    matrix = copy / "experiment/matrix.py"
    before, method, after = matrix.read_text("utf-8").partition("    def __post_init__(self)")
    matrix.write_text(before + ROW + method + after, "utf-8")
    paths = [str(folder), str(Path(__file__).parents[1])]
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(REFERENCE)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_a_row_more_is_a_field_of_cells_and_a_part_of_their_names(found):
    assert found["cell"] == [
        "eager",
        "inference[cpu-m-b32-no_grad]",
        "inference[cpu-m-b32-aot-no_grad]",
    ]
    assert found["refused"] == "unknown backend 'aott': did you mean 'aot'?"


def test_a_row_more_is_swept_by_matrices_and_files(found):
    assert found["matrix"] == found["toml"] == ["eager", "aot"]
    assert found["toml refused"] == (
        "FILE, line 5, backends: unknown backend 'aott': did you mean 'aot'?"
    )


def test_a_row_more_is_an_option(found):
    assert found["option"] == "eager, aot: of who knows."
    assert found["chosen"] == ["aot"]


def test_a_row_more_is_a_facet_of_the_page_where_cells_differ_in_it(found):
    assert 'data-facet="backend"' in found["page"]
    assert 'data-backend="aot"' in found["page"]
    assert 'data-facet="backend"' not in found["page without"]


def test_a_row_more_is_in_tables_and_every_export(found):
    assert found["frame"] == found["pack"] == ["aot", "eager"]
    assert found["exports"] == dict.fromkeys(found["exports"], True)


def test_a_row_more_is_in_the_keys_of_what_sets_it_and_leaves_old_records_theirs(found):
    assert found["key"]["backend"] == "aot"
    old = load(REFERENCE)
    assert found["old keys"] == [figures.key(one) for one in old.header.cells]
    assert found["old names"] == [str(one) for one in old.header.cells]


def test_an_axis_without_a_default_says_what_a_matrix_takes_or_must_be_named():
    assert [name for name, axis in AXES.items() if axis.default is None and not axis.swept] == [
        "model"
    ]
    with pytest.raises(Impossible, match="models is empty: name at least one value"):
        Matrix()


def test_axes_take_their_defaults_from_the_fields_of_a_cell():
    only = Cell(model="m", workload="inference", grad_mode="no_grad")
    said = {name: axis.default for name, axis in AXES.items() if axis.default is not None}
    assert {name: getattr(only, name) for name in said} == said
    assert list(AXES) == [field.name for field in fields(Cell)]


def test_a_matrix_reads_back_as_it_was_written():
    matrix = Matrix(models=["a"], batch_sizes=[1, 8], l2=["cold"])
    assert repr(matrix) == "Matrix(models=['a'], batch_sizes=[1, 8], l2=['cold'])"
    assert Matrix(models=("a",), batch_sizes=(1, 8), l2=("cold",)) == matrix


def test_an_axis_that_no_matrix_has_is_refused_with_a_way_out():
    with pytest.raises(UnknownName, match="unknown axis 'model': did you mean 'models'"):
        Matrix(model=["a"])


def test_values_given_as_text_come_out_as_the_field_has_them():
    for name, axis in AXES.items():
        value = getattr(cell(), name)
        assert axis.parse(str(value)) == value


@pytest.mark.parametrize("text", ["1", "32", "4096"])
def test_a_whole_number_is_read(text):
    assert whole_number("batch_size", text) == int(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "1e3", "²", " 8"])
def test_anything_else_is_no_whole_number(text):
    with pytest.raises(Impossible, match="batch-size must be a whole number"):
        whole_number("batch_size", text)
