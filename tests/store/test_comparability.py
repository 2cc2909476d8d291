"""Which facts must agree: one table for gate, history, resume, merge, baseline and exports."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from builders import MACHINE, cell, counted, run_on_a_machine

import gradbench
from gradbench.exports.numbers import machine_mark
from gradbench.gate.decide import decide
from gradbench.history.figures import origin
from gradbench.store.comparability import (
    Kind,
    agreeing,
    difference,
    identity,
    kept_for_exact,
    mismatch,
    processor,
)

KINDS = get_args(Kind)
DEVICES = ("cpu", "cuda", "cuda:1")
GPU = {
    "gpu": "H100",
    "gpu_capability": "9.0",
    "gpu_driver": "570",
    "cuda": "13.0",
    "cudnn": "9.1",
    "cudnn_benchmark": False,
    "cuda_allocator": "native",
    "cuda_settings": "defaults",
    "gpu_power_limit_mw": 700_000,
    "gpu_mig": False,
}
FACTS = MACHINE | GPU | {f"cuda:1 {name}": fact for name, fact in GPU.items()}
WHERE_KNOWN = ("gpu_power_limit_mw", "gpu_mig")
"""Facts that are compared where both sides could read them."""


@pytest.mark.parametrize("device", DEVICES)
def test_a_looser_kind_needs_no_fact_that_a_stricter_one_does_not(device):
    needs = {kind: set(agreeing(kind, [device])) - {"torch release"} for kind in KINDS}
    assert needs["exact"] <= needs["ratio"] <= needs["timed"]
    assert needs["exact"] <= needs["instructions"]
    assert needs["series"] <= needs["timed"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_fact_that_must_agree_is_missed_where_it_differs_or_is_not_there(kind, device):
    assert difference(FACTS, FACTS, kind=kind, device=device) == ""
    for name in agreeing(kind, [device]):
        fact = "torch" if name == "torch release" else name
        without = {key: value for key, value in FACTS.items() if key != fact}
        unread = (without, FACTS | {fact: "unknown: no such file"})
        for other in (FACTS | {fact: "another"}, *(() if name.endswith(WHERE_KNOWN) else unread)):
            assert name in difference(FACTS, other, kind=kind, device=device)
            assert name in difference(other, FACTS, kind=kind, device=device)


@pytest.mark.parametrize("name", WHERE_KNOWN)
def test_a_fact_that_only_some_can_read_is_compared_where_both_could(name):
    without = {key: value for key, value in FACTS.items() if key != name}
    for other in (without, FACTS | {name: "unknown: no NVML"}):
        assert difference(FACTS, other, kind="timed", device="cuda") == ""
    assert name in difference(FACTS, FACTS | {name: 0.5}, kind="timed", device="cuda")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_what_has_one_identity_is_what_does_not_differ(kind, device):
    names = agreeing(kind, [device])
    for fact in FACTS:
        other = FACTS | {fact: "another"}
        same = identity(FACTS, names) == identity(other, names)
        assert same == (difference(FACTS, other, kind=kind, device=device) == "")
        assert same == (mismatch(FACTS, other, names) == "")


def test_a_build_of_torch_is_one_for_gate_and_history_on_the_cpu_and_another_on_a_gpu():
    base = run_on_a_machine([counted(cell(), 64)], torch="2.13.0+cpu", **GPU)
    other = run_on_a_machine([counted(cell(), 64)], torch="2.13.0+cu130", **GPU)
    assert not decide([base], [other]).not_compared
    assert origin(base).build("cpu", "bytes") == origin(other).build("cpu", "bytes")
    on_gpu = [
        run_on_a_machine(
            [counted(cell(device="cuda"), 64)], torch=one.environment.facts["torch"], **GPU
        )
        for one in (base, other)
    ]
    assert decide(on_gpu[:1], on_gpu[1:]).not_compared
    assert origin(base).build("cuda", "bytes") != origin(other).build("cuda", "bytes")


def test_the_host_s_processor_is_no_obstacle_to_a_gpu_s_bytes_and_one_to_its_times():
    other = FACTS | {"cpu_capability": "AVX512", "cpu": "another", "host": "b"}
    without = {name: fact for name, fact in FACTS.items() if name != "cpu_capability"}
    for facts in (other, without):
        assert difference(FACTS, facts, kind="exact", device="cuda") == ""
        assert difference(FACTS, facts, kind="exact", device="cpu") != ""
        assert difference(FACTS, facts, kind="timed", device="cuda") != ""


def test_of_several_gpus_the_one_that_was_measured_on_counts():
    other = FACTS | {"cuda:1 gpu": "A100"}
    assert difference(FACTS, other, kind="timed", device="cuda") == ""
    assert difference(FACTS, other, kind="timed", device="cuda:1") == (
        "cuda:1 gpu was 'H100', is 'A100'"
    )
    assert [processor(other, device) for device in DEVICES] == ["some CPU", "H100", "A100"]
    on_both = [counted(cell(device="cuda:1"), 64)]
    marks = {machine_mark(run_on_a_machine(on_both, **facts)) for facts in (FACTS, other)}
    assert len(marks) == 2


def test_a_fact_that_is_mixed_on_both_sides_is_not_the_same_fact():
    mixed = FACTS | {"host": "mixed: a, b"}
    assert difference(mixed, mixed, kind="timed", device="cpu") == "host is mixed: a, b"
    assert difference(mixed, mixed, kind="exact", device="cpu") == ""


def test_a_baseline_keeps_what_exact_figures_of_its_devices_need_and_no_more():
    kept = kept_for_exact(FACTS | {"host": "secret"}, ["cpu"])
    assert set(kept) == {"protocol", "torch", "cpu_capability", "python"}
    kept = kept_for_exact(FACTS, ["cuda:1"])
    for kind in ("exact", "instructions"):
        assert difference(kept, FACTS, kind=kind, device="cuda:1") == ""
    assert not {"host", "cpu", "gpu"} & set(kept)


def test_no_other_module_keeps_a_list_of_facts_that_must_agree():
    """A constant that names three facts of the table would be a second answer."""
    names = {name for kind in KINDS for name in agreeing(kind, ["cpu", "cuda"])}
    root = Path(gradbench.__file__).parent
    holders = set()
    for path in root.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                held = {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
                if len(names & held) > 2:
                    holders.add(path.relative_to(root).as_posix())
    shown = {"exports/markdown.py", "exports/pyperf.py"}  # decide nothing
    assert holders == {"store/comparability.py"} | shown


def test_where_protocols_differ_it_is_said_what_changed():
    words = difference({"protocol": 1}, {"protocol": 2}, kind="exact", device="cpu")
    assert "protocol was '1', is '2' (each mode steps the module in a state of its own" in words
    assert "protocol was '2', is '99';" in difference(
        {"protocol": 2}, {"protocol": 99}, kind="exact", device="cpu"
    )
