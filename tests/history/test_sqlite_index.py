"""The index says what the files say, whatever became of it or of them."""

import contextlib
import errno
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from builders import (
    as_rows,
    block,
    counted,
    measured_block,
    run_at,
    skipped,
    started,
    timed,
    write_run,
)
from patience import PATIENCE_S

from gradbench.errors import StoreError
from gradbench.history import series, sqlite_index
from gradbench.history.sqlite_index import Index, run_files
from gradbench.store.jsonl import Store


def age(folder):
    """Make files look as if written a while ago, so that the index may trust their time."""
    then = time.time() - 60
    for path in Path(folder).rglob("*.jsonl"):
        os.utime(path, (then, then))


@pytest.fixture(autouse=True)
def caches(tmp_path_factory, monkeypatch):
    """Keep indexes in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("GRADBENCH_CACHE", str(folder))
    return folder


def rewrite(index, edit):
    """Change the database of an index, and write it as an index is written."""
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(index._kept())
        edit(connection)
        index._keep(connection.serialize())


@pytest.fixture
def runs():
    return [run_at(number) for number in range(3)]


@pytest.fixture
def folder(tmp_path, runs):
    for run in runs:
        write_run(run, tmp_path)
    return tmp_path


def test_it_has_what_the_runs_have(folder, runs):
    figures = Index(folder).read()
    at_hand = series.of(runs)
    assert as_rows(figures) == as_rows(at_hand)
    assert figures.origins == at_hand.origins
    assert figures.warnings == []


def test_a_second_look_opens_no_run_file(folder, monkeypatch):
    age(folder)
    first = Index(folder).read()
    monkeypatch.setattr(sqlite_index, "load", None)
    monkeypatch.setattr(sqlite_index, "read_content", None)
    assert as_rows(Index(folder).read()) == as_rows(first)


def test_what_has_no_number_is_not_in_it(tmp_path):
    write_run(run_at(0, [timed(block()[0], [1]), skipped(block()[1])]), tmp_path)
    assert len(Index(tmp_path).read().frame) == 1


def test_a_run_that_came_and_a_run_that_went_show_at_the_next_look(folder, runs):
    Index(folder).read()
    write_run(run_at(7), folder)
    (folder / f"{runs[0].name}.jsonl").unlink()
    assert as_rows(Index(folder).read()) == as_rows(series.of([*runs[1:], run_at(7)]))


def test_a_file_written_anew_is_read_anew(folder, runs):
    Index(folder).read()
    other = run_at(1, [timed(block()[0], [5])])
    write_run(other, folder)
    assert as_rows(Index(folder).read()) == as_rows(series.of([runs[0], other, runs[2]]))


def test_a_byte_changed_under_the_same_size_and_time_is_noticed_while_the_file_is_young(
    folder, runs
):
    Index(folder).read()
    path = folder / f"{runs[1].name}.jsonl"
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    figures = Index(folder).read()
    assert runs[1].name not in figures.origins
    assert len(figures.warnings) == 1


def test_a_touched_file_is_hashed_and_not_read_again(folder, runs, monkeypatch):
    first = Index(folder).read()
    age(folder)
    monkeypatch.setattr(sqlite_index, "load", None)
    assert as_rows(Index(folder).read()) == as_rows(first)


def test_a_damaged_file_is_named_each_time_and_the_others_are_shown(folder, runs):
    path = folder / f"{runs[1].name}.jsonl"
    content = path.read_bytes()[:-200]
    path.write_bytes(content)
    for _ in range(2):
        figures = Index(folder).read()
        (words,) = figures.warnings
        assert path.name in words
        assert "quarantined" in words
        assert set(figures.origins) == {runs[0].name, runs[2].name}
    assert path.read_bytes() == content


def test_a_copy_with_other_line_ends_is_the_same_file(folder, runs):
    path = folder / f"{runs[1].name}.jsonl"
    (folder / "copy").mkdir()
    (folder / "copy" / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    figures = Index(folder).read()
    assert figures.warnings == []
    assert as_rows(figures) == as_rows(series.of(runs))


def test_a_folder_of_runs_is_left_as_it_is(folder):
    before = sorted(folder.iterdir())
    assert Index(folder).read().origins
    assert sorted(folder.iterdir()) == before


def test_a_folder_without_runs_gets_no_index(tmp_path, caches):
    (tmp_path / "train.jsonl").write_text("{}\n")
    (words,) = Index(tmp_path).read().warnings
    assert "is no run of gradbench" in words
    assert list(caches.iterdir()) == []


def test_an_index_that_came_with_a_folder_is_not_believed(folder, runs):
    Index(folder).read()
    planted = Index(folder).path.read_bytes()
    (folder / Index(folder).path.name).write_bytes(planted)
    (folder / ".index.sqlite3").write_bytes(planted)
    assert as_rows(Index(folder).read()) == as_rows(series.of(runs))


def test_a_link_in_the_place_of_the_index_is_not_written_through(folder, runs):
    path, elsewhere = Index(folder).path, folder.parent / "elsewhere.db"
    elsewhere.write_bytes(b"")
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    assert as_rows(Index(folder).read()) == as_rows(series.of(runs))
    assert elsewhere.read_bytes() == b""
    assert not path.is_symlink()


def test_a_flipped_bit_of_the_index_is_noticed(folder, runs):
    age(folder)
    Index(folder).read()
    path = Index(folder).path
    whole = path.read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        flipped = bytearray(whole)
        flipped[at] ^= 1
        path.write_bytes(flipped)
        assert as_rows(Index(folder).read()) == as_rows(series.of(runs))


def newer(path, **fields):
    """Rewrite a run's file with other fields in its first row, sealed again."""
    import hashlib

    rows = [json.loads(line) for line in path.read_bytes().splitlines()][:-1]
    rows[0] |= fields
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    seal = {
        "kind": "sealed",
        "records": body.count(b"\n"),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    path.write_bytes(body + json.dumps(seal).encode() + b"\n")


def test_a_file_of_a_newer_schema_is_named_each_time_and_left_where_it_is(folder, runs):
    path = folder / f"{runs[1].name}.jsonl"
    newer(path, schema=99)
    for _ in range(2):
        figures = Index(folder).read()
        assert [("schema 99" in words, "upgrade" in words) for words in figures.warnings] == [
            (True, True)
        ]
        assert len(figures.origins) == 2
    assert path.is_file()


def test_a_run_that_is_still_written_is_left_out_and_reported(folder):
    with Store(folder).create() as writer:
        writer.write(started(block()))
        figures = Index(folder).read()
    assert len(figures.origins) == 3
    assert "is not complete" in figures.warnings[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"no database at all" * 100,
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        lambda content: content[:100] + b"\xff" * (len(content) - 100),
    ],
    ids=["garbage", "cut", "empty", "overwritten"],
)
def test_a_damaged_index_is_made_anew(folder, damage):
    first = Index(folder).read()
    path = Index(folder).path
    path.write_bytes(damage(path.read_bytes()))
    assert as_rows(Index(folder).read()) == as_rows(first)
    assert as_rows(Index(folder).read()) == as_rows(first)


