"""Runs on disk: what is written is read, and damage is met with words, never a traceback."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from builders import (
    block,
    broken_down,
    cell,
    counted,
    ended,
    environment,
    run_of,
    skipped,
    started,
    timed,
)
from hypothesis import given, settings, strategies as st

from gradbench.errors import StoreError
from gradbench.experiment.matrix import by_block
from gradbench.experiment.model_source import ModelSource
from gradbench.history.sqlite_index import run_files
from gradbench.records.validation import LONGEST_TEXT
from gradbench.store import jsonl as store_module, record_rows
from gradbench.store.jsonl import (
    PART,
    QUARANTINE,
    SEALED,
    NoRun,
    Store,
    load,
    write as write_whole,
)
from gradbench.store.record_rows import SCHEMA
from gradbench.store.run_lines import BrokenSeal

CELLS = [*block(), *block(workload="training", batch_size=2)]
RECORDS = (
    started(
        CELLS,
        meters=("step_time", "peak_transient"),
        sources={"tower": ModelSource(build="shop.nets:tower", input=("ids=B,3:int64<8",))},
        command=("gradbench", "run", "--model", "größe \n \x1b"),
    ),
    environment(note='quotes " and \\ and \x1b and ↯'),
    *(timed(c, [10**15, 1, 7], iterations=3, load=0.5, stopped="precision") for c in CELLS),
    *(counted(c, 2**50) for c in CELLS[:-1]),
    skipped(CELLS[-1], meter="peak_transient", cause="out_of_memory", reason="no\nroom"),
    broken_down(CELLS[0], saved=2**40, other=1),
    ended(timing=1.5),
)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def part_file(store, records=RECORDS):
    """Write records and leave them unsealed, as a killed process does; return the path."""
    with store.create() as writer:
        for record in records:
            writer.write(record)
    return writer.path


def rewrite(path, edit):
    """Edit each row of a file and, where it was sealed, seal it again."""
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    body = b"".join(
        json.dumps(edit(row)).encode() + b"\n" for row in rows if row["kind"] != "sealed"
    )
    seal = {
        "kind": "sealed",
        "records": body.count(b"\n"),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    path.write_bytes(
        body + (json.dumps(seal).encode() + b"\n" if path.name.endswith(SEALED) else b"")
    )


def with_cells(edit):
    """Return an edit of rows that edits each cell in them, in place."""

    def edit_row(row):
        for axes in [*row.get("cells", []), *([row["cell"]] if "cell" in row else [])]:
            edit(axes)
        return row

    return edit_row


@pytest.fixture
def frozen(monkeypatch):
    """Stop the store's clock; return a function that moves it on."""

    class Clock:
        at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

        @classmethod
        def now(cls, zone):
            return cls.at.astimezone(zone)

    monkeypatch.setattr(store_module, "datetime", Clock)

    def advance(**by):
        Clock.at += timedelta(**by)

    return advance


@pytest.fixture
def drawn(monkeypatch):
    """Replace the random part of names by given ones."""

    def draw(*tokens):
        it: Iterator[str] = iter(tokens)
        monkeypatch.setattr(store_module.secrets, "token_hex", lambda _: next(it))

    return draw


# --- writing and reading


def test_text_that_is_no_utf_8_comes_back_with_escapes_in_its_place(store):
    header, *rest = RECORDS
    header = dataclasses.replace(header, command=("gradbench", "\udc80"))
    assert store.save([header, *rest]).header.command == ("gradbench", "\\udc80")


def test_every_kind_of_record_comes_back_as_it_was(store):
    saved = store.save(RECORDS)
    assert saved.records == RECORDS
    assert saved.sealed
    assert not saved.dropped
    assert load(store.find(saved.name)) == saved
    assert {type(record) for record in RECORDS} == set(record_rows._NAMES)


def test_a_run_gives_its_parts_by_name(store):
    run = store.save(RECORDS)
    assert run.header == RECORDS[0]
    assert run.environment == RECORDS[1]
    assert run.outcomes == RECORDS[2:-2]
    assert run.breakdowns == {CELLS[0]: RECORDS[-2]}
    assert run.ended == RECORDS[-1]
    assert run.unfinished() == []
    assert len(run.done) == 2 * len(CELLS)


def test_a_run_without_environment_and_end_says_so(store):
    run = store.save(RECORDS[:1])
    assert run.environment.facts == {}
    assert run.ended is None
    assert run.outcomes == ()
    assert run.unfinished() == list(by_block(CELLS))


def test_a_record_can_be_read_as_soon_as_it_is_written(store):
    with store.create() as writer:
        for count, record in enumerate(RECORDS, 1):
            writer.write(record)
            assert load(writer.path).records == RECORDS[:count]


