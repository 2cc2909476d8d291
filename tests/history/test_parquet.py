"""A pack holds what the runs hold, for whoever reads Parquet, and survives what befalls files."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from builders import (
    as_rows,
    block,
    cell,
    counted,
    measured_block,
    run_at,
    skipped,
    timed,
    write_run,
)
from patience import PATIENCE_S

from gradbench.errors import StoreError
from gradbench.experiment.matrix import AXES
from gradbench.history import (
    dataset_store,
    figures as points,
    parquet_file,
    parquet_pages,
    parquet_read,
    series,
)
from gradbench.history.dataset_store import LOCK
from gradbench.history.parquet_read import is_pack, read
from gradbench.history.parquet_write import pack

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

RUNS = [run_at(number) for number in (0, 1, 30 * 24)]  # the last in another month


@pytest.fixture
def packed(tmp_path):
    pack(RUNS, str(tmp_path / "pack"))
    return tmp_path / "pack"


def files(folder):
    return sorted(folder.rglob("*.parquet"))


def test_what_is_packed_comes_back(packed):
    figures = read(str(packed))
    at_hand = series.of(RUNS)
    assert as_rows(figures) == as_rows(at_hand)
    assert figures.origins == at_hand.origins
    assert figures.warnings == []


def test_history_is_the_same_from_either(packed, tmp_path):
    for run in RUNS:
        write_run(run, tmp_path / "runs")
    both = [
        [(str(s.cell), s.figure, s.values.tolist(), s.labels) for s in series.history(f)[0]]
        for f in (series.read([tmp_path / "runs"]), series.read([packed]))
    ]
    assert both[0] == both[1]
    assert both[0]


def test_runs_in_both_count_once(packed, tmp_path):
    write_run(RUNS[0], tmp_path / "runs")
    write_run(run_at(5), tmp_path / "runs")
    together = series.read([packed, tmp_path / "runs"])
    assert as_rows(together) == as_rows(series.of([*RUNS, run_at(5)]))


def test_a_folder_may_have_both_runs_and_a_pack(tmp_path):
    for run in RUNS:
        write_run(run, tmp_path)
    pack(RUNS[:1], str(tmp_path))
    assert as_rows(series.read([tmp_path])) == as_rows(series.of(RUNS))


@pytest.mark.parametrize("name", ["net\udcff", "x" * 240])
def test_a_run_of_any_name_is_packed_once(tmp_path, name):
    for _ in range(2):
        packed = pack([replace(RUNS[0], name=name)], str(tmp_path))
    assert (packed.before, len(files(tmp_path))) == (1, 1)


def test_pandas_and_duckdb_read_it_directly(packed):
    duckdb = pytest.importorskip("duckdb")
    import pandas as pd

    frame = pd.read_parquet(packed)
    assert len(frame) == len(series.of(RUNS).frame)
    assert {"month", *AXES} < set(frame.columns)
    ((count, steps),) = duckdb.sql(
        f"SELECT count(DISTINCT git_commit), median(value) FROM '{packed}/*/*.parquet' "
        "WHERE meter = 'step_time' AND grad_mode = 'inference_mode'"
    ).fetchall()
    assert count == 3
    assert (
        steps
        == frame[(frame["meter"] == "step_time") & (frame["grad_mode"] == "inference_mode")][
            "value"
        ].median()
    )


def test_raw_rounds_are_in_it_unless_left_out(tmp_path):
    pack(RUNS[:1], str(tmp_path / "with"))
    pack(RUNS[:1], str(tmp_path / "without"), rounds=False)
    raw = {
        (points.key(outcome.cell), outcome.meter): list(outcome.values)
        for outcome in RUNS[0].outcomes
    }
    rows = pq.read_table(files(tmp_path / "with")[0]).to_pylist()
    assert {(row["cell"], row["meter"]): row["values"] for row in rows} == raw
    assert all(row["iterations"] for row in rows)
    rows = pq.read_table(files(tmp_path / "without")[0]).to_pylist()
    assert {row["values"] for row in rows} == {None}


def test_the_calls_of_a_latency_stand_once(tmp_path):
    calls = replace(timed(cell(), range(100, 200)), meter="latency")
    pack([run_at(0, [calls])], str(tmp_path))
    rows = pq.read_table(files(tmp_path)[0]).to_pylist()
    assert {row["meter"]: row["values"] and len(row["values"]) for row in rows} == {
        "latency_p50": 100,
        "latency_p90": None,
        "latency_p99": None,
    }


def test_what_has_no_number_has_its_reason(tmp_path):
    pack([run_at(0, [counted(cell(), 8), skipped(cell())])], str(tmp_path))
    rows = pq.read_table(files(tmp_path)[0]).to_pylist()
    (without,) = [row for row in rows if row["value"] is None]
    assert without["cause"] == "cannot_train"
    assert without["reason"]
    assert len(read(str(tmp_path)).frame) == 1


def test_packing_again_adds_only_what_is_new(packed):
    before = files(packed)
    again = pack(RUNS, str(packed))
    assert (again.files, again.runs, again.before) == ((), 0, 3)
    assert files(packed) == before
    more = pack([*RUNS, run_at(2)], str(packed))
    assert (more.runs, more.before) == (1, 3)
    assert as_rows(read(str(packed))) == as_rows(series.of([*RUNS, run_at(2)]))


def test_months_are_folders(packed):
    assert [path.parent.name for path in files(packed)] == ["month=2026-01", "month=2026-02"]


def test_a_run_cut_short_is_not_packed(tmp_path):
    result = pack([replace(RUNS[0], sealed=False), RUNS[1]], str(tmp_path))
    assert result.runs == 1


def test_a_store_elsewhere_is_reached_by_its_url():
    url = "memory://bucket/gradbench"
    pack(RUNS, url)
    assert is_pack(url)
    assert as_rows(read(url)) == as_rows(series.of(RUNS))
    assert pack(RUNS, url).runs == 0


def test_a_url_of_an_unknown_kind_is_named():
    with pytest.raises(StoreError, match="cannot reach 'nonsense://x'"):
        read("nonsense://x")


@pytest.mark.parametrize("damage", [lambda c: c[: len(c) // 2], lambda c: b"", lambda c: b"words"])
def test_a_damaged_file_is_named_and_left_and_the_rest_is_read(packed, damage):
    first = files(packed)[0]
    first.write_bytes(damaged := damage(first.read_bytes()))
    figures = read(str(packed))
    (words,) = figures.warnings
    assert first.name in words
    assert set(figures.origins) == {RUNS[2].name}
    assert first.read_bytes() == damaged
    assert pack(RUNS, str(packed)).runs == 2  # what was lost is packed again
    assert as_rows(read(str(packed))) == as_rows(series.of(RUNS))


def marked(path, mark):
    table = pq.read_table(path)
    metadata = {} if mark is None else {parquet_file.MARK: mark}
    pq.write_table(table.replace_schema_metadata(metadata), path)


@pytest.mark.parametrize(
    ("mark", "says"),
    [
        (b'{"schema": 99, "axes": []}', "schema 99, this gradbench reads 1: upgrade"),
        (b'{"schema": 1, "axes": ["model", "moon"]}', "axes unknown to this gradbench, moon"),
        (None, "was not written by gradbench pack"),
    ],
)
def test_a_file_that_would_be_misread_is_named_and_left_alone(packed, mark, says):
    first = files(packed)[0]
    marked(first, mark)
    figures = read(str(packed))
    assert [says in words for words in figures.warnings] == [True]
    assert set(figures.origins) == {RUNS[2].name}
    assert first.is_file()


def test_a_run_that_two_files_have_counts_once(packed):
    first = files(packed)[0]
    first.with_name("copy.parquet").write_bytes(first.read_bytes())
    assert as_rows(read(str(packed))) == as_rows(series.of(RUNS))


def test_two_packers_at_once_pack_each_run_once(tmp_path):
    for run in RUNS:
        write_run(run, tmp_path / "runs")
    command = [sys.executable, "-m", "gradbench", "pack", "runs", "-o", "pack"]
    both = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate(timeout=PATIENCE_S) and process.returncode for process in both] == [
        0,
        0,
    ]
    rows = sum(len(pq.read_table(path)) for path in files(tmp_path / "pack"))
    assert rows == len(series.of(RUNS).frame)


def test_what_is_being_read_is_no_object_of_pythons(packed):
    """Arrow's threads let go of it late; where they need Python for that, they end the process."""
    content = files(packed)[0].read_bytes()
    before = sys.getrefcount(content)
    sparse = parquet_file.SparseFile(len(content))
    sparse.fill(0, content)
    opened = sparse.open()
    del sparse
    assert opened.read(columns=["run"]).num_rows > 0
    assert sys.getrefcount(content) == before


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_write_that_fails_leaves_no_half_file(tmp_path, monkeypatch, scheme):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(dataset_store.os, "fsync", full)
    with pytest.raises(StoreError, match=r"No space left on device; .* pack again"):
        pack(RUNS, f"{scheme}{tmp_path}")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_pack_of_nothing_leaves_no_folder_and_one_of_runs_no_lock(tmp_path):
    pack([], str(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()
    pack(RUNS, str(tmp_path / "pack"))
    assert [path.name for path in (tmp_path / "pack").glob(".*")] == []


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda lock: lock.symlink_to("elsewhere")], ids=["FIFO", "link"]
)
def test_what_stands_in_the_place_of_the_lock_is_not_waited_for(tmp_path, make):
    make(tmp_path / LOCK)
    with pytest.raises(StoreError, match="cannot write in"):
        pack(RUNS, str(tmp_path))
    assert not (tmp_path / "elsewhere").exists()


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "pack").write_text("")
    with pytest.raises(StoreError, match="cannot write in"):
        pack(RUNS, str(tmp_path / "pack"))


