"""What a connection to a Ray cluster says of itself where there is none, or no more."""

import socket

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
