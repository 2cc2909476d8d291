"""Cores of the host that serve one device each: of its NUMA node, or divided evenly."""

import pytest

from gradbench.runner import host_system
from gradbench.runner.core_shares import OWN_NODE, as_ranges, core_shares

NEAR_0, NEAR_1 = frozenset(range(4)), frozenset(range(4, 8))


def cores(near, usable):
    return {device: share.cores for device, share in core_shares(near, usable).items()}


def test_a_device_gets_the_cores_of_its_own_node():
    shares = core_shares({"cuda": NEAR_1, "cuda:1": NEAR_0}, range(8))
    assert {device: share.cores for device, share in shares.items()} == {
        "cuda": (4, 5, 6, 7),
        "cuda:1": (0, 1, 2, 3),
    }
    assert {share.chosen for share in shares.values()} == {OWN_NODE}


def test_devices_of_one_node_divide_its_cores():
    near = {"cuda": NEAR_0, "cuda:1": NEAR_0, "cuda:2": NEAR_1}
    assert cores(near, range(8)) == {"cuda": (0, 1), "cuda:1": (2, 3), "cuda:2": (4, 5, 6, 7)}


def test_where_a_node_is_unknown_all_cores_are_divided_evenly_and_the_record_says_why():
    shares = core_shares({"cuda": NEAR_0, "cuda:1": None}, range(8))
    assert str(shares["cuda"]) == ("0-3, divided evenly: this system does not say which are near")
    assert shares["cuda:1"].cores == (4, 5, 6, 7)


def test_a_node_with_too_few_usable_cores_is_no_reason_to_share_one():
    near = {"cuda": NEAR_0, "cuda:1": NEAR_0}
    shares = core_shares(near, [3, 4, 5])
    assert {device: share.cores for device, share in shares.items()} == {
        "cuda": (3,),
        "cuda:1": (4, 5),
    }
    assert str(shares["cuda"]).endswith("too few near")


def test_fewer_cores_than_devices_are_shared_by_none():
    assert core_shares({"cuda": None, "cuda:1": None}, [0]) == {}


@pytest.mark.parametrize("count", range(2, 9))
def test_no_core_serves_two_devices_and_none_is_left_idle(count):
    near = {f"cuda:{number}": None for number in range(count)}
    taken = [core for share in cores(near, range(11)).values() for core in share]
    assert sorted(taken) == list(range(11))


def test_threads_of_one_physical_core_stand_next_to_one_another(monkeypatch, tmp_path):
    for core in range(4):
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 2},{core % 2 + 2}\n")
    monkeypatch.setattr(host_system, "CORES", tmp_path)
    assert host_system.neighbours(range(4)) == [0, 2, 1, 3]
    assert host_system.neighbours([9, 5]) == [5, 9]  # of which nothing is known


@pytest.mark.parametrize(
    ("given", "words"), [((), ""), ((3,), "3"), ((8, 0, 1, 2), "0-2,8"), ((1, 3), "1,3")]
)
def test_cores_are_written_as_the_kernel_does(given, words):
    assert as_ranges(given) == words