def test_a_folder_without_parquet_is_no_pack(tmp_path):
    assert not is_pack(str(tmp_path))
    with pytest.raises(StoreError, match="write some with gradbench pack"):
        read(str(tmp_path))


def test_without_pyarrow_the_remedy_is_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        dataset_store.NeedsPyarrow, match=r"pip install 'torch-gradbench\[parquet\]'"
    ):
        pack(RUNS, str(tmp_path))


def test_columns_hold_a_cell_s_axes_under_their_names(tmp_path):
    outcomes = measured_block(batch_size=64, dtype="bfloat16")
    pack([run_at(0, outcomes)], str(tmp_path))
    row = pq.read_table(files(tmp_path)[0]).to_pylist()[0]
    assert {axis: row[axis] for axis in AXES} == outcomes[0].cell.axes()
    assert row["git_commit"] == "0" * 40
    assert row["git_dirty"] is False
    assert block()[0].model == row["model"]


def test_text_that_never_was_utf_8_is_packed_with_escapes(tmp_path):
    hostile = skipped(cell(), reason="no \udc80 file")
    named = counted(cell(model="net\udc80:make"), 8)
    pack([run_at(0, [hostile, named])], str(tmp_path))
    rows = pq.read_table(files(tmp_path)[0]).to_pylist()
    assert {row["reason"] for row in rows} == {"", r"no \udc80 file"}
    assert as_rows(read(str(tmp_path))) == as_rows(series.of([run_at(0, [named])]))