def test_a_sealed_file_is_a_line_a_record_and_a_seal(store):
    path = store.find(store.save(RECORDS).name)
    *lines, seal = path.read_text("utf-8").splitlines()
    body = "".join(f"{line}\n" for line in lines).encode()
    assert [json.loads(line)["kind"] for line in lines[:2]] == ["started", "environment"]
    assert json.loads(seal) == {
        "kind": "sealed",
        "records": len(RECORDS),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    assert not list(store.folder.glob(f"*{PART}"))


def test_a_run_sealed_but_not_yet_renamed_is_whole(store):
    sealed = store.find(store.save(RECORDS).name)
    part = sealed.rename(sealed.with_name(sealed.name + ".part"))
    assert load(part).records == RECORDS
    assert not load(part).dropped


# --- names


def test_names_sort_by_time(store, frozen):
    names = []
    for step in ({"seconds": 1}, {"minutes": 9}, {"hours": 20}, {"days": 45}, {"days": 400}):
        names.append(store.save(RECORDS).name)
        frozen(**step)
    assert names == sorted(names)
    assert [run.name for run in store.load_all()[0]] == names
    assert load(store.find("latest")).name == names[-1]


def test_what_a_killed_writer_of_a_file_leaves_is_no_run(store, monkeypatch):
    name = store.save(RECORDS).name
    with monkeypatch.context() as killed:
        killed.setattr(store_module.Writer, "seal", lambda _: os._exit(9))
        child = os.fork()
        if child == 0:
            write_whole(RECORDS, store.folder / "baseline.jsonl")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert len([*store.folder.iterdir()]) == 2
    runs, warnings = store.load_all()
    assert ([run.name for run in runs], warnings) == ([name], [])
    assert [path.name for path in run_files(store.folder)] == [f"{name}.jsonl"]


def test_names_of_one_second_sort_by_time_too(store, frozen):
    names = []
    for _ in range(16):
        names.append(store.save(RECORDS[:1]).name)
        frozen(milliseconds=5)
    assert names == sorted(names)


def test_a_name_that_is_taken_is_drawn_again(store, frozen, drawn):
    drawn("aaaa", "aaaa", "aaaa", "bbbb")
    with store.create() as first, store.create() as second:
        assert (first.name[-4:], second.name[-4:]) == ("aaaa", "bbbb")


def test_a_sealed_run_is_never_written_over(store, frozen, drawn):
    drawn("aaaa", "aaaa", "bbbb")
    first, second = store.save(RECORDS), store.save(RECORDS[:1])
    assert first.name != second.name
    assert load(store.find(first.name)).records == RECORDS


def test_two_writers_never_share_a_file(store):
    with store.create() as one, store.create() as other:
        assert one.path != other.path
        for record in RECORDS:
            one.write(record)
            other.write(record)
        assert load(one.seal()).records == load(other.seal()).records == RECORDS


# --- damage


def test_a_cut_last_line_is_dropped_and_reported(store):
    path = part_file(store)
    content = path.read_bytes()
    last = content.splitlines(keepends=True)[-1]
    path.write_bytes(content[: -len(last) // 2])
    run = load(path)
    assert run.records == RECORDS[:-1]
    assert not run.sealed
    assert path.name in run.dropped
    assert f"dropped {len(path.read_bytes()) - len(content) + len(last)} bytes" in run.dropped
    assert f"line {len(RECORDS)}" in run.dropped


def as_before_checksums(path):
    """Write a file's lines as they were written before each ended in a checksum."""
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"".join(line.partition(b',"crc32"')[0] + b"}\n" for line in lines))


def test_of_a_part_file_damaged_in_the_middle_all_but_the_damaged_line_is_kept(store):
    path = part_file(store)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\x00" * 40 + b"\n", *lines[4:]]))
    run = load(path)
    assert run.records == (*RECORDS[:3], *RECORDS[4:])
    assert "dropped 41 bytes in line 4: its checksum is wrong" in run.dropped


def test_without_checksums_what_stands_behind_a_damaged_line_is_given_up(store):
    path = part_file(store)
    as_before_checksums(path)
    assert load(path).records == RECORDS
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"\x00" * 40 + b"\n", *lines[4:]]))
    assert load(path).records == RECORDS[:3]
    assert "from line 4 on" in load(path).dropped


