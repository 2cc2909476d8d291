"""What becomes of an error of the machine that a measuring process is on, and what it is given."""

import errno
import os
import platform
import socket
from multiprocessing.connection import Connection
from types import SimpleNamespace

import pytest

from gradbench.cluster import measuring_process, on_ray
from gradbench.cluster.jobs import Answer
from gradbench.cluster.measuring_process import MeasuringProcess, Place, main
from gradbench.devices.cuda import SETTINGS


def fail(_connection, _setup, _place):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_is_the_reason_and_not_the_status_of_a_process():
    own, other = socket.socketpair()
    with Connection(own.detach()) as connection:
        connection.send((fail, None, Place(locks=(), import_path=None)))
        with pytest.raises(OSError, match="No space left"):  # for the node's log
            main(other.detach())
        answer = connection.recv()
    assert (answer.host, answer.trouble) == (platform.node(), "lost")
    assert answer.why.endswith("No space left on device")
    assert isinstance(answer, Answer)


def test_a_worker_whose_node_is_gone_ends_what_it_measures(monkeypatch):
    own, other = socket.socketpair()
    process = object.__new__(MeasuringProcess)
    closed = []
    process._connection, process._parent = Connection(own.detach()), os.getppid() + 1
    process._tree = SimpleNamespace(end=lambda: closed.append("ended"))
    monkeypatch.setattr(measuring_process, "LOOK_S", 0.0)
    with Connection(other.detach()):
        answer = process.measure(None, limit_s=600.0)
    assert (answer.trouble, closed) == ("lost", ["ended"])
    assert "node that it is for is gone" in answer.why


def test_every_variable_that_changes_a_step_on_a_gpu_goes_along_but_the_name_of_a_file(monkeypatch):
    for name in (*SETTINGS, "CUDA_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "1")
    assert set(SETTINGS) - on_ray.travelling_variables().keys() == {"CUDNN_ERRATA_JSON_FILE"}
    assert "CUDA_VISIBLE_DEVICES" not in on_ray.travelling_variables()