# Packs of others


def changed(folder, edit):
    """Rewrite a pack's files with other columns, their mark kept."""
    for path in files(folder):
        table = pq.read_table(path, partitioning=None)
        pq.write_table(edit(table).replace_schema_metadata(table.schema.metadata), path)


def with_column(table, name, array):
    return table.set_column(table.schema.get_field_index(name), name, array)


@pytest.mark.parametrize(
    ("column", "array", "words"),
    [
        ("value", lambda n: pa.array(["much"] * n), "column value is not what"),
        ("ratio", lambda n: pa.array([1] * n), "column ratio is not what"),
        ("exact", lambda n: pa.array([None] * n, pa.bool_()), "column exact is not what"),
        ("meter", lambda n: pa.array([None] * n, pa.string()), "column meter is not what"),
        ("unit", lambda n: pa.array(["furlongs"] * n), "'furlongs' is none of gradbench's"),
        ("facts", lambda n: pa.array(["no json"] * n), "it is no JSON"),
        ("facts", lambda n: pa.array(["[1]"] * n), "facts must be an object"),
        ("facts", lambda n: pa.array([json.dumps({"a": {}})] * n), "facts['a'] must be text"),
        ("started", lambda n: pa.array([None] * n, pa.string()), "neither when it started"),
    ],
)
def test_a_column_that_pack_did_not_write_leaves_the_file_out(packed, column, array, words):
    changed(packed, lambda table: with_column(table, column, array(len(table))))
    figures = read(str(packed))
    assert figures.frame.empty
    assert all(words in warning for warning in figures.warnings)
    assert len(figures.warnings) == len(files(packed))