def test_a_part_file_whose_first_line_was_changed_is_refused_and_never_read_as_an_older_one(store):
    path = part_file(store)
    content = path.read_bytes()
    for at in range(1, content.index(b"\n"), 7):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        with pytest.raises(StoreError, match=r"first line is cut|no run of gradbench"):
            load(path)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_of_a_part_file_costs_its_line_and_no_other(data):
    content, _ = written()
    at = data.draw(st.integers(content.index(b"\n") + 1, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    number = content[:at].count(b"\n")
    path = scratch() / f"changed{PART}"
    path.write_bytes(changed)
    run = load(path)
    lost = {number, number + 1} if content[at] == 10 else {number}  # a line end joins two
    assert run.dropped
    assert run.records == tuple(r for n, r in enumerate(RECORDS) if n not in lost)


def test_resuming_keeps_a_damaged_file_beside_the_new_one(store):
    path = part_file(store, CUT)
    lines = path.read_bytes().splitlines(keepends=True)
    damaged = b"".join([*lines[:3], lines[3].replace(b"1", b"7"), *lines[4:]])
    for number in (1, 2):
        path.write_bytes(damaged)
        writer, run = store.resume("latest")
        with writer:
            assert writer.path == path
        copy = store.folder / f"{path.name}.damaged-{number}"
        assert copy.read_bytes() == damaged
        assert copy.name in run.dropped


@pytest.mark.parametrize("line", [b"{}", b'{"kind":"poem"}', b'{"kind":"ended"}', b"{", b"\xff"])
def test_a_line_of_a_part_file_that_is_no_record_ends_it(store, line):
    path = part_file(store)
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert load(path).records == RECORDS
    assert f"in line {len(RECORDS) + 1}" in load(path).dropped


@pytest.mark.parametrize("line", [b"null", b"0", b"[]", b'"text"'])
def test_a_line_of_a_part_file_that_is_json_but_no_object_ends_it(store, line):
    path = part_file(store)
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert load(path).records == RECORDS


@functools.cache
def written() -> tuple[bytes, bytes]:
    """Return the content of a part file and of a sealed one."""
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        part = part_file(store).read_bytes()
        return part, store.find(store.save(RECORDS).name).read_bytes()


@functools.cache
def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="gradbench-test-"))


@pytest.fixture(scope="module", autouse=True)
def _no_scratch_left():
    yield
    for path in scratch().iterdir():
        path.unlink()
    scratch().rmdir()
    scratch.cache_clear()


def cut_points(content):
    """Return a strategy of byte offsets that favours the ends of lines, where trouble is."""
    ends = [i + offset for i, byte in enumerate(content) if byte == 10 for offset in (-1, 0, 1)]
    return st.one_of(st.sampled_from(ends), st.integers(0, len(content)))


@settings(max_examples=300)
@given(st.data())
def test_a_part_file_cut_at_any_byte_loads_a_prefix_or_is_refused(data):
    content, _ = written()
    cut = data.draw(cut_points(content))
    path = scratch() / f"cut{PART}"
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    if whole == 0:
        with pytest.raises(StoreError, match=r"holds no run|is no run of gradbench"):
            load(path)
    else:
        run = load(path)
        assert run.records == RECORDS[:whole]
        assert bool(run.dropped) == (not content[:cut].endswith(b"\n"))


OPENING = len(b'{"kind":"started",')


@settings(max_examples=150)
@given(st.data())
def test_a_sealed_file_cut_at_any_byte_is_a_broken_seal(data):
    _, content = written()
    cut = data.draw(cut_points(content).filter(lambda at: at < len(content) - 1))
    path = scratch() / f"cut{SEALED}"
    path.write_bytes(content[:cut])
    refusal = NoRun if cut < OPENING else BrokenSeal
    with pytest.raises(refusal, match=r"not what was sealed|is no run of gradbench"):
        load(path)


@settings(max_examples=300)
@given(st.data())
def test_a_changed_byte_breaks_the_seal_or_changes_no_record(data):
    _, content = written()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[at] ^= data.draw(st.integers(1, 255))
    path = scratch() / f"changed{SEALED}"
    path.write_bytes(changed)
    if at < content.rstrip(b"\n").rindex(b"\n"):
        with pytest.raises(NoRun if at < OPENING else BrokenSeal):
            load(path)
    else:  # in the seal itself, where a space may have become a tab
        with contextlib.suppress(BrokenSeal):
            assert load(path).records == RECORDS


@pytest.mark.parametrize("lines", [slice(0, -2), slice(1, None), slice(0, -1)])
def test_a_line_taken_away_breaks_the_seal(store, lines):
    path = store.find(store.save(RECORDS).name)
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[lines]))
    with pytest.raises(NoRun if lines.start else BrokenSeal):
        load(path)