@pytest.mark.parametrize(
    "statement",
    [
        "PRAGMA user_version = 99",
        "DELETE FROM axes WHERE name = 'optimizer'",
        "DROP TABLE figures",
        "ALTER TABLE figures RENAME COLUMN value TO worth",
    ],
)
def test_an_index_of_another_gradbench_is_made_anew(folder, statement):
    first = Index(folder).read()

    def edit(connection):
        connection.execute("UPDATE figures SET value = 0")
        connection.execute(statement)

    rewrite(Index(folder), edit)
    assert as_rows(Index(folder).read()) == as_rows(first)


def test_where_no_index_can_be_kept_it_is_made_in_memory(folder, runs):
    Index(folder).path.mkdir(parents=True)
    assert as_rows(Index(folder).read()) == as_rows(series.of(runs))


def test_runs_below_the_folder_are_found_as_artifacts_lie(tmp_path, runs):
    for number, run in enumerate(runs):
        write_run(run, tmp_path / f"benchmark-{number}" / "results")
    assert as_rows(Index(tmp_path).read()) == as_rows(series.of(runs))


def test_folders_may_lie_deeper_than_any_path_can_say(tmp_path, runs):
    write_run(runs[0], tmp_path)
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(2500):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    try:
        assert [path.name for path in run_files(tmp_path)] == [f"{runs[0].name}.jsonl"]
    finally:  # what pytest clears folders with is not made for it
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_folder_of_much_else_is_refused_and_one_of_many_runs_is_not(tmp_path, runs, monkeypatch):
    monkeypatch.setattr(sqlite_index, "MOST_SEEN", 20)
    monkeypatch.setattr(sqlite_index, "SEEN_A_RUN", 6)
    write_run(runs[0], tmp_path / "a" / "results")
    others = tmp_path / "b"
    others.mkdir()
    for number in range(18):
        (others / str(number)).touch()
    with pytest.raises(StoreError, match=r"with [01] runs? among them: name the folder that holds"):
        run_files(tmp_path)
    shutil.rmtree(others)
    for number in range(10):
        shutil.copytree(tmp_path / "a", tmp_path / f"a{number}")
    assert len(list(run_files(tmp_path))) == 11


