"""Reading a folder leaves it as it was: no file of the user's is moved, changed or waited on."""

import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import block, run_at, started, write_run
from patience import PATIENCE_S
from typer.testing import CliRunner, Result

from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.store.jsonl import DRAFT, PART, SEALED, Store

NO_RUN = "is no run of gradbench"
DATA = '{"text": "a line of training data"}\n' * 3


def users_files(folder: Path) -> None:
    """Fill a folder with what a user may have there, by names like ours and others."""
    (folder / "data").mkdir()
    (folder / "data" / "train.jsonl").write_text(DATA)
    (folder / "train.jsonl").write_text(DATA)
    (folder / "notes.jsonl.part").write_text("to do\n")
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "german.jsonl").write_bytes('{"kind":"started","größe":1}\n'.encode("utf-16"))
    (folder / "latin.jsonl").write_bytes('{"text":"größe"}\n'.encode("latin-1"))
    (folder / "sealed.jsonl").write_text('{"kind":"sealed","records":0,"sha256":""}\n')
    (folder / "model.py").write_text("raise SystemExit('executed')\n")
    (folder / "selfcheck.json").write_text("{}\n")
    (folder / "x.jsonl").mkdir()
    (folder / "x.jsonl" / "train.jsonl").write_text(DATA)
    (folder / "link.jsonl").symlink_to("train.jsonl")
    (folder / "dangling.jsonl").symlink_to("nowhere")
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "photos").mkdir()
    (folder / "photos" / "forest.png").write_bytes(b"\x89PNG of trees")
    (folder / "photos" / "summary.md").write_text("# Holidays\n")
    (folder / "quarantine").mkdir()
    (folder / "quarantine" / "train.jsonl").write_text("of another day\n")
    os.mkfifo(folder / "pipe.jsonl")
    os.mkfifo(folder / "semantics.json")


def own_files(folder: Path) -> None:
    """Add a run, one with the line ends of another system, one damaged, and one cut short."""
    write_run(run_at(0), folder)
    other = write_run(run_at(1), folder)
    other.write_bytes(other.read_bytes().replace(b"\n", b"\r\n"))
    damaged = write_run(run_at(2), folder)
    damaged.write_bytes(damaged.read_bytes().replace(b"global_off", b"global_of_"))
    (folder / "quarantine" / damaged.name).write_text("of another day\n")
    with Store(folder).create() as writer:
        writer.write(started(block()))
    cut = folder / "0cut.jsonl.part"
    cut.write_bytes(writer.path.read_bytes())
    cut.with_name(cut.name + DRAFT).symlink_to("model.py")


FOLDERS: dict[str, Callable[[Path], None]] = {
    "the user's alone": users_files,
    "the user's and ours": lambda folder: (users_files(folder), own_files(folder))[-1],
}

SEALED_RUN, CRLF_RUN, DAMAGED_RUN = (f"theirs/{run_at(number).name}{SEALED}" for number in range(3))

COMMANDS: dict[str, list[str]] = {
    "history of the folder": ["history", "theirs"],
    "history of where one stands": ["history", "."],
    "history of a file": ["history", "theirs/train.jsonl"],
    "history to a page": ["history", "theirs", "-o", "out/history.html"],
    "history as JSON": ["history", "theirs", "--json"],
    "runs": ["runs", "--results", "theirs"],
    "show latest": ["show", "--results", "theirs"],
    "show by its beginning": ["show", "tr", "--results", "theirs"],
    "show a file": ["show", "theirs/train.jsonl"],
    "show a FIFO": ["show", "theirs/pipe.jsonl"],
    "show a folder": ["show", "theirs/x.jsonl"],
    "show a link": ["show", "theirs/link.jsonl"],
    "show what is damaged": ["show", DAMAGED_RUN],
    "report": ["report", "--results", "theirs", "-o", "out/page.html"],
    "report of a file": ["report", "theirs/train.jsonl", "-o", "out/page.html"],
    "report as Markdown": ["report", "--results", "theirs", "--format", "md"],
    "export": ["export", "junit", "--results", "theirs", "-o", "out/junit"],
    "merge": ["merge", SEALED_RUN, "theirs/train.jsonl", "--results", "out"],
    "gate against the folder": ["gate", "--baseline", "theirs", "latest", "--results", "theirs"],
    "gate against a glob": ["gate", "--baseline", "theirs/*.jsonl", "--results", "theirs"],
    "gate a file": ["gate", "--baseline", SEALED_RUN, "theirs/train.jsonl"],
    "gate with other line ends": ["gate", "--baseline", SEALED_RUN, CRLF_RUN],
    "save a baseline over data": [
        *("gate", "--save-baseline", "theirs/train.jsonl", SEALED_RUN),
    ],
    "save a baseline over a run": ["gate", "--save-baseline", SEALED_RUN, SEALED_RUN],
    "save a baseline over a FIFO": ["gate", "--save-baseline", "theirs/pipe.jsonl", SEALED_RUN],
    "pack the folder": ["pack", "theirs", "-o", "out/pack"],
    "pack a script": ["pack", "theirs/model.py", "-o", "out/pack"],
    "pack a FIFO": ["pack", "theirs/pipe.jsonl", "-o", "out/pack"],
    "resume data": ["run", "--resume", "theirs/notes.jsonl.part"],
    "resume a FIFO": ["run", "--resume", "theirs/pipe.jsonl"],
    "ci against data": [
        *("ci", "--model", "nowhere:make", "--input", "1,1"),
        *("--baseline", "theirs/train.jsonl", "-o", "out/ci"),
    ],
    "a page over a script": ["report", SEALED_RUN, "-o", "theirs/model.py"],
    "a page through a link": ["report", SEALED_RUN, "-o", "theirs/link.jsonl"],
    "a page through a link to nothing": ["report", SEALED_RUN, "-o", "theirs/dangling.jsonl"],
    "a page over a folder": ["report", SEALED_RUN, "-o", "theirs/data"],
    "a history over data": ["history", "theirs", "-o", "theirs/train.jsonl"],
    "an export over a script": ["export", "markdown", SEALED_RUN, "-o", "theirs/model.py"],
    "figures over a photograph": [
        *("report", SEALED_RUN, "-o", "out/page.html", "--figures", "theirs/photos"),
    ],
    "a self-check over data": ["selfcheck", "--results", "theirs"],
    "a job over a summary": ["ci", "--preset", "tiny", "-o", "theirs/photos"],
    "resume where a link lies": ["run", "--resume", "theirs/0cut.jsonl.part"],
    "a job in the folder": ["ci", "--preset", "tiny", "-o", "."],
}


