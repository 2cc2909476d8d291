"""Where in a TOML file a key or a value stands."""

import os

import pytest

from gradbench.errors import BadConfig
from gradbench.experiment.toml_file import TomlFile

TEXT = """\
# matrix = "no, a comment"
about = "x = 1"

[[matrix]]
models = [
    "mlp_deep",  # batch_sizes = 3
    "a=b",
]
"batch_sizes" = [1]
[ "plan" ] # how hard
seed = 1
[[ matrix ]]
workloads = ['training']
[tool.gradbench.gate.meters."step_time/no_grad"]
tolerance = 0.1
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "bench.toml"
    path.write_text(TEXT, "utf-8")
    return TomlFile.read(path)


@pytest.mark.parametrize(
    ("key", "header", "table", "line"),
    [
        ("about", "", 0, 2),
        ("plan", "", 0, 10),
        ("matrix", "", 0, 4),
        ("models", "[[matrix]]", 0, 5),
        ("batch_sizes", "[[matrix]]", 0, 9),
        ("seed", "[plan]", 0, 11),
        ("workloads", "[[matrix]]", 1, 13),
        ("models", "[[matrix]]", 1, None),
        ("tolerance", "[tool.gradbench.gate.meters.step_time/no_grad]", 0, 15),
        ("x", "", 0, None),
    ],
)
def test_a_key_is_found_in_its_own_table_and_in_no_comment_or_value(file, key, header, table, line):
    assert file.line(key, header=header, table=table) == line
    where = f"{file.path}, line {line}, {key}: " if line else f"{file.path}, {key}: "
    assert file.at(key, header=header, table=table) == where


def test_tables_of_one_header_are_found_in_their_order(file):
    assert file.tables("[[matrix]]") == [4, 12]


def test_a_value_is_found_with_the_key_that_it_belongs_to(file):
    assert file.at_value("mlp_deep", key="model") == f"{file.path}, line 6, models: "
    assert file.at_value("a=b", key="model") == f"{file.path}, line 7, models: "
    assert file.at_value("training", key="workload") == f"{file.path}, line 13, workloads: "
    assert file.at_value("mlp_wide", key="model") == ""


def test_every_key_that_the_parser_finds_is_found_in_the_text(file):
    tables = {"[plan]": [file.tree["plan"]], "[[matrix]]": file.tree["matrix"]}
    for header, of_header in tables.items():
        for index, table in enumerate(of_header):
            for key in table:
                assert file.line(key, header=header, table=index) is not None


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\xff", "not UTF-8 text"), (b"a = ", "Invalid value"), (None, "there is no such file")],
)
def test_what_is_no_toml_is_refused_with_the_file_s_name(tmp_path, content, words):
    path = tmp_path / "bench.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BadConfig, match=words) as refused:
        TomlFile.read(path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("place", [os.devnull, "a pipe"])
def test_what_is_no_regular_file_is_not_read(place, tmp_path):
    path = tmp_path / place
    if not path.exists():
        os.mkfifo(path)
    with pytest.raises(BadConfig, match="it is no regular file: write it to one"):
        TomlFile.read(path)


def test_a_mark_of_the_encoding_before_the_text_is_none_of_it(tmp_path):
    path = tmp_path / "bench.toml"
    path.write_bytes(b'\xef\xbb\xbfabout = "ours"\r\n')
    file = TomlFile.read(path)
    assert file.tree == {"about": "ours"}
    assert file.line("about", header="") == 1