def test_a_count_that_is_wrong_breaks_the_seal(store):
    path = store.find(store.save(RECORDS).name)
    count = f'"records": {len(RECORDS)},'
    assert count in path.read_text("utf-8")
    path.write_text(path.read_text("utf-8").replace(count, f'"records": {len(RECORDS) - 1},'))
    with pytest.raises(BrokenSeal):
        load(path)


def damaged(store):
    """Save a run and change a byte in its middle; return its file."""
    path = store.find(store.save(RECORDS).name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path


def test_a_broken_seal_is_named_and_left_and_the_other_runs_load(store):
    first, path, last = store.save(RECORDS), damaged(store), store.save(RECORDS)
    content = path.read_bytes()
    for _ in range(2):
        runs, (words,) = store.load_all()
        assert {run.name for run in runs} == {first.name, last.name}
        assert path.name in words
        assert "quarantined" in words
    assert path.read_bytes() == content
    assert not (store.folder / QUARANTINE).exists()


def test_on_request_a_broken_run_is_moved_over_no_other_file(store):
    path = damaged(store)
    content = path.read_bytes()
    taken = store.folder / QUARANTINE / path.name
    taken.parent.mkdir()
    taken.write_text("of somebody")
    (words,) = store.set_broken_aside()
    moved = taken.with_name(f"{path.name}.2")
    assert str(moved) in words
    assert (taken.read_text(), moved.read_bytes()) == ("of somebody", content)
    assert store.load_all() == ([], [])


def test_on_request_nothing_else_is_moved(store):
    store.save(RECORDS)
    part_file(store)
    own = store.folder / "train.jsonl"
    own.write_text('{"text": "a line of data"}\n')
    linked = damaged(store).rename(store.folder.parent / "elsewhere")
    (store.folder / "link.jsonl").symlink_to(linked)
    before = sorted(store.folder.iterdir())
    assert store.set_broken_aside() == ["link.jsonl: left where it is (a link)"]
    assert sorted(store.folder.iterdir()) == before


def test_a_broken_seal_that_cannot_be_moved_stays_and_is_reported(store):
    path = damaged(store)
    (store.folder / QUARANTINE).write_text("in the way")
    (words,) = store.set_broken_aside()
    assert "left where it is" in words
    assert path.exists()


# --- line ends


@pytest.mark.parametrize("mixed", [False, True])
def test_a_run_with_the_line_ends_of_another_system_is_the_same_run(store, mixed):
    whole = store.save(RECORDS)
    path = store.find(whole.name)
    lines = path.read_bytes().splitlines()
    ends = [b"\n" if mixed and number % 2 else b"\r\n" for number in range(len(lines))]
    path.write_bytes(b"".join(line + end for line, end in zip(lines, ends, strict=True)))
    assert load(path) == whole


def test_a_part_file_with_such_line_ends_is_resumed(store):
    path = part_file(store)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert load(path).records == RECORDS
    assert not load(path).dropped
    writer, cut = store.resume(path.name.removesuffix(PART))
    with writer:
        assert cut.records == RECORDS
        assert b"\r" not in path.read_bytes()


def test_no_line_end_is_in_a_record_as_it_is_written(store):
    texts = [environment(note="a\r\nb\rc\nd")]
    run = store.save([RECORDS[0], *texts])
    assert b"\r" not in store.find(run.name).read_bytes()
    assert run.records[1] == texts[0]


def test_a_changed_byte_is_noticed_whatever_the_line_ends(store):
    path = damaged(store)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(BrokenSeal):
        load(path)


def test_a_run_that_still_has_inputs_by_import_path_is_read(store):
    path = part_file(store)
    inputs = {"shop.nets:tower": [3, 8]}

    def as_before(row):
        return {k: v for k, v in row.items() if k != "sources"} | {"inputs": inputs}

    rewrite(path, lambda row: as_before(row) if row["kind"] == "started" else row)
    assert load(path).header.sources == {
        "shop.nets:tower": ModelSource(build="shop.nets:tower", input=("B,3,8",))
    }


WRONG = [
    ({"timeline": []}, "timeline must be an object, not []"),
    ({"sources": 3}, "sources must be an object, not 3"),
    ({"sources": {"a": {"build": 1}}}, "sources['a'].build must be text, not 1"),
    (
        {"sources": {"a": {"build": "a:b", "input": ["3,x"]}}},
        "sources: input '3,x': a size is a whole number",
    ),
    ({"cells": "all"}, "cells must be a list, not 'all'"),
    ({"cell": 0}, "cell must be an object, not 0"),
    ({"cell": {"model": "m"}}, "cell must be a cell"),
    ({"values": []}, "values must be one number at least"),
    ({"values": [1, 2.5]}, "values[1] must be a whole number, not 2.5"),
    ({"values": [1, True]}, "values[1] must be a whole number, not True"),
    ({"values": [2**63]}, "values must be numbers of 64 bits"),
    ({"iterations": 0}, "iterations must be 1 or more, not 0"),
    ({"iterations": [1] * 9}, "iterations has 9 numbers"),
    ({"iterations": "1"}, "iterations must be a whole number or a list, not '1'"),
    ({"unit": "furlongs"}, "unit must be one of ns, bytes, "),
    ({"exact": None}, "exact must be true or false, not None"),
    ({"cause": "bad luck"}, "cause must be one of cannot_train"),
    ({"reason": ["a"]}, "reason must be text, not a list of 1"),
    ({"facts": {" ": 1}}, "facts has a fact without a name"),
    ({"facts": {"torch": {}}}, "facts['torch'] must be text or a whole number or"),
    ({"notes": {"load": float("inf")}}, "it holds Infinity, which is no number of JSON"),
    ({"started_at": "../../../x"}, "started_at must be a time in UTC"),
    ({"started_at": "2026-01-01"}, "started_at must be a time in UTC"),
    ({"started_at": "2026-01-01T00:00:00+02:00"}, "started_at must be a time in UTC"),
    ({"shard": "3/2"}, "shard: shard '3/2' is not like 2/3"),
    ({"shard": "1/" + "9" * 5000}, "shard: shard '1/999"),
    ({"protocol": "2"}, "protocol must be a whole number, not '2'"),
    ({"plan": {"seed": "x"}}, "plan['seed'] must be a number, not 'x'"),
    ({"meters": [1]}, "meters[0] must be text, not 1"),
    ({"parts": {"soul": 21}}, "parts has 'soul', unknown to this gradbench: upgrade"),
    ({"phases": ["forward"]}, "timeline['parameters'] has 3 moments for 1 phases"),
    ({"seconds": {"timing": None}}, "seconds['timing'] must be a number, not None"),
]


@pytest.mark.parametrize(("wrong", "words"), WRONG, ids=str)
def test_a_value_that_no_record_can_have_refuses_the_run_by_file_line_and_field(
    store, wrong, words
):
    (name,) = wrong
    sealed = store.find(store.save(RECORDS).name)
    whole = sealed.read_bytes().splitlines()
    (number, *_) = (n for n, line in enumerate(whole, 1) if f'"{name}":'.encode() in line)
    rewrite(sealed, lambda row: row | wrong if name in row else row)
    with pytest.raises(StoreError) as caught:
        load(sealed)
    assert f"{str(sealed)!r}, line {number}, {words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_longer_than_any_is_cut_when_it_is_written_so_that_the_run_can_be_read(store):
    long = "x" * (LONGEST_TEXT + 1)
    refused = skipped(cell(), cause="failed", reason=long)
    reason = dataclasses.replace(refused, traceback=long)
    noted = timed(cell(), [1], by=long, **{long: 1})
    run = store.save([*RECORDS, reason, noted])
    assert run.records[-2].reason == run.records[-2].traceback == long[:-1]
    assert run.records[-1].notes == {"by": long[:-1], long[:-1]: 1}


@pytest.mark.parametrize("name", ["sources", "cells", "cell"])
def test_of_a_part_file_such_a_line_is_dropped_or_its_first_refused(store, name):
    part = part_file(store)
    rewrite(part, lambda row: row | {name: 3} if name in row else row)
    if name in ("sources", "cells"):
        with pytest.raises(StoreError, match="its first line is cut or damaged"):
            load(part)
    else:
        assert "cell must be an object, not 3" in load(part).dropped


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"kind":"ended","seconds":{},"load_after":' + b"9" * 5000 + b"}", "5000 digits"),
        (b'{"kind":"ended","seconds":{},"load_after":1e400}', "load_after must be a finite number"),
        (b'{"kind":"ended","seconds":' + b"[" * 100_000, "it is nested too deeply"),
        (
            b'{"kind":"ended","seconds":{},"x":"' + b"x" * (33 * 2**20) + b'"}',
            "bytes, and no record",
        ),
        (b"\xff\xfe", "it is no JSON"),
    ],
    ids=["digits", "1e400", "nested", "long", "bytes"],
)
def test_a_line_that_is_too_much_is_one_line(store, line, words):
    path = store.find(store.save(RECORDS).name)
    rows = path.read_bytes().splitlines(keepends=True)[:-1]
    body = b"".join(rows) + line + b"\n"
    seal = {"kind": "sealed", "records": body.count(b"\n")}
    seal["sha256"] = hashlib.sha256(body).hexdigest()
    path.write_bytes(body + json.dumps(seal).encode() + b"\n")
    with pytest.raises(StoreError) as caught:
        load(path)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", [".", "..", ""])