def test_a_figure_that_is_no_finite_number_is_left_out(packed):
    changed(packed, lambda t: with_column(t, "value", pa.array([float("inf")] * len(t))))
    figures = read(str(packed))
    assert figures.frame.empty
    assert figures.warnings == []


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("MOST_ROWS", "unpacks to"),
        ("MOST_BYTES", "unpacks to"),
        ("LARGEST_FILE_BYTES", "no file of gradbench has"),
    ],
)
def test_a_file_that_unpacks_to_more_than_a_history_has_is_not_unpacked(
    packed, limit, words, monkeypatch
):
    monkeypatch.setattr(parquet_file, limit, 4)
    monkeypatch.setattr(parquet_read, "_checked", None)  # what would be called next
    figures = read(str(packed))
    assert figures.frame.empty
    assert all(words in warning for warning in figures.warnings)
    assert len(figures.warnings) == len(files(packed))


def varint(number, *, length=0):
    """Return a whole number as Thrift's compact protocol writes it, padded to a length."""
    number *= 2  # zigzag, of what is not negative
    digits = []
    while number or not digits or len(digits) < length:
        digits.append(number & 127)
        number >>= 7
    return bytes([*(digit | 128 for digit in digits[:-1]), digits[-1]])


def facts_of(path):
    """Return what a file says of its column of facts."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    columns = map(group.column, range(group.num_columns))
    return next(column for column in columns if column.path_in_schema == "facts")


def test_pages_are_asked_what_they_unpack_to_whatever_the_file_says_of_them(tmp_path, monkeypatch):
    pack([run_at(0, note="x" * 100_000)], str(tmp_path))
    (path,) = files(tmp_path)
    content, honest = path.read_bytes(), facts_of(path)
    assert 100_000 < parquet_pages.unpacked_bytes(content, honest) <= honest.total_uncompressed_size
    said = varint(honest.total_uncompressed_size)
    assert content.count(said) == 1
    path.write_bytes(content.replace(said, varint(1, length=len(said))))
    assert facts_of(path).total_uncompressed_size == 1
    monkeypatch.setattr(parquet_file, "MOST_BYTES", 50_000)
    monkeypatch.setattr(parquet_read, "_checked", None)  # what would be called next
    (words,) = read(str(tmp_path)).warnings
    assert "more than a history has" in words


@pytest.mark.parametrize(
    "pages", [b"\x15", b"\x15\x00\x00", b"\x19\x00", b"\x1c" * 99, b"\x15\x00\x15" + b"\xff" * 11]
)
def test_a_page_whose_header_is_none_is_no_page(pages):
    with pytest.raises(ValueError, match="page"):
        list(parquet_pages._sizes(pages))