def test_a_folder_that_cannot_be_read_is_not_an_empty_one(tmp_path, runs, monkeypatch):
    for number, run in enumerate(runs[:2]):
        write_run(run, tmp_path / f"of-{number}")
    scandir = os.scandir

    def refuse(path):
        if path == tmp_path / "of-1":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    figures = Index(tmp_path).read()
    assert as_rows(figures) == as_rows(series.of(runs[:1]))
    why = f"cannot read the folder {str(tmp_path / 'of-1')!r}: Permission denied"
    assert figures.warnings == [f"{why}: its runs are left out"]
    with pytest.raises(StoreError, match=re.escape(why)):
        Index(tmp_path / "of-1").read()


def test_a_run_that_lies_there_twice_counts_once_and_still_when_one_goes(tmp_path, runs):
    first, _ = (write_run(runs[0], tmp_path / name) for name in ("a", "b"))
    assert as_rows(Index(tmp_path).read()) == as_rows(series.of(runs[:1]))
    first.unlink()
    figures = Index(tmp_path).read()
    assert as_rows(figures) == as_rows(series.of(runs[:1]))
    assert figures.warnings == []


def test_two_runs_of_one_name_are_reported(tmp_path, runs):
    write_run(runs[0], tmp_path / "a")
    write_run(run_at(0, [counted(block()[0], 8)]), tmp_path / "b")
    figures = Index(tmp_path).read()
    assert figures.warnings == [f"2 files differ and are all run {runs[0].name}: one counts"]
    assert as_rows(figures) == as_rows(series.of(runs[:1]))


def test_two_processes_may_make_the_index_at_once(folder, runs):
    code = (
        "import sys; from pathlib import Path; from gradbench.history.sqlite_index import Index\n"
        "print(len(Index(Path(sys.argv[1])).read().frame))"
    )
    asked = [
        subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    answers = [process.communicate(timeout=PATIENCE_S)[0].strip() for process in asked]
    assert answers == [str(len(series.of(runs).frame))] * 2


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(StoreError, match="no folder"):
        Index(tmp_path / "nowhere")


def test_an_empty_folder_has_no_figures(tmp_path):
    figures = Index(tmp_path).read()
    assert figures.frame.empty
    assert isinstance(figures.frame, pd.DataFrame)
    assert series.history(figures) == ([], [])


def test_a_latency_is_three_figures(tmp_path):
    from dataclasses import replace

    calls = replace(timed(block()[0], range(100, 200)), meter="latency")
    write_run(run_at(0, [calls, *measured_block()]), tmp_path)
    meters = set(Index(tmp_path).read().frame["meter"])
    assert {"latency_p50", "latency_p90", "latency_p99"} < meters


def test_a_file_whose_name_is_no_utf_8_is_reported_and_the_others_are_shown(folder, runs):
    source = folder / f"{runs[0].name}.jsonl"
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jsonl")).write_bytes(source.read_bytes())
    figures = Index(folder).read()
    assert figures.warnings == [r"'\udcff.jsonl' is no name in UTF-8: rename it"]
    assert as_rows(figures) == as_rows(series.of(runs))


def test_facts_that_are_no_json_are_read_anew(folder, runs):
    Index(folder).read()
    rewrite(Index(folder), lambda c: c.execute("UPDATE runs SET facts = 'no json'"))
    assert as_rows(Index(folder).read()) == as_rows(series.of(runs))


def test_the_index_of_a_folder_that_is_gone_goes_when_another_is_written(tmp_path, caches, runs):
    kept, gone = (tmp_path / name for name in ("kept", "gone"))
    for folder in (kept, gone):
        write_run(runs[0], folder)
        age(folder)
        Index(folder).read()
    draft, theirs = (caches / "history" / name for name in ("draft-x", "notes.txt"))
    for path in (draft, theirs):
        path.write_text("half of it")
        os.utime(path, (0, 0))
    shutil.rmtree(gone)
    Index(kept).read()  # as it is: nothing is written
    assert sqlite_index.place_of(gone).exists()
    write_run(runs[1], kept)
    Index(kept).read()
    assert sqlite_index.place_of(kept).exists()
    assert not sqlite_index.place_of(gone).exists()
    assert (draft.exists(), theirs.exists()) == (False, True)
