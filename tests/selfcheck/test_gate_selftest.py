"""The gate's self-test: what it injects is really there, and a miss is no pass."""

import pytest
from builders import cell, counted, run_on_a_machine
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.experiment.plan import Plan
from gradbench.records.measurements import Measurement
from gradbench.records.selfcheck import Check
from gradbench.runner.bench import Bench
from gradbench.selfcheck import gate
from gradbench.selfcheck.faults import EXTRA_BYTES, Retaining, Saving, injected
from gradbench.workloads.models import MODELS

pytestmark = pytest.mark.usefixtures("shared_fork_servers")


@pytest.fixture(scope="module")
def read():
    """Bytes of the model as it is and with each fault, by fault, mode and meter."""
    plain = MODELS[gate.MODEL]
    models = {
        "plain": plain,
        "retaining": injected(plain, Retaining),
        "saving": injected(plain, Saving),
    }
    meters = [meter for meter in gate.METERS if meter != "step_time"]
    found = {}
    with Bench(plan=Plan(), models=models, meters=meters) as bench:
        here = bench.environment(["cpu"])
        for name in models:
            for outcome in gate.measure(bench, name, here).outcomes:
                assert isinstance(outcome, Measurement), outcome
                found[name, outcome.cell.grad_mode, outcome.meter] = outcome.values[0]
    return found


def test_a_tensor_more_is_saved_to_the_byte_where_a_graph_is_kept(read):
    for mode, more in (("global_on", EXTRA_BYTES), ("no_grad", 0), ("inference_mode", 0)):
        key = (mode, "saved_for_backward")
        assert read[("saving", *key)] - read[("plain", *key)] == more


def test_a_retained_graph_raises_the_peak_only_where_there_is_one(read):
    grown = {
        mode: read["retaining", mode, "peak_allocated"] - read["plain", mode, "peak_allocated"]
        for mode in ("global_on", "no_grad")
    }
    saved = read["plain", "global_on", "saved_for_backward"]
    assert grown["global_on"] >= saved > grown["no_grad"]


def test_what_does_not_come_out_as_wanted_is_a_miss(monkeypatch):
    from gradbench.gate.decide import decide
    from gradbench.stats.verdicts import Verdict

    def run_with(size: int):
        return run_on_a_machine([counted(cell(), size, meter="saved_for_backward")])

    def gated(size: int):
        return decide([run_with(4)], [run_with(size)])

    def share(size: int, wanted: Verdict) -> bool | None:
        return gate._share("name", gated(size), lambda _meter, _mode: True, wanted).passed

    assert share(4, Verdict.SAME) is True
    assert share(5, Verdict.SAME) is False
    assert share(4, Verdict.WORSE) is False
    none = gate._share("name", gated(4), lambda _meter, _mode: False, Verdict.SAME)
    assert none.passed is False


@pytest.mark.parametrize("passed", [True, False])
def test_a_failed_self_test_ends_the_command(monkeypatch, passed):
    check = Check("A/A", 1.0, "share", "4 of 4 figures", "100%", passed)
    monkeypatch.setattr(gate, "prove", lambda **_: iter([check]))
    answer = CliRunner().invoke(app, ["gate", "--self-test"])
    assert answer.exit_code == (ExitStatus.OK if passed else ExitStatus.SELF_TEST_FAILED)
    assert "A/A" in answer.stdout
