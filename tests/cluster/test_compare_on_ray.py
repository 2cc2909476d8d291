"""Two versions compared on a Ray cluster of nodes that are started here, and are killed here."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib import metadata
from pathlib import Path

import psutil
import pytest
from builders import quick_effort

from gradbench.cli import compare_on_ray
from gradbench.comparison import checkouts, versions
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import ModelSource
from gradbench.stats import machine_rule
from gradbench.stats.verdicts import Verdict

pytest.importorskip("ray", reason="no ray is installed: tox -e cluster")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
QUICK = quick_effort()
NETS = """
import os
import time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)
    def forward(self, x):
        time.sleep({nap})
        return self.last(torch.{activation}(self.first(x)))

def make():
    return Net()

def once():
    if not os.path.exists(os.environ["TEST_MARK"]):
        open(os.environ["TEST_MARK"], "w").close()
        import lethal
        lethal.kill_worker()
    return Net()
"""


def git(folder, *arguments):
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository whose working tree naps longer and has another activation."""
    root = tmp_path / "my project"
    root.mkdir()
    git(root, "init", "-q", "-b", "main")
    (root / "nets.py").write_text(NETS.format(nap=0.0002, activation="tanh"), "utf-8")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "first")
    (root / "nets.py").write_text(NETS.format(nap=0.002, activation="sin"), "utf-8")
    monkeypatch.chdir(root)
    yield root
    sys.modules.pop("nets", None)


def own(factory="make"):
    return Cell(model=f"nets.{factory}", workload="inference", grad_mode="global_on", batch_size=4)


def compared(cluster, cell, *, say=lambda _: None, locally=False):
    """Return the decision on a cell of the project, compared on the cluster, or on this machine."""
    asked = compare_on_ray.Asked(address=cluster.address, deadline_s=60.0, versions=False)
    how = {
        "effort": QUICK,
        "sources": {cell.model: ModelSource(build=cell.model.replace(".", ":"), input=("B,8",))},
    }
    with checkouts.checked_out_versions(here=Path.cwd(), revision="HEAD", base_python=None) as (
        base,
        candidate,
        itself,
    ):
        sides = {"base": base, "candidate": candidate}
        if locally:
            return versions.compare([cell], **sides, **how)
        with compare_on_ray.connected(asked, **sides, itself=itself, base_python=None) as spread:
            replicates = spread.replicates([cell], **how)
            return versions.compare([cell], **sides, **how, replicates=replicates, say=say)


def of(decision, meter):
    return next(one for one in decision.figure_verdicts if one.meter == meter)


def made_on(decision):
    return Counter(one.machine for one in decision.replicates)


def test_two_nodes_make_the_replicates_of_one_table(project, cluster, nodes, monkeypatch, tmp_path):
    monkeypatch.setattr(machine_rule, "FEWEST", 2)
    monkeypatch.setattr(machine_rule, "MOST", 0.3)  # one fresh replicate: two blocks settle nothing
    for name in ("left", "right"):
        nodes(name, locks=tmp_path / name)
    there, here = compared(cluster, own()), compared(cluster, own(), locally=True)
    assert set(made_on(there)) == {"left", "right"}
    assert sum(made_on(there).values()) >= 2 * QUICK.processes
    torch_build = metadata.version("torch")
    assert {facts["torch build"] for facts in there.machines.values()} == {torch_build}
    time_there, time_here = of(there, "step_time"), of(here, "step_time")
    assert time_there.change.rounds == 2  # machines
    # each side ran its own code: one naps ten times as long, and saves something else
    assert time_there.change.point > 3 < time_here.change.point
    assert "+1 aten.sin.default" in time_there.reason and "+1 aten.sin.default" in time_here.reason
    saved = of(there, "saved_for_backward")
    assert (saved.verdict, saved.reason) == (Verdict.WORSE, of(here, "saved_for_backward").reason)
    assert not here.machines


def test_a_killed_worker_s_replicate_is_made_all_the_same(project, cluster, nodes, folder):
    nodes("left")
    (folder / "mark").unlink(missing_ok=True)
    decision = compared(cluster, own("once"))
    assert (folder / "mark").exists()  # it was killed once
    assert made_on(decision)["left"] >= QUICK.processes
    assert of(decision, "step_time").verdict is Verdict.WORSE


def test_a_killed_node_s_replicates_are_made_on_another(project, cluster, nodes):
    there = {name: nodes(name) for name in ("left", "right")}
    killed = []

    def say(words):
        if words.startswith("replicate 2 on ") and not killed:
            killed.append(words.split()[3].rstrip(":"))
            node = there[killed[0]]
            threading.Thread(
                target=cluster.remove_node, args=(node,), kwargs={"allow_graceful": False}
            ).start()

    decision = compared(cluster, own(), say=say)
    (gone,) = killed
    (other,) = {"left", "right"} - {gone}
    assert made_on(decision)[other] >= QUICK.processes
    assert of(decision, "step_time").verdict is Verdict.WORSE


@pytest.fixture
def command(project, cluster):
    """Start the command line on the cluster, in the project."""
    arguments = [sys.executable, "-m", "gradbench", "compare", "--on", "ray"]
    arguments += ["--address", cluster.address, "--base", "HEAD", "--workload", "inference"]
    arguments += ["--model", "nets:make", "--input", "4,8", "--grad-mode", "global_on"]

    def start(*more):
        return subprocess.Popen(
            [*arguments, *more],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_the_command_leaves_unlike_machines_out_and_exits_as_it_does_here(cluster, nodes, command):
    nodes("left")
    nodes("right")
    nodes("odd", torch=f"{metadata.version('torch').partition('+')[0]}+another")
    out, err = (process := command("--processes", "3", "--json")).communicate(timeout=300)
    assert process.returncode == 1, err
    found = json.loads(out)
    (one,) = (each for each in found["verdicts"] if each["meter"] == "step_time")
    assert one["verdict"] == "worse"
    assert len(found["machines"]) == 1 and set(found["machines"]) < {"left", "right"}
    lines = " ".join(err.split())
    assert "2 equal machines (" in lines and "fewer than 5 are no blocks" in lines
    assert "left out, for unlike machines do not mix: odd: " in lines


def test_ctrl_c_leaves_no_process_and_no_worktree(project, cluster, nodes, command):
    nodes("left")
    before = git(project, "worktree", "list")
    process = command("--processes", "40")
    said = ""
    while "replicate 1 on left" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, said + err
    until = time.monotonic() + 30
    while (left := workers()) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    assert git(project, "worktree", "list") == before


def workers():
    """Return the processes of this host that step versions for a cluster's node."""
    found = []
    for one in psutil.process_iter(["cmdline", "environ"]):
        command, variables = one.info["cmdline"] or [], one.info["environ"] or {}
        if any(part.endswith("comparison/worker.py") for part in command):
            found += [one] if variables.get("TEST_HOST") else []
    return found


def test_a_cluster_without_the_device_meets_our_deadline(project, cluster, nodes, command):
    nodes("left")
    process = command("--device", "cuda", "--deadline", "4")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 5, out + err
    assert "no machine of the cluster with a GPU could be had for 4 s" in " ".join(out.split())
