"""What a connection to a Ray cluster says of itself where there is none, or no more."""

import socket
from types import SimpleNamespace

import pytest

from gradbench.cluster import ray_fleet
from gradbench.cluster.ray_fleet import RayFleet
from gradbench.errors import ClusterLost


def test_a_head_that_is_gone_is_lost_when_nobody_has_answered_several_knocks(monkeypatch):
    slept = []
    monkeypatch.setattr(ray_fleet.time, "sleep", slept.append)
    fleet = RayFleet("127.0.0.1:1")
    fleet._head = "127.0.0.1:1"
    with pytest.raises(ClusterLost, match=r"head of the Ray cluster, 127\.0\.0\.1:1, is gone: C"):
        fleet.machines()
    assert len(slept) == ray_fleet.KNOCKS - 1


class RayError(Exception):
    pass


def test_a_folder_that_is_too_large_to_go_is_said_and_not_that_something_failed():
    """In the words of Ray 2.60, whose first line says nothing."""
    fleet = RayFleet("127.0.0.1:1")
    fleet._ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=RayError))
    first = "Failed to set up runtime environment.\n"
    upload = "Failed to upload working_dir /a to the Ray cluster: Package size (600.00MiB) exceeds"
    more = " the maximum size of 512.00MiB. For more information, refer to https://docs.ray.io."
    why = fleet._why_not(RayError(first + upload + more))
    assert why == f"{upload} the maximum size of 512.00MiB."
    assert fleet._why_not(ValueError("no port")) == "ValueError: no port"


def test_a_head_that_answers_again_is_there(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = head.getsockname()[1]
        fleet = RayFleet("auto")
        fleet._head = "ray://127.0.0.1:1"
        monkeypatch.setattr(
            ray_fleet.time, "sleep", lambda _: setattr(fleet, "_head", f"ray://127.0.0.1:{port}")
        )
        fleet._hold_that_the_head_is_there()
        assert head.accept()
