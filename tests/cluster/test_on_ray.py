"""Blocks on a Ray cluster of two nodes that are started here, and are killed here."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest
from builders import block

from gradbench.cluster.on_ray import OnRay
from gradbench.cluster.ray_fleet import RayFleet
from gradbench.errors import GradbenchError
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.plan import Plan
from gradbench.recording import Recording
from gradbench.records.measurements import Environment, Measurement, Skipped
from gradbench.runner import started
from gradbench.store.jsonl import Store, load
from gradbench.workloads.own_models import models_of

pytest.importorskip("ray", reason="no ray is installed: tox -e cluster")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("models_of_the_nodes")]

PLAN = Plan(budget_s=0.2, warmup_s=0.02, max_rounds=40, limit_s=60.0)
METERS = ("step_time", "peak_transient")
MODES = ("global_on", "no_grad")
WAIT_S = 300.0  # of a busy host: a worker that starts imports torch
ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "gradbench", "run", "--on", "ray", "--no-semantics"]


def recorded(
    tmp_path,
    cluster,
    cells,
    *,
    models=None,
    code=None,
    wait_s=WAIT_S,
    progress=None,
    say=pytest.fail,
):
    """Return the run of these cells on the cluster."""
    models = models_of(models or {})
    header = started(cells, plan=PLAN, meters=METERS, models=models)
    with RayFleet(cluster.address, code=code, say=say) as fleet:
        fleet.refuse_unlike()
        runner = OnRay(fleet, plan=PLAN, models=models, meters=METERS, wait_s=wait_s)
        writer = Store(tmp_path / "results").create()
        with Recording(writer, header, models=models, measured_by=runner) as recording:
            for _ in recording.measure(progress=progress):
                pass
            return recording.finish()


def blocks(count, **axes):
    return [c for size in range(count) for c in block(MODES, batch_size=2**size, **axes)]


def stays(run):
    """Return when each block was measured, and on which machine."""
    return {
        (
            datetime.fromisoformat(str(one.notes["began_at"])),
            datetime.fromisoformat(str(one.notes["ended_at"])),
            one.machine,
        )
        for one in run.outcomes
        if isinstance(one, Measurement)
    }


def test_two_nodes_of_one_host_measure_in_turns_on_the_cores_that_both_have(
    tmp_path, cluster, nodes
):
    nodes("left")
    nodes("right")
    run = recorded(tmp_path, cluster, blocks(6))
    assert run.sealed
    assert {machine for _, _, machine in stays(run)} == {"left", "right"}
    ordered = sorted(stays(run))
    assert len(ordered) == 6
    for (_, ended, _), (began, _, _) in pairwise(ordered):
        assert ended <= began
    # each record leads to its own machine's facts
    assert {run.facts_of(one)["host"] == one.machine for one in run.outcomes} == {True}
    assert run.environment.facts["host"] == "mixed: left, right" or set(
        run.environment.facts["host"].removeprefix("mixed: ").split(", ")
    ) == {"left", "right"}
    # Ray's own workers run at niceness 15: these did not
    assert {one.facts["nice"] for one in run.environments.values()} == {0}


def test_workers_of_ray_are_nice_where_nobody_asks_otherwise(cluster, nodes):
    nodes("left")
    code = f"import ray, os; ray.init({cluster.address!r}, log_to_driver=False); print('nice', "
    code += "ray.get(ray.remote(lambda: os.nice(0)).remote()))"
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert "nice 15" in done.stdout, done.stderr


def test_blocks_of_a_gpu_go_where_one_is(tmp_path, cluster, nodes):
    nodes("left")
    nodes("right", num_gpus=1)
    run = recorded(tmp_path, cluster, [*blocks(1), *blocks(2, device="cuda")])
    of_gpu = [one for one in run.outcomes if one.cell.device == "cuda"]
    assert {one.machine for one in of_gpu} == {"right"}
    assert {one.cause for one in of_gpu} == {"unavailable"}  # its torch finds no GPU there
    assert all(isinstance(one, Measurement) for one in run.outcomes if one.cell.device == "cpu")


def test_a_killed_workers_block_is_measured_all_the_same(tmp_path, cluster, nodes, folder):
    nodes("left")
    (folder / "mark").unlink(missing_ok=True)
    own = {"net": ModelSource(build="lethal:once", input=("B,4",))}
    cells = blocks(2, model="net")
    run = recorded(tmp_path, cluster, cells, models=own)
    assert (folder / "mark").exists()  # it was killed once
    assert run.sealed
    assert all(isinstance(one, Measurement) for one in run.outcomes)


def test_a_block_whose_worker_dies_each_time_is_a_reason_and_the_others_are_measured(
    tmp_path, cluster, nodes
):
    nodes("left")
    own = {"net": ModelSource(build="lethal:always", input=("B,4",))}
    run = recorded(tmp_path, cluster, [*blocks(1, model="net"), *blocks(1)], models=own)
    lost = [one for one in run.outcomes if one.cell.model == "net"]
    assert {one.cause for one in lost} == {"crashed"}
    assert all(one.reason.startswith("begun 3 times, the last on") for one in lost)
    assert all(isinstance(one, Measurement) for one in run.outcomes if one.cell.model != "net")


def test_a_killed_nodes_block_is_measured_on_another(tmp_path, cluster, nodes, folder):
    mark = folder / "mark"
    mark.unlink(missing_ok=True)
    right = nodes("right")

    def kill_in_the_midst():
        while not mark.exists():
            time.sleep(0.05)
        cluster.remove_node(right, allow_graceful=False)

    left = []

    def progress(_event):  # Ray starts nodes in the main thread alone
        if not left:
            left.append(nodes("left"))

    killing = threading.Thread(target=kill_in_the_midst, daemon=True)
    killing.start()
    own = {"net": ModelSource(build="lethal:waits_on_the_right", input=("B,4",))}
    run = recorded(tmp_path, cluster, blocks(1, model="net"), models=own, progress=progress)
    killing.join()
    assert run.sealed
    assert all(isinstance(one, Measurement) for one in run.outcomes)
    assert {one.machine for one in run.outcomes} == {"left"}


def test_a_resource_that_vanished_meets_our_deadline(tmp_path, cluster, nodes):
    nodes("left")
    right = nodes("right", num_gpus=1)
    cluster.remove_node(right, allow_graceful=False)
    run = recorded(tmp_path, cluster, blocks(1, device="cuda"), wait_s=4.0)
    assert {one.cause for one in run.outcomes} == {"unavailable"}
    assert "no machine of the cluster with a GPU could be had for 4 s" in run.outcomes[0].reason


def test_a_machine_with_other_versions_is_refused_in_one_line(cluster, nodes):
    nodes("left", torch="1.0")
    with RayFleet(cluster.address) as fleet:
        with pytest.raises(GradbenchError, match=r"left has torch 1\.0, here 2.*: install") as why:
            fleet.refuse_unlike()
        assert "\n" not in str(why.value)
        fleet.refuse_unlike(allowed=True)


def test_a_machine_that_joins_with_other_versions_is_left_out_and_that_is_said(
    tmp_path, cluster, nodes
):
    nodes("left")
    said, joined = [], []

    def progress(_event):  # Ray starts nodes in the main thread alone
        if not joined:
            joined.append(nodes("odd", torch="1.0"))

    run = recorded(tmp_path, cluster, blocks(8), progress=progress, say=said.append)
    assert {one.machine for one in run.outcomes} == {"left"}
    (line,) = said
    assert line.startswith("odd has torch 1.0, here ") and line.endswith("left out")


def test_no_cluster_is_one_line():
    with (
        pytest.raises(GradbenchError, match="cannot use the Ray cluster") as why,
        RayFleet("127.0.0.1:1"),
    ):
        pytest.fail("it was reached")
    assert "\n" not in str(why.value)


NETS = """
import os, time
from pathlib import Path
import torch