def test_a_file_whose_name_would_lead_elsewhere_is_no_run(store, name):
    """Pages and figures of a run are named after it."""
    path = store.find(store.save(RECORDS).name)
    with pytest.raises(NoRun, match="its name is none"):
        load(path.rename(path.with_name(f"{name}{SEALED}")))


def test_a_header_that_was_not_written_to_its_end_is_not_the_latest_run(store):
    run = store.save(RECORDS)
    header = part_file(store).read_bytes().splitlines()[0]
    (store.folder / f"29990101T000000Z-0000{PART}").write_bytes(header[:100])
    for path in store.folder.glob(f"2026*{PART}"):
        path.unlink()
    assert store.find("latest").name == f"{run.name}{SEALED}"


def test_a_name_longer_than_any_file_s_is_one_line(store):
    store.save(RECORDS)
    with pytest.raises(StoreError, match="File name too long"):
        store.find("a" * 300)


# --- files of others


def test_a_study_is_nobody_s_latest_run(store):
    run = store.save(RECORDS)
    study = store.studies.save(RECORDS)
    assert store.find("latest") == store.folder / f"{run.name}{SEALED}"
    assert [one.name for one in store.load_all()[0]] == [run.name]
    assert store.find(str(store.studies.folder / f"{study.name}{SEALED}")).is_file()


