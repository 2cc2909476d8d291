"""Where a cell comes from: what was recorded, or the benchmark that is marked for its workload."""

import subprocess
import sys
from pathlib import Path

import pytest
from builders import cell, measured_block, run_of, started

from gradbench.experiment.matrix import WORKLOADS
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.toml_config import places
from gradbench.exports.source_locations import SourceLocation, locator, nowhere, parse

ROOT = Path(__file__).parents[2]
SUITE = """
import pytest

@pytest.mark.slow
@pytest.mark.gradbench("inference")
def test_forward(gradbench_cell, gradbench):
    gradbench()


class TestMore:
    @pytest.mark.gradbench(workload="training")
    def test_step(self, gradbench_cell, gradbench): ...
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "benchmarks" / "deep").mkdir(parents=True)
    (tmp_path / "benchmarks" / "deep" / "test_mine.py").write_text(SUITE, "utf-8")
    return tmp_path


def test_a_cell_is_at_the_function_that_is_marked_for_its_workload(folder):
    locate = locator([], folder)
    assert locate(cell()) == SourceLocation("benchmarks/deep/test_mine.py", 6)
    assert locate(cell(workload="training")) == SourceLocation("benchmarks/deep/test_mine.py", 12)
    assert locate(cell(workload="frozen_backbone")) is None


def test_a_bare_marker_stands_for_every_workload(folder):
    suite = "import pytest\n\n@pytest.mark.gradbench\ndef test_all(gradbench_cell): ...\n"
    (folder / "benchmarks" / "test_all.py").write_text(suite, "utf-8")
    locate = locator([], folder)
    assert locate(cell(workload="frozen_backbone")) == SourceLocation("benchmarks/test_all.py", 4)


def test_what_a_run_recorded_comes_first(folder):
    outcomes = measured_block(["no_grad"])
    member = outcomes[0].cell
    opening = started([member], places={str(member): "suite/test_x.py:7", "other": "no line"})
    locate = locator([run_of([opening, *outcomes])], folder)
    assert locate(member) == SourceLocation("suite/test_x.py", 7)
    assert locate(cell("global_on")) == SourceLocation("benchmarks/deep/test_mine.py", 6)


def test_files_are_counted_from_the_repository_where_it_is_above(folder):
    locate = locator([], folder, repository=folder.parent)
    assert locate(cell()).file == f"{folder.name}/benchmarks/deep/test_mine.py"
    elsewhere = locator([], folder, repository=Path("/nowhere"))
    assert elsewhere(cell()).file == "benchmarks/deep/test_mine.py"


@pytest.mark.parametrize("path", ["shop/nets.py", "shop/nets/__init__.py", "src/shop/nets.py"])
@pytest.mark.parametrize(("name", "line"), [("make", 4), ("Net", 1), ("Net.tiny", 1)])
def test_a_model_given_by_path_is_at_its_factory(name, line, path, folder):
    (folder / path).parent.mkdir(parents=True)
    source = "class Net:\n    def tiny(): ...\n\ndef make(): ...\n"
    (folder / path).write_text(source, "utf-8")
    locate = locator([], folder)
    assert locate(cell(model=f"shop.nets:{name}")) == SourceLocation(path, line)
    in_file = ModelSource(build=f"{path}:{name}")
    opening = started([cell(model="mine")], sources={"mine": in_file})
    assert locator([run_of([opening])], folder)(cell(model="mine")) == SourceLocation(path, line)
    for unknown in ("shop.nets:other", "shop.other:make", "../shop:make", ":make", "shop.nets:"):
        assert locate(cell(model=unknown)) == SourceLocation("benchmarks/deep/test_mine.py", 6)


@pytest.mark.parametrize("content", [b"def test_(:", b"\xff\xfe", b"\0"])
def test_a_file_that_is_not_python_is_passed_over(content, folder):
    (folder / "benchmarks" / "broken.py").write_bytes(content)
    assert locator([], folder)(cell()) is not None


def test_our_own_benchmarks_have_a_line_for_every_workload():
    source = (ROOT / "benchmarks" / "test_grad_modes.py").read_text("utf-8").splitlines()
    locate = locator([], ROOT)
    for workload in WORKLOADS:
        place = locate(cell(workload=workload))
        assert place.file == "benchmarks/test_grad_modes.py"
        assert source[place.line - 1].startswith(f"def test_{workload}(")


def test_nowhere_is_no_place():
    assert nowhere(cell()) is None


@pytest.mark.parametrize("text", ["", "a.py", "a.py:", ":3", "a.py:0", "a.py:x"])
def test_what_is_not_file_and_line_is_no_place(text):
    assert parse(text) is None


def test_a_place_reads_as_it_is_written():
    assert str(parse("C:/a b.py:12")) == "C:/a b.py:12"


CONFIG = """
about = "two"

[[matrix]]
batch_sizes = [1]
models = ["mlp_tiny"]

[[matrix]]
models = ["mlp_tiny", "cnn_small"]
batch_sizes = [8]
"""


def test_a_cell_of_a_toml_file_is_at_its_table_s_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("bench.toml")
    path.write_text(CONFIG, "utf-8")
    members = [
        cell(batch_size=1),
        cell(batch_size=8),
        cell(batch_size=8, model="cnn_small"),
        cell(batch_size=64),  # of an option: no table has it, so the first with its model
        cell(model="mlp_deep"),  # of an option too
    ]
    found = places(path, members)
    assert [found.get(str(member)) for member in members] == [
        "bench.toml:6",
        "bench.toml:9",
        "bench.toml:9",
        "bench.toml:6",
        None,
    ]


def test_a_file_in_another_of_toml_s_ways_has_no_lines_rather_than_wrong_ones(tmp_path):
    path = tmp_path / "inline.toml"
    path.write_text('matrix = [{ models = ["mlp_tiny"] }]\n', "utf-8")
    assert places(path, [cell()]) == {}


def test_reading_places_imports_nothing_of_the_user_s(folder):
    (folder / "benchmarks" / "test_mine.py").write_text("raise SystemExit('ran')\n", "utf-8")
    script = (
        "import sys; from pathlib import Path\n"
        "from gradbench.exports.source_locations import locator\n"
        "locator([], Path()); print({'torch', 'pandas'} & set(sys.modules) or 'light')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["light"]
