"""What befalls a store from outside, other writers, a kill, a full disk: nothing is lost."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import block, ended, environment, started, timed
from patience import PATIENCE_S

from gradbench.errors import StoreError
from gradbench.records.measurements import Measurement
from gradbench.store.jsonl import PART, SEALED, Store, Writer, load

TESTS = str(Path(__file__).parents[1])

PRELUDE = f"""
import sys
sys.path.insert(0, {TESTS!r})
from builders import block, environment, started, timed
from gradbench.store.jsonl import Store
cells = block()
"""


def python(code: str, *arguments: object, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", PRELUDE + code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def test_two_processes_that_write_at_once_lose_nothing_and_mix_nothing(tmp_path):
    code = """
store, mine = Store(sys.argv[1]), int(sys.argv[2])
for number in range(8):
    with store.create() as writer:
        writer.write(started(cells))
        for value in range(40):
            writer.write(timed(cells[value % 4], [mine * 1000 + value], iterations=number + 1))
        writer.seal()
"""
    writers = [python(code, tmp_path, mine) for mine in (1, 2)]
    assert [writer.wait(PATIENCE_S) for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdout.close()

    runs, warnings = Store(tmp_path).load_all()

    assert warnings == []
    written = [[o.values[0] for o in run.outcomes] for run in runs]
    assert sorted(written) == sorted(
        [[mine * 1000 + value for value in range(40)] for mine in (1, 2) for _ in range(8)]
    )


def test_a_writer_killed_in_the_middle_loses_nothing_that_it_had_written(tmp_path):
    code = """
with Store(sys.argv[1]).create() as writer:
    writer.write(started(cells))
    value = 0
    while True:
        writer.write(timed(cells[value % 4], [value + 1] * 50))
        print(value, flush=True)
        value += 1
"""
    writer = python(code, tmp_path)
    last = [int(writer.stdout.readline()) for _ in range(100)][-1]
    writer.kill()
    writer.wait(PATIENCE_S)
    last = max([last, *(int(line) for line in writer.stdout.read().split("\n")[:-1])])
    writer.stdout.close()

    (part,) = tmp_path.glob(f"*{PART}")
    run = load(part)

    values = [outcome.values[0] for outcome in run.outcomes]
    assert values == list(range(1, len(values) + 1))
    assert len(values) >= last + 1
    resumed, _ = Store(tmp_path).resume(run.name)
    with resumed:
        assert load(resumed.seal()).sealed


def test_a_record_that_finds_no_room_is_reported_with_the_remedy(tmp_path):
    with Path("/dev/full").open("w") as full:
        writer = Writer(tmp_path / f"a{PART}", full)
        with pytest.raises(
            StoreError, match=r"No space left.* gradbench run --resume \S+/a\.jsonl\.part$"
        ):
            writer.write(started(block()))
        with writer:
            pass  # closing does not raise what was said already


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of 64 KiB in memory; skip where this process may not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("no mount command: cannot make a small disk")
    answer = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        pytest.skip(f"cannot mount a small disk: {answer.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_on_a_full_disk_what_was_written_is_kept_and_the_run_can_go_on(small_disk):
    cells, store = block(), Store(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 36 * 1024)
    accepted = 0
    with store.create() as writer:
        writer.write(started(cells))
        with pytest.raises(StoreError, match="No space left on device"):
            while True:
                writer.write(timed(cells[accepted % 4], [accepted + 1] * 100))
                accepted += 1

    cut = load(store.find("latest"))
    assert [outcome.values[0] for outcome in cut.outcomes] == list(range(1, accepted + 1))

    ballast.unlink()
    writer, kept = store.resume("latest")
    with writer:
        writer.write(ended())
        whole = load(writer.seal())
    assert whole.sealed
    assert [o for o in whole.outcomes if isinstance(o, Measurement)] == list(kept.outcomes)


def test_a_seal_that_finds_no_room_leaves_a_run_that_can_be_resumed(small_disk):
    store = Store(small_disk)
    with store.create() as writer:
        writer.write(started(block()))
        writer.write(environment())
        for member in block():
            writer.write(timed(member, [1]))
        free = shutil.disk_usage(small_disk).free
        (small_disk / "ballast").write_bytes(b"\0" * free)
        with pytest.raises(StoreError, match="No space left on device"):
            while True:  # to the end of the page that the file has
                writer.write(ended())
        with pytest.raises(StoreError, match="No space left on device"):
            writer.seal()
    assert list(small_disk.glob(f"*{SEALED}")) == []
    (small_disk / "ballast").unlink()
    resumed, kept = store.resume("latest")
    with resumed:
        assert len(kept.outcomes) == 4
        assert load(resumed.seal()).sealed