def test_latest_and_beginnings_are_of_runs_alone(store):
    run = store.save(RECORDS)
    (store.folder / "train.jsonl").write_text("{}\n")
    (store.folder / f"29990101T000000Z-0000{PART}").write_bytes(b"")
    assert store.find("latest") == store.folder / f"{run.name}{SEALED}"
    with pytest.raises(StoreError, match=f"no run 'tr'.*the latest there: {run.name}$"):
        store.find("tr")


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_beginning_of_every_name(store, name):
    store.save(RECORDS)
    with pytest.raises(StoreError, match="names no run"):
        store.find(name)


def test_a_complete_run_is_written_over_a_run_and_over_nothing_else(tmp_path):
    own, run = tmp_path / "train.jsonl", tmp_path / "baseline.jsonl"
    own.write_text("{}\n")
    with pytest.raises(StoreError, match="is no run of gradbench: choose another name"):
        write_whole(RECORDS, own)
    assert own.read_text() == "{}\n"
    write_whole(RECORDS[:1], run)
    assert load(write_whole(RECORDS, run)).records == RECORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["baseline.jsonl", "train.jsonl"]


@pytest.mark.parametrize("content", [b"", b"\n", b"{}\n", b'{"kind":"ended"', b"words\n"])
def test_a_part_file_without_a_first_record_holds_no_run(store, content):
    whole = store.save(RECORDS)
    (store.folder / f"20260101T000000Z-0000{PART}").write_bytes(content)
    runs, warnings = store.load_all()
    assert [run.name for run in runs] == [whole.name]
    assert "is no run of gradbench" in warnings[0]


# --- files of other versions


@pytest.mark.parametrize("write", [lambda s: s.find(s.save(RECORDS).name), part_file])
def test_a_newer_schema_is_refused_with_the_remedy_and_not_moved(store, write):
    path = write(store)
    rewrite(path, lambda row: row | ({"schema": SCHEMA + 1} if row["kind"] == "started" else {}))
    with pytest.raises(StoreError, match=f"schema {SCHEMA + 1}.*upgrade") as caught:
        load(path)
    assert not isinstance(caught.value, BrokenSeal)
    runs, warnings = store.load_all()
    assert not runs
    assert path.name in warnings[0]
    assert path.exists()


def test_an_axis_unknown_here_is_refused_with_the_remedy_and_not_moved(store):
    path = store.find(store.save(RECORDS).name)
    rewrite(path, with_cells(lambda axes: axes.update(quantum="on")))
    with pytest.raises(StoreError, match="quantum: upgrade"):
        load(path)
    assert store.load_all()[0] == []
    assert path.exists()


def test_what_an_older_run_calls_compiled_is_the_mode_default_of_today(store):
    path = store.find(store.save(RECORDS).name)
    rewrite(path, with_cells(lambda axes: axes.update(compile="on")))
    assert {cell.compile for cell in load(path).header.cells} == {"default"}


def test_an_axis_not_yet_known_there_gets_its_default(store):
    path = store.find(store.save(RECORDS).name)
    rewrite(path, with_cells(lambda axes: [axes.pop(name) for name in ("compile", "threads")]))
    assert load(path).records == RECORDS


