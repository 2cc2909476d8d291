"""Why modes differ: counts against arithmetic by hand, times that add up, a table and a figure."""

from dataclasses import replace

import pytest
import torch
from batches import unlabelled
from matplotlib.text import Text
from patience import PATIENCE_S
from rich.console import Console
from torch import nn
from typer.testing import CliRunner

from gradbench import Cell, Model, Store
from gradbench.advisor import Question, explain
from gradbench.analysis.explanation import differences, operator_differences, operators, totals
from gradbench.cli import app
from gradbench.devices import trace
from gradbench.devices.trace import OperatorProfile
from gradbench.errors import BadModel
from gradbench.experiment.plan import Plan
from gradbench.memory.call_counts import counted
from gradbench.memory.saved_tensors import paths
from gradbench.records.explanation import Explanation, ModuleCounts, OperatorCounts
from gradbench.report import render
from gradbench.report.figures.difference import difference
from gradbench.runner.module_times import ModuleClock
from gradbench.terminal.explanation_tables import explanation_tables

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
    found = under(torch.enable_grad).modules
    # a Linear: addmm and the transpose of its weight, and its two parameters
    assert sum(found["0"].nodes.values()) == sum(found["2"].nodes.values()) == 4
    assert found["1"].nodes == {"ReluBackward0": 1}
    assert found["1"].saved_bytes == BATCH * WIDTH * 4  # its result, which the next layer shares
    assert found["0"].saved_bytes == 0  # the batch, which is there anyway
    assert found["0"].operators == {"aten.t.default": 1, "aten.addmm.default": 1}
    assert (found["0"].tracked_views, found["0"].version_counters) == (1, 1)


def test_without_grad_there_are_the_same_operators_and_no_nodes():
    on, off = under(torch.enable_grad).modules, under(torch.no_grad).modules
    assert all(not one.nodes and not one.saved_bytes for one in off.values())
    assert off["0"] == ModuleCounts(
        operators=on["0"].operators, tracked_views=1, version_counters=1
    )


def test_inference_mode_dispatches_the_same_operators_and_makes_no_version_counters():
    off, inference = under(torch.no_grad).modules, under(torch.inference_mode).modules
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
    with clock.installed():
        pass
    assert clock.taken() == {}
    assert not any("forward" in vars(one) for one in module.modules())


def test_an_operator_has_the_nodes_made_just_before_it_and_what_they_save():
    found = under(torch.enable_grad).operators
    # addmm makes its node and those of weight and bias; the weight is transposed, in a node too
    assert {name: (one.nodes, one.saved_bytes) for name, one in found.items()} == {
        "aten::t": (4, 0),
        "aten::addmm": (4, 0),
        "aten::relu": (1, BATCH * WIDTH * 4),
    }
    assert under(torch.no_grad).operators == {}


def test_a_call_that_fails_with_hooks_is_counted_but_for_what_it_saves():
    module, x = net(), torch.randn(BATCH, WIDTH)

    def call():
        return torch.func.grad(lambda one: module(one).sin().sum())(x)

    found = counted(call, paths(module), [*module.parameters(), x])
    assert sum(found.modules["0"].operators.values()) > 0
    saved = [one.saved_bytes for one in (*found.modules.values(), *found.operators.values())]
    assert set(saved) == {None}
    assert sum(one.nodes for one in found.operators.values()) > 0


