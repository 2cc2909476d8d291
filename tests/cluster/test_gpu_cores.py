"""Cores of a machine's GPUs on Ray: each worker asks alone, and no two have a core in common."""

import subprocess

import pytest

from gradbench.cluster import gpu_cores
from gradbench.cluster.gpu_cores import cores_of, near_gpus
from gradbench.devices.cpu import HIDDEN

EIGHT = list(range(8))
TWO_NODES = [[4, 5, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def shares(gpus, near, *, usable=EIGHT):
    return [
        cores_of(gpu, usable, near, slot=slot, slots=len(gpus)) for slot, gpu in enumerate(gpus)
    ]


def hold_that_none_is_shared(found):
    cores = [core for share in found for core in share]
    assert len(cores) == len(set(cores))


def test_each_gpu_has_cores_of_its_own_numa_node():
    found = shares(["0", "1", "2", "3"], TWO_NODES)
    hold_that_none_is_shared(found)
    for share, near in zip(found, TWO_NODES, strict=True):
        assert share
        assert set(share) <= set(near)


def test_a_node_of_ray_that_has_some_of_the_machine_s_gpus_leaves_the_cores_of_the_others():
    found = shares(["2", "3"], TWO_NODES)
    hold_that_none_is_shared(found)
    assert [set(one) for one in found] == [
        set(cores_of(gpu, EIGHT, TWO_NODES, slot=0, slots=1)) for gpu in ("2", "3")
    ]


@pytest.mark.parametrize("gpus", [["0", "1"], ["MIG-a", "MIG-b"], ["GPU-a", "GPU-b"]])
def test_where_the_machine_does_not_say_workers_divide_the_cores(gpus):
    found = shares(gpus, [])
    hold_that_none_is_shared(found)
    assert [len(share) for share in found] == [4, 4]


def test_more_workers_than_cores_have_one_core_whose_lock_lets_them_take_turns():
    assert shares(["0", "1", "2"], [], usable=[0, 1]) == [[0], [1], [0]]


def test_a_machine_without_a_driver_says_nothing_of_its_gpus(monkeypatch):
    def fail(*_: object, **__: object):
        raise subprocess.CalledProcessError(1, "python")

    monkeypatch.setattr(gpu_cores.subprocess, "run", fail)
    assert near_gpus({}) == []


def test_all_gpus_of_the_machine_are_asked_for_whichever_a_worker_sees(monkeypatch):
    asked = []

    def answer(command, *, env, **_: object):
        asked.append(env)
        return subprocess.CompletedProcess(command, 0, "[[0, 1], null]")

    monkeypatch.setattr(gpu_cores.subprocess, "run", answer)
    hiding = dict.fromkeys(HIDDEN, "1")  # of each maker
    assert near_gpus({**hiding, "HOME": "/"}) == [[0, 1], None]
    assert not hiding.keys() & asked[0].keys()
    assert asked[0]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"  # as clusters count
    assert asked[0]["HOME"] == "/"