def newer_value(row):
    return with_cells(lambda axes: axes.update(dtype="float8"))(row)


def newer_kind(row):
    return row | ({"kind": "weather"} if row["kind"] == "environment" else {})


def without_field(row):
    row.pop("facts", None)
    return row


@pytest.mark.parametrize("edit", [newer_value, newer_kind, without_field])
def test_a_sealed_file_that_does_not_fit_is_refused_and_the_other_runs_load(store, edit):
    strange, whole = store.save(RECORDS), store.save(RECORDS)
    path = store.find(strange.name)
    rewrite(path, edit)
    runs, warnings = store.load_all()
    assert [run.name for run in runs] == [whole.name]
    assert path.name in warnings[0]
    assert path.exists()


def test_a_part_file_with_a_newer_axis_value_is_refused_and_the_other_runs_load(store):
    path = part_file(store)
    rewrite(path, newer_value)
    whole = store.save(RECORDS)
    runs, warnings = store.load_all()
    assert [run.name for run in runs] == [whole.name]
    assert path.name in warnings[0]


def test_fields_added_later_are_passed_over(store):
    path = store.find(store.save(RECORDS).name)
    rewrite(path, lambda row: row | {"mood": "good"})
    assert load(path).records == RECORDS


# --- going on


FIRST, SECOND = block(), block(batch_size=64)
METERS = ("step_time", "peak_transient")
CUT = (
    started([*FIRST, *SECOND], meters=METERS),
    environment(),
    *(timed(c, [1, 2]) for c in FIRST),
    *(counted(c, 5) for c in FIRST[:2]),  # the block lacks two of this meter
    *(timed(c, [3, 4]) for c in SECOND[:3]),  # and this one of this
    *(skipped(c, meter="peak_transient") for c in SECOND),
)


def test_what_is_done_is_what_every_mode_of_a_block_has():
    run = run_of(CUT)
    assert run.done == {
        *((c, "step_time") for c in FIRST),
        *((c, "peak_transient") for c in SECOND),
    }
    assert run.unfinished() == [FIRST[0].block, SECOND[0].block]


def test_resuming_drops_readings_without_partners_and_keeps_the_rest(store):
    path = part_file(store, CUT)
    writer, run = store.resume(path.name)
    with writer:
        assert writer.path == path
        assert run.records == CUT
        kept = load(path).records
    assert kept == (*CUT[:2], *CUT[2:6], *CUT[-4:])


def test_a_resumed_run_goes_on_and_is_sealed_under_its_name(store):
    path = part_file(store, CUT)
    path.write_bytes(path.read_bytes() + b'{"kind":"meas')
    writer, run = store.resume("latest")
    rest = (*(counted(c, 5) for c in FIRST), *(timed(c, [3, 4]) for c in SECOND), ended())
    with writer:
        for record in rest:
            writer.write(record)
        final = writer.seal()
    assert "dropped 13 bytes" in run.dropped
    whole = load(final)
    assert (whole.name, whole.sealed, whole.dropped) == (run.name, True, "")
    assert whole.unfinished() == []
    assert whole.records[-len(rest) :] == rest
    assert [found.name for found in store.folder.iterdir()] == [final.name]


def test_a_resumed_run_can_be_cut_and_resumed_again(store):
    path = part_file(store, CUT)
    for _ in range(3):
        writer, _run = store.resume(path.name)
        with writer:
            writer.write(timed(SECOND[0], [3, 4]))
    assert [r for r in load(path).records if r == timed(SECOND[0], [3, 4])] == [
        timed(SECOND[0], [3, 4])
    ]


def test_a_run_that_is_being_written_cannot_be_resumed(store):
    with store.create() as writer:
        writer.write(RECORDS[0])
        with pytest.raises(StoreError, match="is being written by another process"):
            store.resume(writer.name)
        writer.write(RECORDS[1])
        assert load(writer.path).records == RECORDS[:2]


def test_a_part_file_that_is_sealed_before_it_is_read_is_read_as_what_it_became(store):
    with store.create() as writer:
        for record in RECORDS:
            writer.write(record)
        part = writer.path
        assert store.find("latest") == part
        writer.seal()
    assert load(part).sealed
    assert load(part).records == RECORDS
    with pytest.raises(StoreError, match="No such file"):
        load(part.with_name(f"other{store_module.PART}"))


def test_a_run_that_was_resumed_cannot_be_resumed_beside_it(store):
    path = part_file(store, CUT)
    writer, _ = store.resume(path.name)
    with writer, pytest.raises(StoreError, match="is being written"):
        store.resume(path.name)
    store.resume(path.name)[0].__exit__(None, None, None)


