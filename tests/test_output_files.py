"""A file that a command writes takes no other's place, and is there whole or not at all."""

import ast
import errno
import os
import re
import stat
from pathlib import Path

import pytest

import gradbench
from gradbench import output_files
from gradbench.errors import StoreError

OWN = re.compile(rb"our file")
OLD, NEW = b"our file, old", b"our file, new"
THEIRS = b"def make():\n    ...\n"


def write(path: Path, content: bytes = NEW) -> Path:
    return output_files.write(path, content, like=OWN, what="file", remedy="name another")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("there", [None, b"", OLD])
def test_it_is_written_where_nothing_is_or_one_of_its_kind(there, tmp_path):
    path = tmp_path / "new" / "a"
    if there is not None:
        path.parent.mkdir()
        path.write_bytes(there)
        path.chmod(0o640)
    assert write(path) == path
    assert contents(path.parent) == {"a": NEW}
    assert there is None or stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_to_one_of_its_kind_is_followed_and_stays(tmp_path):
    (tmp_path / "target").write_bytes(OLD)
    (tmp_path / "link").symlink_to("target")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == NEW


def theirs(path: Path) -> None:
    path.write_bytes(THEIRS)


def link_to_theirs(path: Path) -> None:
    theirs(path.with_name("precious"))
    path.symlink_to("precious")


PLACES = {
    "a file": (theirs, "is there and is no file of gradbench"),
    "a link to a file": (link_to_theirs, "is there and is no file of gradbench"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "is a link to nothing"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "a folder": (Path.mkdir, "Is a directory; name another"),
    "a pipe that nobody reads": (os.mkfifo, "No such device or address"),
}


@pytest.mark.parametrize("place", PLACES)
def test_what_is_another_s_is_left_and_named(place, tmp_path):
    make, words = PLACES[place]
    path = tmp_path / "a"
    make(path)
    before, kind = contents(tmp_path), path.lstat().st_mode
    with pytest.raises(StoreError, match=re.escape(words)) as caught:
        write(path)
    assert repr(str(path)) in str(caught.value)
    assert (contents(tmp_path), path.lstat().st_mode) == (before, kind)


def test_where_no_file_can_be_made_beside_it_the_file_itself_is_written(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(OLD)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    write(path)
    assert contents(tmp_path) == {"a": NEW}


def test_what_was_there_is_kept_where_there_is_no_room_for_the_new(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(OLD)

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(StoreError, match=r"No space left on device; name another"):
        write(path)
    assert contents(tmp_path) == {"a": OLD}


def test_a_device_takes_it_as_it_is():
    assert write(Path(os.devnull)) == Path(os.devnull)


def test_before_work_it_is_known_whether_it_could_be_written(tmp_path):
    theirs(tmp_path / "a")
    with pytest.raises(StoreError, match="is no file of gradbench"):
        output_files.check(tmp_path / "a", like=OWN, what="file")
    with pytest.raises(StoreError, match="Is a directory"):
        output_files.check(tmp_path, like=OWN, what="file")
    for name in ("nothing", os.devnull):
        output_files.check(tmp_path / name, like=OWN, what="file")


def test_before_work_it_is_known_whether_a_folder_takes_a_file(tmp_path, monkeypatch):
    (tmp_path / "there").write_bytes(OLD)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        output_files.check(tmp_path / "file" / "new", like=OWN, what="file")

    def refuse(**options):
        assert options == {"dir": tmp_path}
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(output_files, "TemporaryFile", refuse)
    for name in ("new", "several/new/folders"):
        with pytest.raises(StoreError, match="Read-only file system"):
            output_files.check(tmp_path / name, like=OWN, what="file")
    output_files.check(tmp_path / "there", like=OWN, what="file")  # itself it can be written
    assert contents(tmp_path) == {"there": OLD, "file": b""}


def test_what_opens_like_its_kind_is_removed_and_nothing_else(tmp_path):
    (tmp_path / "own").write_bytes(OLD)
    (tmp_path / "link").symlink_to("own")
    theirs(tmp_path / "theirs")
    (tmp_path / "folder").mkdir()
    for name in ("link", "theirs", "folder", "nothing"):
        output_files.remove(tmp_path / name, like=OWN)
    assert {path.name for path in tmp_path.iterdir()} == {"own", "link", "theirs", "folder"}
    output_files.remove(tmp_path / "own", like=OWN)
    assert not (tmp_path / "own").exists()


def test_no_other_module_writes_a_file_by_its_name_over_another():
    """`open` for writing is for drafts: there it says ``x``, or the file is a process's own."""
    own = {"output_files.py", "scratch.py", "peers.py", "instructions_pass.py", "meters.py"}
    root = Path(gradbench.__file__).parent
    found = [
        path.name
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("write_text", "write_bytes")
    ]
    assert set(found) <= own
