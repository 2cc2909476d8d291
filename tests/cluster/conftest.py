"""A Ray cluster whose nodes tests start, and kill, on this host."""

import os
import shutil
import socket
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

NODES = Path(__file__).parent / "nodes"
ROOT = Path(__file__).parents[2]


@contextmanager
def variables(**values):
    """Set variables that what is started meanwhile inherits."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def models_of_the_nodes(monkeypatch):
    """Find here what the nodes have on their path."""
    monkeypatch.syspath_prepend(str(NODES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of so short a name that the names of Ray's sockets fit behind it."""
    name = tempfile.mkdtemp(prefix="gbr", dir="/tmp")
    yield Path(name)
    shutil.rmtree(name, ignore_errors=True)


@pytest.fixture(scope="session")
def free_port():
    """Return what finds a port of this host that nobody listens at."""

    def find():
        with socket.socket() as one:
            one.bind(("127.0.0.1", 0))
            return one.getsockname()[1]

    return find


@pytest.fixture(scope="module")
def cluster(folder, free_port):
    """Return a head that measures nothing; tests add nodes, and take away those they added.

    On a host so busy that Ray's agents take long to start, its raylets end themselves ("Timed out
    waiting for file"), and then it says that the node timed out; nothing lets them wait longer.
    """
    from ray.cluster_utils import Cluster

    path = os.pathsep.join([str(NODES), str(ROOT)])
    with variables(
        PYTHONPATH=path,
        GRADBENCH_LOCKS=str(folder / "locks"),
        TEST_MARK=str(folder / "mark"),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_TMPDIR=str(folder),
        RAY_health_check_period_ms="500",  # a killed node refuses the first that it misses
        RAY_health_check_timeout_ms="20000",  # a starved one answers late
        RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S="240",  # and so does a client's server
    ):
        (folder / "ray").mkdir()
        head = {"num_cpus": 0, "include_dashboard": False, "ray_client_server_port": free_port()}
        started = Cluster(initialize_head=True, head_node_args=head)
        yield started
        started.shutdown()


@pytest.fixture
def nodes(cluster):
    """Start nodes by name, and end them.

    They take turns on this host's cores, unless ``locks`` names a folder of its own.
    """
    there = {}

    def start(name, torch="", locks=None, **options):
        held_in = {"GRADBENCH_LOCKS": str(locks)} if locks else {}
        with variables(TEST_HOST=name, TEST_TORCH=torch, CUDA_VISIBLE_DEVICES="0", **held_in):
            there[name] = cluster.add_node(**{"num_cpus": 1} | options)
        return there[name]

    yield start
    for node in there.values():
        if node in cluster.worker_nodes:
            cluster.remove_node(node, allow_graceful=False)
