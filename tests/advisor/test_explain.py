"""Why modes differ: counts against arithmetic by hand, times that add up, a table and a figure."""

import pytest
import torch
from rich.console import Console
from torch import nn

from gradbench import Cell, Model, Store
from gradbench.advisor import Question, explain
from gradbench.analysis.explanation import differences, operators, totals
from gradbench.errors import BadModel
from gradbench.experiment.plan import Plan
from gradbench.memory.call_counts import counted
from gradbench.memory.saved_tensors import paths
from gradbench.records.explanation import Explanation, ModuleCounts
from gradbench.report import render
from gradbench.runner.module_times import ModuleClock
from gradbench.terminal.explanation_tables import explanation_tables
from gradbench.workloads.models import unlabelled

pytestmark = pytest.mark.usefixtures("shared_fork_servers")

BATCH, WIDTH = 3, 4


def net():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))


def under(mode):
    module, x = net(), torch.randn(BATCH, WIDTH)
    resident = [*module.parameters(), x]
    with mode():
        return counted(lambda: module(x), paths(module), resident)


def test_with_grad_on_each_layer_has_its_nodes_and_what_it_saves():
    found = under(torch.enable_grad)
    # a Linear: addmm and the transpose of its weight, and its two parameters
    assert sum(found["0"].nodes.values()) == sum(found["2"].nodes.values()) == 4
    assert found["1"].nodes == {"ReluBackward0": 1}
    assert found["1"].saved_bytes == BATCH * WIDTH * 4  # its result, which the next layer shares
    assert found["0"].saved_bytes == 0  # the batch, which is there anyway
    assert found["0"].operators == {"aten.t.default": 1, "aten.addmm.default": 1}
    assert (found["0"].tracked_views, found["0"].version_counters) == (1, 1)


def test_without_grad_there_are_the_same_operators_and_no_nodes():
    on, off = under(torch.enable_grad), under(torch.no_grad)
    assert all(not one.nodes and not one.saved_bytes for one in off.values())
    assert off["0"] == ModuleCounts(
        operators=on["0"].operators, tracked_views=1, version_counters=1
    )


def test_inference_mode_dispatches_the_same_operators_and_makes_no_version_counters():
    off, inference = under(torch.no_grad), under(torch.inference_mode)
    assert {p: one.operators for p, one in inference.items()} == {
        p: one.operators for p, one in off.items()
    }
    assert all(one.version_counters == 0 for one in inference.values())
    assert inference["0"].tracked_views == 1  # of the weight, which was made outside


def test_a_module_s_own_time_leaves_out_the_modules_inside_it():
    module = net()
    clock = ModuleClock(paths(module))
    step = clock.split(lambda: module(torch.ones(BATCH, WIDTH)))
    with clock.installed():
        step()
    own = clock.taken()
    assert set(own) == {"", "(model)", "0", "1", "2"}
    assert all(ns > 0 for ns in own.values())
    assert clock.taken() == {}
    assert not any("forward" in vars(one) for one in module.modules())


def chosen(seconds):
    """Return an explanation with chosen times: ns by mode and module, twelve equal rounds."""
    return Explanation(
        classes={"0": "Linear", "1": "ReLU"},
        counts={
            mode: {"0": ModuleCounts(operators={"aten.mm": 1}, nodes={"Mm": 2} if first else {})}
            for first, mode in zip((True, False, False), seconds, strict=True)
        },
        host_ns={
            mode: {path: (float(ns),) * 12 for path, ns in own.items()}
            for mode, own in seconds.items()
        },
    )


TIMES = {
    "global_on": {"0": 50, "1": 30, "": 5},
    "no_grad": {"0": 20, "1": 25, "": 5},
    "inference_mode": {"0": 20, "1": 22, "": 5},
}


def test_the_parts_add_up_to_the_whole_difference_the_largest_first():
    first, second = differences(chosen(TIMES))
    assert first.whole_ns.point == 35
    assert [(part.name, part.host_ns.point) for part in first.parts] == [
        ("0 Linear", 30),
        ("1 ReLU", 5),
    ]
    assert first.unexplained_ns == 0
    assert first.parts[0].counts.nodes == 2
    assert (second.whole_ns.point, second.parts[0].name) == (3, "1 ReLU")
    assert [row.host_ns.point for row in totals(chosen(TIMES))] == [85, 50, 47]
    (row,) = operators(chosen(TIMES))
    assert (row.name, row.calls) == ("Mm", [2, 0, 0])


def test_what_medians_do_not_add_up_to_is_called_unexplained():
    found = chosen(TIMES)
    rounds = {"0": [0.0, 0, 30] * 4, "1": [30.0, 0, 0] * 4, "": [0.0] * 12}
    host_ns = {mode: dict.fromkeys(rounds, (0.0,) * 12) for mode in TIMES}
    host_ns["global_on"] = {path: tuple(ns) for path, ns in rounds.items()}
    found = Explanation(classes=found.classes, counts=found.counts, host_ns=host_ns)
    first, _ = differences(found)
    assert first.whole_ns.point == 30
    assert first.unexplained_ns == 30  # each part's median is 0


def test_the_command_s_run_is_sealed_and_its_tables_fit(tmp_path):
    model = Model(net, lambda size: unlabelled(size, shape=(WIDTH,)))
    cell = Cell(model="m", workload="inference", grad_mode="no_grad", batch_size=BATCH)
    plan = Plan(budget_s=0.1, warmup_s=0.01, limit_s=60)
    store = Store(tmp_path)
    run, found = explain(Question(cell=cell, model=model, plan=plan), store, say=lambda words: None)
    assert store.load_all()[0][0].sealed
    lengths = {len(rounds) for own in found.host_ns.values() for rounds in own.values()}
    assert len(lengths) == 1
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(explanation_tables(found, "m"))
    shown = capture.get()
    assert max(map(len, shown.splitlines())) <= 80
    assert "global_on − no_grad: " in shown
    assert "0 Linear" in shown
    assert "unexplained" in shown
    assert "Where the difference comes from" in render(run, explanation=found)


def test_a_model_that_does_not_run_is_refused_with_its_own_words(tmp_path):
    def build():
        raise ValueError("no weights today")

    model = Model(build, lambda size: unlabelled(size, shape=(WIDTH,)))
    cell = Cell(model="m", workload="inference", grad_mode="no_grad", batch_size=BATCH)
    plan = Plan(budget_s=0.1, warmup_s=0.01, limit_s=60)
    with pytest.raises(BadModel, match="ValueError: no weights today"):
        explain(Question(cell=cell, model=model, plan=plan), Store(tmp_path), say=print)