class Twice(torch.autograd.Function):
    """Saves a tensor that no operator of torch's saves."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x * 3)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


def test_what_a_function_of_the_user_s_saves_is_its_first_operator_s():
    x = torch.randn(BATCH, WIDTH, requires_grad=True)
    found = counted(lambda: Twice.apply(x), {}, [x]).operators
    assert found["aten::mul"].saved_bytes == BATCH * WIDTH * 4


def test_an_operator_s_own_time_leaves_out_the_operators_inside_it():
    module, x = net(), torch.ones(BATCH, WIDTH)
    with OperatorProfile() as profile:
        module(x)  # no call that counts
        profile.call(lambda: module(x))
        profile.call(lambda: module(x))
    own = profile.own_times()
    assert own[""].calls == 2
    calls = [own[f"aten::{name}"].calls for name in ("linear", "addmm", "relu")]
    assert calls == [4, 4, 2]
    assert all(one.own_ns > 0 for one in own.values())


def test_ranges_inside_a_range_are_no_part_of_its_own_time():
    own = {}
    ranges = [
        (0, -100, trace.CALL),
        (10, -60, "a"),
        (20, -50, "b"),
        (60, -90, "a"),
        (200, -210, "c"),
    ]
    # the last is outside of every call
    trace._add_own_times(own, ranges)
    assert own == {
        "": trace.OwnTime(1, 20),
        "a": trace.OwnTime(2, 50),
        "b": trace.OwnTime(1, 30),
    }


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
        operators={
            mode: {"aten::mm": OperatorCounts(calls=2, nodes=2 * first, saved_bytes=64 * first)}
            for first, mode in zip((True, False, False), seconds, strict=True)
        },
        operator_ns={
            mode: {"aten::mm": (own["0"] + 1.0,) * 12, "": (9.0,) * 12}
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


def test_operators_are_parts_too_with_their_calls_and_what_they_save():
    first, second = operator_differences(chosen(TIMES))
    (part,) = first.parts
    assert (part.name, part.host_ns.point) == ("aten::mm", 30)
    assert (part.counts.operators, part.counts.nodes, part.counts.saved_bytes) == (0, 2, 64)
    assert (first.whole_ns.point, first.unexplained_ns) == (30, 0)
    assert (second.whole_ns.point, list(second.parts)) == (0, [])


def test_what_medians_do_not_add_up_to_is_called_unexplained():
    found = chosen(TIMES)
    rounds = {"0": [0.0, 0, 30] * 4, "1": [30.0, 0, 0] * 4, "": [0.0] * 12}
    host_ns = {mode: dict.fromkeys(rounds, (0.0,) * 12) for mode in TIMES}
    host_ns["global_on"] = {path: tuple(ns) for path, ns in rounds.items()}
    found = replace(found, host_ns=host_ns)
    first, _ = differences(found)
    assert first.whole_ns.point == 30
    assert first.unexplained_ns == 30  # each part's median is 0


def test_what_is_saved_and_not_known_is_no_number_on_the_screen():
    found = chosen(TIMES)
    counts = {
        mode: {path: replace(one, saved_bytes=None) for path, one in own.items()}
        for mode, own in found.counts.items()
    }
    found = replace(found, counts=counts)
    assert [row.counts.saved_bytes for row in totals(found)] == [None] * 3
    assert differences(found)[0].parts[0].counts.saved_bytes is None
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(explanation_tables(found, "m"))
    assert " ?" in capture.get()
    assert "What is saved is not known" in capture.get()


@pytest.mark.slow
def test_the_command_s_run_is_sealed_and_its_tables_fit(tmp_path):
    model = Model(net, lambda size: unlabelled(size, shape=(WIDTH,)))
    cell = Cell(model="m", workload="inference", grad_mode="no_grad", batch_size=BATCH)
    plan = Plan(budget_s=0.1, warmup_s=0.01, limit_s=PATIENCE_S)
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
    assert "global_on − no_grad, by module: " in shown
    assert "global_on − no_grad, by operator" in shown
    assert "aten::addmm" in shown
    assert found.operators["global_on"]["aten::addmm"].calls == 2
    lengths = {len(rounds) for own in found.operator_ns.values() for rounds in own.values()}
    assert len(lengths) == 1
    assert "0 Linear" in shown
    assert "unexplained" in shown
    assert "Where the difference comes from" in render(run, explanation=found)


def test_a_model_that_does_not_run_is_refused_with_its_own_words(tmp_path):
    def build():
        raise ValueError("no weights today")

    model = Model(build, lambda size: unlabelled(size, shape=(WIDTH,)))
    cell = Cell(model="m", workload="inference", grad_mode="no_grad", batch_size=BATCH)
    plan = Plan(budget_s=0.1, warmup_s=0.01, limit_s=PATIENCE_S)
    with pytest.raises(BadModel, match="ValueError: no weights today") as raised:
        explain(Question(cell=cell, model=model, plan=plan), Store(tmp_path), say=print)
    first, *_ = raised.value.traceback.splitlines()  # their own line, which is shown above
    assert first.endswith("in build")


@pytest.mark.slow
def test_the_command_says_where_nothing_was_computed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = ["--model", "zoo.modules:Silent", "--input", "4,16", "--budget", "0.05"]
    ended = CliRunner().invoke(app, ["explain", *chosen])
    assert ended.exit_code == 0, ended.output
    assert "forward returned None: what is shown is the cost of that call alone" in " ".join(
        ended.output.split()
    )


def texts(figure):
    drawn = [text for axes in figure.axes for text in axes.findobj(Text)]
    return [text.get_text() for text in drawn if text.get_text()]


def test_a_bar_is_hollow_where_its_interval_holds_0_and_the_rest_has_one_of_its_own():
    """Of 3 modules one is sure, one is not, and one is too short to be seen."""
    found = chosen({mode: {"0": 0, "1": 0, "2": 0} for mode in TIMES})
    sure, unsure, faint = (50.0,) * 12, (90.0, -30.0) * 6, (0.1,) * 12
    found.host_ns["global_on"].update({"0": sure, "1": unsure, "2": faint})
    first, _ = differences(found)
    figure = difference([first])
    (axes,) = figure.axes
    filled = {bar.get_y() + bar.get_height() / 2: bar.get_facecolor()[3] for bar in axes.patches}
    named = dict(enumerate(label.get_text() for label in axes.get_yticklabels()))
    assert {named[round(row)]: opaque for row, opaque in filled.items()} == {
        "0 Linear": 1.0,
        "1 ReLU": 0.0,
        "1 more, and unexplained": 1.0,
    }
    assert "+50 ns, +2 nodes" in texts(figure)


def test_times_of_the_figure_have_a_minus_and_no_hyphen_and_0_no_unit():
    swapped = {**TIMES, "global_on": TIMES["no_grad"], "no_grad": TIMES["global_on"]}
    figure = difference(differences(chosen(swapped)))
    figure.canvas.draw()
    said = texts(figure)
    assert "0" in said
    assert any("−30 ns" in text for text in said)
    assert not any("-" in text and "ns" in text for text in said)


def test_one_disturbed_part_leaves_the_others_to_be_seen():
    found = chosen({mode: {"0": 0, "1": 0} for mode in TIMES})
    found.host_ns["global_on"].update({"0": (50.0,) * 12, "1": (9e6, -9e6, 30.0) * 4})
    first, _ = differences(found)
    (axes,) = difference([first]).axes
    low, high = axes.get_xlim()
    assert -100 <= low <= 0
    assert 50 < high <= 100
