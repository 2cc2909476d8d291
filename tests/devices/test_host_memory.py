"""What a process may take of the host: the tightest limit of its control groups counts."""

from types import SimpleNamespace

import pytest

from gradbench.devices import host_memory
from gradbench.devices.host_memory import left_in_cgroups, limit_in_cgroups


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text, "utf-8")


@pytest.fixture
def own(tmp_path):
    return tmp_path / "cgroup"


def test_the_tightest_group_on_the_way_up_counts_and_files_in_its_cache_do_not(tmp_path, own):
    root = tmp_path / "fs"
    own.write_text("0::/a/b\n", "utf-8")
    write(root / "a", memory__max="1000", memory__current="900", memory__stat="inactive_file 300")
    write(root / "a" / "b", memory__max="max", memory__current="900")
    assert left_in_cgroups(own, root) == 1000 - 900 + 300
    write(root / "a" / "b", memory__max="950", memory__current="900", memory__stat="anon 1\n")
    assert left_in_cgroups(own, root) == 50
    assert limit_in_cgroups(own, root) == 950


def test_the_first_version_of_groups_is_read_and_its_number_for_no_limit_is_none(tmp_path, own):
    root = tmp_path / "fs"
    own.write_text("5:cpu,memory:/job\n0::/\n", "utf-8")
    files = {"memory__usage_in_bytes": "40", "memory__stat": "total_inactive_file 7\n"}
    write(root / "memory" / "job", memory__limit_in_bytes="100", **files)
    write(root / "memory", memory__limit_in_bytes=str(2**63 - 4096), **files)
    assert left_in_cgroups(own, root) == 67
    assert limit_in_cgroups(own, root) == 100


def test_without_groups_there_is_no_limit(tmp_path, own):
    assert left_in_cgroups(own, tmp_path) is limit_in_cgroups(own, tmp_path) is None
    own.write_text("0::/a\n", "utf-8")
    assert left_in_cgroups(own, tmp_path) is None


def test_a_group_that_leaves_less_than_the_machine_has_is_what_is_free(monkeypatch):
    assert host_memory.free_bytes() > 0
    monkeypatch.setattr(host_memory, "left_in_cgroups", lambda: 4096)
    assert host_memory.free_bytes() == 4096


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, (2**30, host_memory.MACHINE)),
        (2**40, (2**30, host_memory.MACHINE)),
        (2**20, (2**20, host_memory.CONTAINER)),
    ],
)
def test_the_smaller_of_machine_and_container_says_which_it_is(limit, expected, monkeypatch):
    machine = SimpleNamespace(total=2**30)
    monkeypatch.setattr(host_memory.psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(host_memory, "limit_in_cgroups", lambda: limit)
    assert host_memory.whole_bytes() == expected