def tree(folder: Path) -> dict[str, tuple[str, bytes | str, int]]:
    """Return all that lies below a folder: its kind, its bytes or where a link leads, its time."""
    found: dict[str, tuple[str, bytes | str, int]] = {}
    for path in folder.rglob("*"):
        name, status = str(path.relative_to(folder)), path.lstat()
        mode, changed_ns = status.st_mode, status.st_mtime_ns
        if stat.S_ISLNK(mode):
            found[name] = "link", str(path.readlink()), changed_ns
        elif stat.S_ISREG(mode):
            found[name] = "file", path.read_bytes(), changed_ns
        else:
            found[name] = str(stat.S_IFMT(mode)), "", changed_ns
    return found


@pytest.fixture(params=FOLDERS)
def theirs(request, tmp_path, monkeypatch) -> Path:
    """A folder that is not ours, from whose parent commands are given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADBENCH_CACHE", str(tmp_path / "out" / "caches"))
    folder = tmp_path / "theirs"
    folder.mkdir()
    FOLDERS[request.param](folder)
    (tmp_path / "results").mkdir()  # so that a job there is refused
    (tmp_path / "results" / "a.jsonl").write_text(DATA)
    return folder


@pytest.fixture(autouse=True)
def _not_for_ever() -> Iterator[None]:
    """Fail a test that waits for the other end of a FIFO, instead of waiting with it."""

    def late(*_: object) -> None:
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def call(arguments: list[str]) -> Result:
    return CliRunner(env={"COLUMNS": "400"}).invoke(app, arguments, prog_name="gradbench")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_leaves_the_folder_as_it_was(theirs, command):
    here = theirs.parent
    before = tree(here)

    answer = call(COMMANDS[command])

    after = {name: kind for name, kind in tree(here).items() if not name.startswith("out")}
    assert after == before
    assert answer.exception is None or isinstance(answer.exception, SystemExit), answer.output
    assert "Traceback" not in answer.output


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("history of the folder", ExitStatus.NOTHING_MEASURED),
        ("history of a file", ExitStatus.USAGE),
        ("runs", ExitStatus.OK),
        ("show a file", ExitStatus.USAGE),
        ("show a link", ExitStatus.USAGE),
        ("report of a file", ExitStatus.USAGE),
        ("gate against the folder", ExitStatus.USAGE),
        ("pack a script", ExitStatus.NOTHING_MEASURED),
        ("pack the folder", ExitStatus.NOTHING_MEASURED),
        ("resume data", ExitStatus.USAGE),
    ],
)
@pytest.mark.parametrize("theirs", ["the user's alone"], indirect=True)
def test_of_what_is_no_run_that_is_said(theirs, command, status):
    answer = call(COMMANDS[command])
    assert answer.exit_code == status, answer.output
    said = NO_RUN if command != "gate against the folder" else "no run 'latest'"
    assert said in answer.stderr


@pytest.mark.parametrize("theirs", ["the user's and ours"], indirect=True)
def test_runs_among_other_files_are_read(theirs):
    answer = call(COMMANDS["runs"])
    listed = [line.split()[0] for line in answer.stdout.splitlines()]
    whole, with_crlf, damaged = (run_at(number).name for number in range(3))
    (cut,) = (path.name.removesuffix(PART) for path in theirs.glob(f"2*{PART}"))
    assert listed == sorted([whole, with_crlf, cut, "0cut"])
    (quarantined,) = (line for line in answer.stderr.splitlines() if "quarantined" in line)
    assert damaged in quarantined
    assert call(["show", CRLF_RUN]).exit_code == ExitStatus.OK


@pytest.mark.parametrize("theirs", ["the user's and ours"], indirect=True)
def test_only_on_request_is_a_damaged_run_moved_and_over_nothing(theirs):
    before = tree(theirs)
    damaged = Path(DAMAGED_RUN).name
    answer = call(["runs", "--quarantine", "--results", "theirs"])
    moved = f"quarantine/{damaged}.2"
    assert moved in answer.stderr
    del before["quarantine"]  # to which a file was added, at this time
    assert {name: kind for name, kind in tree(theirs).items() if name != "quarantine"} == {
        moved if name == damaged else name: kind for name, kind in before.items()
    }