FOLDER = Path({folder!r})

def make():
    first, own = FOLDER / "first", str(os.getpid())
    if not first.exists():
        first.write_text(own)
    while first.read_text() != own and not (FOLDER / "go").exists():
        time.sleep(0.05)
    return torch.nn.Linear(4, 3)
"""
"""A model whose blocks but the first wait for a file: a command is interrupted with one kept."""


def wait_for(port):
    """Return when somebody listens at a port of this host."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        time.sleep(0.2)
    pytest.fail(f"nobody listens at {port}")


def by_client(cluster):
    """Return the address of the server of Ray's client, when it listens."""
    port = cluster.head_node._ray_params.ray_client_server_port
    wait_for(port)
    return f"ray://127.0.0.1:{port}"


def test_a_cluster_is_measured_on_by_its_client_server(tmp_path, cluster, nodes):
    nodes("left")
    options = ["--model", "mlp_tiny", "--batch-size", "1,2", "--workload", "inference"]
    options += ["--budget", "0.2", "--grad-mode", "no_grad", "--meter", "step_time"]
    done = subprocess.run(
        [*COMMAND, "--address", by_client(cluster), "--device", "cpu", *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    (sealed,) = (tmp_path / "results").glob("*.jsonl")
    run = load(sealed)
    assert {one.machine for one in run.outcomes} == {"left"}
    assert len([one for one in run.outcomes if isinstance(one, Measurement)]) == 2


@pytest.fixture
def head_with_a_token(tmp_path, free_port):
    """Return the addresses of a cluster that asks for a token: a head in a process of its own.

    The process of the tests has asked for no token before.
    """
    pytest.importorskip("ray._private.authentication", reason="this Ray knows no tokens")
    port, client = free_port(), free_port()
    short = tempfile.mkdtemp(prefix="gbt", dir="/tmp")
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command += [f"--port={port}", f"--ray-client-server-port={client}", "--num-cpus=1"]
    command += ["--include-dashboard=false", f"--temp-dir={short}"]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    said = tmp_path / "head"
    with said.open("wb") as log:
        head = subprocess.Popen(
            command, env={**os.environ, **token}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        while b"runtime started" not in said.read_bytes():
            assert head.poll() is None, said.read_text("utf-8")
            time.sleep(0.2)
        yield f"127.0.0.1:{port}", f"ray://127.0.0.1:{client}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(short, ignore_errors=True)


def test_a_cluster_that_asks_for_a_token_says_in_one_line_how_to_give_it(
    tmp_path, head_with_a_token
):
    bare = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    for address in head_with_a_token:
        wait_for(int(address.rpartition(":")[2]))
        refused = subprocess.run(
            [*COMMAND, "--address", address, "--preset", "tiny", "--device", "cpu"],
            cwd=tmp_path,
            env={**bare, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            check=False,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert refused.returncode == 2, refused.stderr
        assert (
            "where it asks for a token, set RAY_AUTH_MODE=token" in refused.stderr.splitlines()[-1]
        )


@pytest.fixture
def command(tmp_path, cluster):
    """Start the command line on the cluster, with a model from the folder it stands in."""
    (tmp_path / "nets.py").write_text(NETS.format(folder=str(tmp_path)), "utf-8")
    arguments = [*COMMAND, "--address", cluster.address]

    def start(*more):
        return subprocess.Popen(
            [*arguments, *more],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_ctrl_c_keeps_what_is_finished_and_resume_goes_on(tmp_path, cluster, nodes, command):
    nodes("left")
    nodes("right")
    model = ["--model", "nets.py:make", "--input", "8,4", "--batch-size", "1,2,4,8"]
    model += ["--workload", "inference"]
    first = command(*model, "--budget", "0.3", "--meter", "step_time", "--grad-mode", "no_grad")
    part = None
    until = time.monotonic() + 120
    while time.monotonic() < until and first.poll() is None:
        part = next(iter((tmp_path / "results").glob("*.part")), None)
        if part is not None and '"kind":"measurement"' in part.read_text("utf-8"):
            break
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    _, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    (tmp_path / "go").touch()
    assert "stopped: " in err and "--resume" in err and "--on ray" in err
    kept = len(load(part).outcomes)
    again = command("--resume", "latest", "--model", "nets.make")
    _, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    (sealed,) = (tmp_path / "results").glob("*.jsonl")
    run = load(sealed)
    assert run.sealed and len(run.outcomes) == 4 > kept >= 1
    assert not any(isinstance(one, Skipped) for one in run.outcomes)
    assert all(isinstance(one, Environment) for one in run.environments.values())