def test_resuming_what_another_has_just_replaced_is_refused(store, monkeypatch):
    """One that opened the old file before the first resume replaced it, and locks it after."""
    path = part_file(store, CUT)
    lock = store_module._lock
    first = []

    def lock_late(file, of):
        monkeypatch.setattr(store_module, "_lock", lock)
        first.append(store.resume(path.name)[0])
        lock(file, of)

    monkeypatch.setattr(store_module, "_lock", lock_late)
    with pytest.raises(StoreError):
        store.resume(path.name)


def test_a_complete_run_cannot_be_resumed(store):
    name = store.save(RECORDS).name
    with pytest.raises(StoreError, match=f"{name!r} is complete"):
        store.resume(name)


# --- where it cannot be written or found


@pytest.mark.parametrize(
    "folder",
    [
        pytest.param("file"),
        "file/results",
    ],
)
def test_a_file_in_place_of_the_folder_is_named_with_the_option_that_mends_it(tmp_path, folder):
    (tmp_path / "file").write_text("a file")
    said = ""
    try:
        Store(tmp_path / folder).create()
    except (StoreError, RecursionError) as error:  # pytest takes a minute to show the latter
        said = str(error)
    assert said.startswith(f"cannot write results in {str(tmp_path / folder)!r}: ")
    assert "--results" in said


def test_a_folder_that_is_not_there_is_made_on_writing_and_empty_before(tmp_path):
    store = Store(tmp_path / "a" / "b")
    assert store.load_all() == ([], [])
    assert store.save(RECORDS).records == RECORDS


def test_other_files_in_the_folder_are_no_runs(store):
    name = store.save(RECORDS).name
    (store.folder / "notes.txt").write_text("hello")
    (store.folder / f"folder{SEALED}").mkdir()
    assert [run.name for run in store.load_all()[0]] == [name]


@pytest.fixture
def three(store, frozen, drawn):
    """A store of three runs, the second unsealed; their names."""
    drawn("aaaa", "bbbb", "cccc")
    first = store.save(RECORDS).name
    second = part_file(store).name.removesuffix(PART)
    frozen(days=1)
    return [first, second, store.save(RECORDS).name]


@pytest.mark.parametrize("suffix", ["", SEALED, PART])
def test_a_run_is_found_by_its_name_with_or_without_suffix(store, three, suffix):
    assert [load(store.find(name + suffix)).name for name in three] == three


def test_a_run_is_found_by_path_in_another_folder(store, three, tmp_path):
    path = store.find(three[0])
    elsewhere = tmp_path / "saved.jsonl"
    path.rename(elsewhere)
    assert store.find(str(elsewhere)) == elsewhere


def test_a_run_is_found_by_its_beginning(store, three):
    assert store.find("20260103").name.startswith(three[2])
    assert store.find(three[1][:-3]).name.startswith(three[1])


def test_the_latest_run_is_found_sealed_or_not(store, three, frozen, drawn):
    assert store.find("latest").name.startswith(three[2])
    frozen(days=1)
    drawn("dddd")
    path = part_file(store)
    assert store.find("latest") == path


def test_a_beginning_that_fits_several_runs_names_them(store, three):
    with pytest.raises(StoreError) as caught:
        store.find("20260102")
    assert str(caught.value) == f"'20260102' fits several runs: {three[0]}, {three[1]}"


def test_a_name_that_is_another_s_beginning_is_that_run(store):
    store.folder.mkdir()
    for name in ("nightly", "nightly-2"):
        store.save(RECORDS)
        store.find("2").rename(store.folder / f"{name}{SEALED}")
    assert store.find("nightly").name == f"nightly{SEALED}"


def test_a_run_that_is_not_there_is_refused_with_those_that_are(store, three):
    with pytest.raises(StoreError) as caught:
        store.find("1999")
    assert all(name in str(caught.value) for name in ["1999", *three])


@pytest.mark.parametrize("name", ["latest", "1999"])
def test_in_an_empty_folder_there_is_no_run(store, name):
    with pytest.raises(StoreError, match=f"no run '{name}' in .* the latest there: none"):
        store.find(name)


def test_a_run_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read .*gone.jsonl"):
        load(tmp_path / f"gone{SEALED}")


def test_a_cell_is_unfinished_until_each_meter_has_an_outcome():
    only = cell()
    first = started([only], meters=METERS)
    assert run_of([first, timed(only, [1])]).unfinished() == [only.block]
    both = [timed(only, [1]), skipped(only, meter="peak_transient", cause="unreadable")]
    assert run_of([first, *both]).unfinished() == []
