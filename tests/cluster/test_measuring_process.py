"""What becomes of an error of the machine that a measuring process is on."""

import errno
import os
import platform
import socket
from multiprocessing.connection import Connection

import pytest

from gradbench.cluster.jobs import Answer
from gradbench.cluster.measuring_process import Place, main


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
