"""Budgets in anybody's tests: what is counted is arithmetic, and a failure says where to look."""

import re
import subprocess
import sys
import textwrap
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
import torch
from patience import PATIENCE_S
from torch import nn

# An inner session in this process must find these loaded: torch loads only once.
from gradbench import devices
from gradbench.memory import leaks, usage
from gradbench.memory.saved_tensors import ROOT, paths
from gradbench.memory.usage import memory_usage
from gradbench.records.allocations import attribute_peak
from gradbench.workloads.models import mlp

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.usefixtures("collected")

LOADED = (leaks, usage)
LEAN = ("-p", "no:hypothesispytest", "-p", "no:cacheprovider")
FLOAT = 4
BATCH, WIDE, HIDDEN, CLASSES = 2, 8, 16, 4
HIDDEN_BYTES = BATCH * HIDDEN * FLOAT  # 128: what the linear layer makes, and the ReLU again
PEAK = 2 * HIDDEN_BYTES  # 256: a ReLU beside its input, on which the linear layer holds no claim
SAVED = HIDDEN_BYTES  # by the ReLU, its result; the next layer saves the same storage again
OVER = "gradbench.pytest_plugin.memory_budget.OverBudget: "
PREAMBLE = f"""\
import pytest
import torch
from torch import nn

budget = pytest.mark.memory_budget
KEPT, CACHE = [], {{}}

@pytest.fixture
def net():
    return nn.Sequential(
        nn.Linear({WIDE}, {HIDDEN}), nn.ReLU(), nn.Linear({HIDDEN}, {CLASSES})
    )

@pytest.fixture
def x():
    return torch.randn({BATCH}, {WIDE})

"""


@pytest.fixture(autouse=True, scope="module")
def _imported():
    """What torch imports on first use would be imported twice: pytester takes it back each time."""
    leaks.kept(lambda: torch.zeros(1).add(1), lambda: None, {})


@dataclass(frozen=True)
class Verdict:
    """How a test of an inner session went, and the words of its failure."""

    outcome: str
    words: str = ""
    errors: int = 1  # that pytest shows, one during another


@pytest.fixture
def verdicts(pytester):
    """Return a function that runs tests in an inner session and returns verdicts by name."""

    def run(tests: str) -> dict[str, Verdict]:
        write(pytester, tests)
        found = pytester.inline_run(*LEAN, "-p", "no:terminal", "--strict-markers")
        return {
            report.nodeid.rpartition("::")[2]: Verdict(
                report.outcome,
                report.longrepr.reprcrash.message if report.failed else "",
                len(getattr(report.longrepr, "chain", "1")),
            )
            for report in found.getreports("pytest_runtest_logreport")
            if report.when == "call"
        }

    return run


def write(pytester, tests: str) -> None:
    (pytester.path / "pytest.ini").write_text("[pytest]\n", "utf-8")
    text = PREAMBLE + textwrap.dedent(tests)
    (pytester.path / "test_it.py").write_text(text, "utf-8")


def line_of(words: str, tests: str) -> int:
    """Return the number of the line of `tests` that has these words."""
    (number,) = (
        number
        for number, line in enumerate((PREAMBLE + textwrap.dedent(tests)).splitlines(), 1)
        if words in line
    )
    return number


LIMITS = f"""
    @budget(peak={PEAK}, saved={SAVED}, leaked=0)
    def test_at(net, x):
        net(x)

    @budget(peak={PEAK - 1})
    def test_over_peak(net, x):
        net(x)  # peaks

    @budget(saved={SAVED - 1})
    def test_over_saved(net, x):
        net(x)  # saves

    @budget(peak=0, saved=0, leaked=0)
    def test_over_all(net, x):
        KEPT.append(net(x))
"""


def test_a_limit_is_the_last_byte_that_passes(verdicts):
    found = verdicts(LIMITS)
    at_peak = f"test_it.py:{line_of('# peaks', LIMITS)} in test_over_peak"
    assert found["test_at"] == Verdict("passed")
    assert found["test_over_peak"].words == (
        f"{OVER}memory peak of 256 B exceeds the limit of 255 B; "
        f"at the peak: 128 B by aten::addmm in 0 Linear ({at_peak}), "
        f"128 B saved for backward by aten::clamp_min in 1 ReLU ({at_peak})"
    )
    assert found["test_over_saved"].words == (
        f"{OVER}128 B saved for backward exceed the limit of 127 B; "
        f"128 B in 1 (test_it.py:{line_of('# saves', LIMITS)} in test_over_saved)"
    )
    lines = found["test_over_all"].words.removeprefix(OVER).splitlines()
    assert [line.partition(" exceed")[0] for line in lines] == [
        f"memory peak of {PEAK} B",
        f"{SAVED} B saved for backward",
        f"{SAVED + BATCH * CLASSES * FLOAT} B left behind by each call",
    ]


GRAPHS = """
    @budget(saved=0)
    def test_graph(net, x):
        net(x)  # records

    @budget(saved=0)
    def test_no_graph(net, x):
        with torch.no_grad():
            net(x)

    @budget(saved=0)
    @torch.inference_mode()
    def test_inference(net, x):
        net(x)

    @budget(saved=0)
    def test_built_here():
        x = torch.randn(4, requires_grad=True)
        x.exp()  # of nobody
"""


def test_saved_0_forbids_a_graph_and_names_who_builds_one(verdicts):
    found = verdicts(GRAPHS)
    assert found["test_no_graph"] == found["test_inference"] == Verdict("passed")
    assert found["test_graph"].words == (
        f"{OVER}128 B saved for backward exceed the limit of 0 B; a graph is built here: "
        f"128 B in 1 (test_it.py:{line_of('# records', GRAPHS)} in test_graph)"
    )
    place = f"test_it.py:{line_of('# of nobody', GRAPHS)} in test_built_here"
    assert found["test_built_here"].words.endswith(f"16 B outside of any module ({place})")


MADE_HERE = """
    def made():
        return nn.Sequential(nn.Linear(8, 16), nn.Sequential(nn.ReLU()), nn.Linear(16, 4))

    @budget(saved=0)
    def test_saved(x):
        net = made()
        net(x)  # records

    @budget(saved=128)
    def test_all_that_it_saves(x):
        net = made()
        net(x)

    @budget(saved=0)
    def test_nothing_recorded(x):
        with torch.no_grad():
            made()(x)

    @budget(peak=1)
    def test_peak(x):
        net = made()
        net(x)  # takes

    @budget(saved=128)
    def test_again_and_again(x):
        for _ in range(3):
            made()(x)
"""


def test_weights_of_a_model_that_the_test_makes_are_not_saved_and_its_modules_have_names(verdicts):
    found = verdicts(MADE_HERE)
    assert found["test_saved"].words == (
        f"{OVER}128 B saved for backward exceed the limit of 0 B; a graph is built here: "
        f"128 B in Sequential.1.0 (test_it.py:{line_of('# records', MADE_HERE)} in test_saved)"
    )
    for name in ("test_all_that_it_saves", "test_nothing_recorded", "test_again_and_again"):
        assert found[name] == Verdict("passed"), name
    place = f"test_it.py:{line_of('# takes', MADE_HERE)} in test_peak"
    assert f"by aten::addmm in Sequential.0 ({place})" in found["test_peak"].words


SIZES = """
    def take(kibibytes):
        torch.empty(kibibytes * 1024, dtype=torch.uint8)  # takes

    @budget(peak="2 KiB")
    def test_text(): take(2)

    @budget(peak="2KiB")
    def test_text_over(): take(3)

    @budget(peak=2048.0)
    def test_float(): take(2)

    @budget(peak="2 kB")
    def test_decimal(): take(2)
"""


def test_sizes_may_be_texts_with_units(verdicts):
    found = verdicts(SIZES)
    assert {name: verdict.outcome for name, verdict in found.items()} == {
        "test_text": "passed",
        "test_text_over": "failed",
        "test_float": "passed",
        "test_decimal": "failed",
    }
    place = f"test_it.py:{line_of('# takes', SIZES)} in take"
    assert found["test_text_over"].words == (
        f"{OVER}memory peak of 3 KiB (3,072 B) exceeds the limit of 2 KiB (2,048 B); "
        f"at the peak: 3 KiB (3,072 B) by aten::empty ({place})"
    )


MISTAKES = """
    @budget(speak=1)
    def test_keyword(): CACHE["ran"] = True

    @budget(10)
    def test_position(): CACHE["ran"] = True

    @budget(saved="many")
    def test_size(): CACHE["ran"] = True

    @budget(peak=-1)
    def test_negative(): CACHE["ran"] = True

    def test_fixture(memory_budget):
        memory_budget(lambda: CACHE.setdefault("ran", True), leaked="1 XiB")

    def test_nothing_ran():
        assert not CACHE
"""


def test_a_mistake_in_a_budget_is_reported_in_one_line_that_names_the_test(verdicts):
    found = verdicts(MISTAKES)
    assert {verdict.errors for verdict in found.values()} == {1}
    no_size = "is no size: write 80GiB, 1.5MiB or 24GB"
    assert {name: verdict.words for name, verdict in found.items() if verdict.words} == {
        name: f"Failed: {words}"
        for name, words in {
            "test_keyword": "test_it.py::test_keyword: memory_budget has no 'speak': "
            "name peak, saved, leaked",
            "test_position": "test_it.py::test_position: memory_budget has no 10: "
            "name peak, saved, leaked",
            "test_size": f"test_it.py::test_size: saved: 'many' {no_size}",
            "test_negative": f"test_it.py::test_negative: peak: '-1' {no_size}",
            "test_fixture": f"memory_budget: leaked: '1 XiB' {no_size}",
        }.items()
    }
    assert found["test_nothing_ran"] == Verdict("passed")


LEAKS = """
    @budget(leaked=0)
    def test_loss(net, x):
        with torch.no_grad():
            y = net(x)
        loss = y.square().mean()
        KEPT.append(loss)

    @budget(leaked=0)
    def test_output(net, x):
        KEPT.append(net(x))  # with its graph

    @budget(leaked=0)
    def test_item(net, x):
        KEPT.append(net(x).square().mean().item())

    @budget(leaked=0)
    def test_cache(net, x):
        if "first" not in CACHE:
            CACHE["first"] = net(x)

    @budget(leaked=4)
    def test_allowed(net, x):
        KEPT.append(net(x).sum().detach())

    @budget(leaked=0)
    def test_cycle():
        ring = [torch.ones(8)]
        ring.append(ring)
"""


def test_what_each_call_leaves_is_named_and_what_one_fills_is_no_leak(verdicts):
    found = verdicts(LEAKS)
    for clean in ("test_item", "test_cache", "test_allowed", "test_cycle"):
        assert found[clean] == Verdict("passed")
    loss, line = found["test_loss"].words, line_of("loss = y", LEAKS)
    assert loss == (
        f"{OVER}4 B left behind by each call exceed the limit of 0 B: "
        f"4 B a step made by aten::mean (test_it.py:{line} in test_loss)"
    )
    line = line_of("# with its graph", LEAKS)
    output = BATCH * CLASSES * FLOAT
    assert found["test_output"].words == (
        f"{OVER}{SAVED + output} B left behind by each call exceed the limit of 0 B: "
        f"{SAVED} B a step made by aten::relu in 1 (test_it.py:{line} in test_output); "
        f"{output} B a step made by aten::addmm in 2 (test_it.py:{line} in test_output)"
    )


SHAPES = """
    @budget(peak=16)
    class TestOfAClass:
        @pytest.mark.parametrize("numbers", [4, 5])
        def test_method(self, numbers):
            torch.empty(numbers)

        @budget(peak=20)
        def test_closer(self):
            torch.empty(5)

    @budget(peak=16)
    @pytest.mark.parametrize("numbers", [4, 5])
    def test_function(numbers, tmp_path):
        torch.empty(numbers)

    @budget(peak=16)
    def test_result_and_fixtures_are_not_counted(net, x):
        pass

    @budget(peak=0)
    def test_asserts():
        torch.empty(4)
        assert 1 + 1 == 3

    @budget(peak=0, leaked=0)
    def test_skips():
        torch.empty(4)
        pytest.skip("not today")

    @budget(peak=0)
    @pytest.mark.xfail(strict=True)
    def test_xfails():
        torch.empty(4)
"""


def test_a_marked_test_is_otherwise_as_any(verdicts):
    found = verdicts(SHAPES)
    assert {name: verdict.outcome for name, verdict in found.items()} == {
        "test_method[4]": "passed",
        "test_method[5]": "failed",
        "test_closer": "passed",
        "test_function[4]": "passed",
        "test_function[5]": "failed",
        "test_result_and_fixtures_are_not_counted": "passed",
        "test_asserts": "failed",
        "test_skips": "skipped",
        "test_xfails": "skipped",
    }
    for name in ("test_method[5]", "test_function[5]"):
        assert found[name].words.startswith(f"{OVER}memory peak of 20 B exceeds")
    assert found["test_asserts"].words == "assert (1 + 1) == 3"


CLASHES = """
    @pytest.fixture(params=["cpu"])
    def device(request):
        return request.param

    @budget(peak=16)
    def test_device(device):
        torch.empty(4, device=device)

    @pytest.mark.parametrize("function", [abs])
    @pytest.mark.parametrize("modules", [()])
    @pytest.mark.parametrize("leaks_too", [1])
    @budget(peak=0)
    def test_names(function, modules, leaks_too):
        assert (function(-1), modules, leaks_too) == (1, (), 1)

    def test_keywords(memory_budget):
        memory_budget(torch.empty, 4, peak=16, kwargs={"device": "cpu"})
"""


def test_arguments_may_have_any_name(verdicts):
    assert set(verdicts(CLASHES).values()) == {Verdict("passed")}


FIXTURE = f"""
    def test_within(memory_budget, net, x):
        usage = memory_budget(net, x, peak={PEAK}, saved={SAVED}, leaked=0)
        assert (usage.peak_bytes, usage.saved_bytes, usage.leaked_bytes) == ({PEAK}, {SAVED}, 0)

    def test_not_asked(memory_budget, net, x):
        assert memory_budget(net, x, saved={SAVED}).leaked_bytes is None

    def test_keywords(memory_budget, net, x):
        memory_budget(net, kwargs={{"input": x}}, peak={PEAK})

    def test_over(memory_budget, net, x):
        memory_budget(net, x, saved=0)  # over

    def test_leaks(memory_budget):
        memory_budget(lambda: KEPT.append(torch.ones(8)), leaked="31 B")  # leaks

    def test_raises(memory_budget, net):
        with pytest.raises(RuntimeError, match="shapes"):
            memory_budget(net, torch.ones(3, 3), peak=0)
"""


def test_the_fixture_holds_one_call_to_its_limits_and_returns_what_it_used(verdicts):
    found = verdicts(FIXTURE)
    for name in ("test_within", "test_not_asked", "test_keywords", "test_raises"):
        assert found[name] == Verdict("passed")
    assert found["test_over"].words == (
        f"{OVER}128 B saved for backward exceed the limit of 0 B; a graph is built here: "
        f"128 B in 1 (test_it.py:{line_of('# over', FIXTURE)} in test_over)"
    )
    assert found["test_leaks"].words == (
        f"{OVER}32 B left behind by each call exceed the limit of 31 B: 32 B a step made by "
        f"aten::ones (test_it.py:{line_of('# leaks', FIXTURE)} in <lambda>)"
    )


def test_a_failure_shows_the_test_and_no_frame_of_the_plugin(pytester):
    write(pytester, FIXTURE)
    shown = pytester.runpytest_inprocess(*LEAN, "-k", "test_over or test_leaks").stdout.str()
    assert "memory_budget(net, x, saved=0)  # over" in shown
    assert "raise OverBudget" not in shown
    assert "_hold(" not in shown
    assert "memory_budget.py:" not in shown.replace("test_memory_budget.py:", "")


def test_budgets_work_without_pytest_benchmark_and_say_what_failed(pytester):
    """In its own process, as users have it."""
    write(pytester, GRAPHS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *LEAN, "-p", "no:benchmark", "--strict-markers", "-q"],
        cwd=pytester.path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert "2 failed, 2 passed" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert re.search(r"E  .*OverBudget: 128 B saved for backward exceed the limit", done.stdout)


# The same, in Python


@pytest.fixture(scope="module")
def net():
    return mlp(WIDE, HIDDEN, CLASSES)


@pytest.fixture(scope="module")
def x():
    return torch.randn(BATCH, WIDE)


def test_a_forward_takes_and_saves_what_arithmetic_says(net, x):
    used = memory_usage(net, x)
    assert (used.peak_bytes, used.saved_bytes, used.leaked_bytes) == (PEAK, SAVED, None)
    (one,) = used.saved
    assert (one.nbytes, one.shape, one.dtype, one.module) == (
        SAVED,
        (BATCH, HIDDEN),
        "float32",
        "1",
    )
    assert one.line.startswith("test_memory_budget.py:")


def test_without_a_graph_nothing_is_saved(net, x):
    with torch.no_grad():
        used = memory_usage(net, x)
    assert (used.peak_bytes, used.saved) == (PEAK, ())


def test_numpy_s_memory_is_in_no_figure_and_named_where_it_is_saved(net):
    def call():
        return net(torch.from_numpy(np.ones((BATCH, WIDE), np.float32)))

    used = memory_usage(call)
    assert (used.peak_bytes, used.saved_bytes) == (PEAK, SAVED)
    assert used.outside_bytes == BATCH * WIDE * FLOAT
    assert memory_usage(net, torch.ones(BATCH, WIDE)).outside_bytes == 0


def test_a_forward_and_backward_peak_at_the_last_gradient():
    """Gradients of all parameters, beside the output, which the caller holds, and the gradient of
    the first layer's output: the weights are so large that no other moment is higher."""
    wide, hidden, classes, batch = 64, 32, 4, 2
    net, x = mlp(wide, hidden, classes), torch.randn(batch, wide)
    at_output = torch.ones(batch, classes)

    def step():
        net(x).backward(at_output)

    used = memory_usage(step)
    gradients = wide * hidden + hidden + hidden * classes + classes
    assert used.peak_bytes == (gradients + batch * classes + batch * hidden) * FLOAT
    assert used.saved_bytes == batch * hidden * FLOAT
    assert sum(left.nbytes for left in used.breakdown.left) == gradients * FLOAT


class Trainer:
    """Somebody's own class around a network."""

    def __init__(self, net):
        self.net = net

    def step(self, net, x):
        return net(x)

    def own(self, x):
        return self.net(x)


def test_modules_are_found_wherever_a_function_has_them(net, x):
    def closure():
        return net(x)

    ways = {
        "itself": partial(memory_usage, net, x),
        "closure": partial(memory_usage, closure),
        "bound": partial(memory_usage, net.forward, x),
        "argument": partial(memory_usage, Trainer(None).step, net, x),
        "keyword": partial(memory_usage, partial(Trainer(None).step, net=net, x=x)),
        "owner": partial(memory_usage, Trainer(net).own, x),
        "partial": partial(memory_usage, partial(net, x)),
        "given": partial(memory_usage, partial(net, x), modules=paths(net)),
    }
    found = {name: [one.module for one in way().saved] for name, way in ways.items()}
    assert found == {name: ["1"] for name in ways}


def test_functions_of_a_root_are_called_the_models_own(x):
    class Squares(nn.Module):
        def forward(self, x):
            return (x + 1).square()

    x = x.clone().requires_grad_()
    (one,) = memory_usage(Squares(), x).saved
    assert one.module == ROOT
    assert one.line.startswith("test_memory_budget.py:")


def test_what_the_function_raises_passes_through_and_no_hook_stays(net):
    class Its(Exception):
        pass

    def fails():
        net(torch.ones(1, WIDE))
        raise Its

    with pytest.raises(Its):
        memory_usage(fails)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in net.modules())
    assert memory_usage(net, torch.ones(1, WIDE)).peak_bytes == PEAK // BATCH


def test_it_is_called_as_it_is_and_once_with_hooks_and_more_for_leaks(x):
    calls = []
    memory_usage(calls.append, x)
    assert len(calls) == 2
    kept = []
    used = memory_usage(lambda: kept.append(x.clone()), leaks_too=True)
    assert used.leaked_bytes == x.nbytes
    assert {birth.nbytes for birth in used.kept} == {x.nbytes}
    assert memory_usage(lambda: None, leaks_too=True).kept == ()


UNCOMMON = """
    import queue
    import threading
    import unittest
    from concurrent.futures import ThreadPoolExecutor

    NET = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    @budget(saved=0)
    async def test_async(x):
        NET(x)

    @budget(saved=0)
    class TestUnit(unittest.TestCase):
        def test_graph(self):
            NET(torch.randn(2, 8))

        @torch.no_grad()
        def test_no_graph_here(self):
            NET(torch.randn(2, 8))

        @budget(peak=1)
        @torch.no_grad()
        def test_of_both(self):
            NET(torch.randn(2, 8))

    @budget(saved=0)
    class TestLoosened:
        @budget(peak="10 MiB")
        def test_still_no_graph(self, x):
            NET(x)

        @budget(saved="1 MiB")
        def test_graph_allowed(self, x):
            NET(x)

    @budget(saved=0)
    def test_pool(x):
        with ThreadPoolExecutor(1) as pool:
            list(pool.map(NET, [x]))

    GIVEN, DONE = queue.SimpleQueue(), queue.SimpleQueue()

    def worker():
        while True:
            DONE.put(GIVEN.get()())

    threading.Thread(target=worker, daemon=True).start()

    @budget(peak="1 KiB")
    def test_own_thread(x):
        GIVEN.put(lambda: [NET(x) for _ in range(100)] and None)
        DONE.get()

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.x = x.clone()
            return x * x

        @staticmethod
        def backward(ctx, g):
            return 2 * ctx.x * g

    @budget(saved=0)
    def test_ctx(x):
        return Square.apply(x.requires_grad_())

    @budget(saved="1 KiB")
    def test_functional(x):
        torch.func.grad(lambda one: NET(one).sum())(x)

    @budget(peak="1 KiB")
    def test_functional_peak(x):
        torch.func.grad(lambda one: NET(one).sum())(x)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestReturnNotNoneWarning")
def test_a_limit_is_held_or_the_test_fails(verdicts):
    found = verdicts(UNCOMMON)
    passed = {name for name, verdict in found.items() if verdict.outcome == "passed"}
    assert passed == {"test_no_graph_here", "test_graph_allowed", "test_functional_peak"}
    assert "cannot hold on an async test" in found["test_async"].words
    for name in ("test_graph", "test_still_no_graph"):
        assert "saved for backward exceed the limit of 0 B; a graph is built" in found[name].words
    assert "memory peak of 320 B exceeds the limit of 1 B" in found["test_of_both"].words
    assert "a graph is built here: 128 B in 1" in found["test_pool"].words
    assert "Sequential ran in a thread that was there before" in found["test_own_thread"].words
    assert "keeps tensors by an attribute" in found["test_ctx"].words
    assert "could not be held to 1 KiB (1,024 B): with hooks" in found["test_functional"].words


ELSEWHERE = """
    import unittest
    from functools import partial
    from hypothesis import given, settings, strategies as st

    NET = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    X = torch.randn(2, 8)
    pytestmark = budget(saved=0)
    some = settings(max_examples=3, deadline=None, database=None)(given(rows=st.integers(1, 2)))

    def test_module(): NET(X)

    @budget(saved=None)
    def test_lifted(): NET(X)

    @pytest.mark.parametrize("rows", [1, pytest.param(2, marks=budget(peak=1))])
    def test_parameter(rows):
        with torch.no_grad():
            NET(X[:rows])

    @some
    def test_hypothesis(rows): NET(X[:rows])

    @budget(peak=1)
    class TestOfExamples:
        @some
        def test_hypothesis_method(self, rows): NET(X[:rows])

    class TestPlain:
        pytestmark = budget(peak=1)

        @torch.no_grad()
        def test_of_base(self): NET(X)

    class TestChild(TestPlain):
        @budget(peak="1 KiB")
        @torch.no_grad()
        def test_of_child(self): NET(X)

    class TestCases(unittest.TestCase):
        @some
        def test_hypothesis_unit(self, rows): NET(X[:rows])

        def test_subtests(self):
            for rows in (1, 2):
                with self.subTest(rows=rows):
                    NET(X[:rows])

        @unittest.expectedFailure
        def test_expected(self): NET(X)

    class TestAsync(unittest.IsolatedAsyncioTestCase):
        async def test_async_unit(self): NET(X)

    def test_returns_a_generator(): return (NET(X) for _ in range(3))

    @pytest.fixture
    def adds(request): request.node.add_marker(budget(peak=1))

    @torch.no_grad()
    def test_added(adds): NET(X)

    @torch.no_grad()
    def test_added_too_late(request):
        request.node.add_marker(budget(peak=1))
        NET(X)
"""


@pytest.mark.filterwarnings("ignore::pytest.PytestReturnNotNoneWarning")
def test_a_marker_holds_wherever_it_stands(verdicts):
    found = verdicts(ELSEWHERE)
    passed = {name for name, verdict in found.items() if verdict.outcome == "passed"}
    assert passed == {"test_lifted", "test_parameter[1]", "test_of_child"}
    assert found["test_expected"].outcome == "skipped"  # as it was expected to fail
    graphs = ("module", "hypothesis", "hypothesis_method", "hypothesis_unit", "subtests")
    for name in graphs:
        assert "saved for backward exceed the limit of 0 B" in found[f"test_{name}"].words
    for name in ("parameter[2]", "hypothesis_method", "of_base", "added"):
        assert "memory peak of" in found[f"test_{name}"].words
        assert "exceeds the limit of 1 B" in found[f"test_{name}"].words
    assert "cannot hold on an async test" in found["test_async_unit"].words
    assert "returned a generator" in found["test_returns_a_generator"].words
    assert "was added by the test itself" in found["test_added_too_late"].words


NO_LIMIT = """
    @pytest.mark.memory_budget
    def test_bare(): pass

    @budget(device="cpu")
    def test_device_alone(): pass

    def lazy():
        yield 1

    async def coroutine(): pass

    def test_fixture_bare(memory_budget):
        memory_budget(list)

    def test_generator(memory_budget):
        memory_budget(lazy, saved=0)

    def test_coroutine(memory_budget):
        memory_budget(coroutine, saved=0)

    def test_seen(gradbench_observe):
        gradbench_observe(lazy)
"""


def test_what_measures_nothing_fails_in_one_line(verdicts):
    found = verdicts(NO_LIMIT)
    assert {name: verdict.words for name, verdict in found.items()} == {
        **dict.fromkeys(
            ("test_bare", "test_device_alone", "test_fixture_bare"),
            "Failed: memory_budget names no limit: give peak, saved, leaked "
            "(gradbench.memory_usage measures without any)",
        ),
        "test_generator": "Failed: memory_budget: the call returned a generator, and what that "
        "stands for has not run: give what runs it, such as lambda: list(f()), or what keeps it "
        "and returns None",
        "test_coroutine": "Failed: memory_budget: the call returned a coroutine, and what that "
        "stands for has not run: give what runs it, such as lambda: asyncio.run(main())",
        "test_seen": "gradbench.lazy_results.LazyResult: the call returned a generator, and what "
        "that stands for has not run: give what runs it, such as lambda: list(f()), or what keeps "
        "it and returns None",
    }


NOT_CALLED = """
    def test_asks_alone(memory_budget): pass

    @pytest.mark.usefixtures("memory_budget")
    def test_uses(): pass

    @pytest.fixture
    def mine(memory_budget): return memory_budget

    def test_through_a_fixture(mine): pass

    @pytest.fixture
    def measures(memory_budget): memory_budget(torch.empty, 4, peak=16)

    def test_a_fixture_calls(measures): pass

    def test_skips(memory_budget): pytest.skip("not here")

    def test_fails(memory_budget): raise AssertionError("first")

    def test_calls(memory_budget): memory_budget(torch.empty, 4, peak=16)
"""


def test_a_fixture_that_is_not_called_is_an_error_where_the_test_would_pass(pytester):
    write(pytester, NOT_CALLED)
    found = pytester.inline_run(*LEAN, "-p", "no:terminal", "--strict-markers")
    errors = {
        report.nodeid.rpartition("::")[2]: report.longrepr.reprcrash.message
        for report in found.getreports("pytest_runtest_logreport")
        if report.when == "teardown" and report.failed
    }
    words = (
        "Failed: memory_budget was asked for and not called, so nothing was measured: "
        "call it, skip the test, or ask for it no more"
    )
    assert errors == dict.fromkeys(
        ["test_asks_alone", "test_uses", "test_through_a_fixture"], words
    )


def test_a_doctest_of_a_marked_module_fails_in_one_line(pytester):
    write(
        pytester,
        '''
    pytestmark = budget(saved=0)

    def documented():
        """
        >>> 1 + 1
        2
        """
    ''',
    )
    found = pytester.inline_run(*LEAN, "-p", "no:terminal", "--doctest-modules")
    (report,) = (r for r in found.getreports("pytest_runtest_logreport") if r.when == "call")
    assert report.failed
    assert "holds on test functions and not on a DoctestItem: call in a test" in str(
        report.longrepr
    )


def test_a_fused_path_is_measured_as_it_runs():
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
    x = torch.randn(2, 8, 32)
    with torch.no_grad():
        _, _, entries = devices.find("cpu").ledger().trace(lambda _: layer(x))
        alone = attribute_peak(entries.entries("cpu"), resident={}, before_bytes=0).peak_bytes
        assert memory_usage(layer, x).peak_bytes == alone
        with torch.enable_grad():
            assert memory_usage(layer, x).peak_bytes > alone


def test_saved_bytes_are_the_most_at_once_and_their_sum_is_another_figure():
    net = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
    x = torch.randn(16, 64)

    def tokens():
        for _ in range(5):
            net(x).sum().backward()

    used = memory_usage(tokens)
    assert used.saved_bytes == 16 * 64 * FLOAT
    assert used.saved_in_total_bytes == 5 * used.saved_bytes
    assert used.saved_bytes <= used.peak_bytes


def test_what_is_left_is_on_the_account_of_the_module_s_whole_path(x):
    block = nn.Sequential(OrderedDict(fc=nn.Linear(x.shape[1], 4), act=nn.ReLU()))
    nested = nn.Sequential(OrderedDict(block=block, head=nn.Linear(4, 2)))
    left = []
    used = memory_usage(lambda: left.append(nested(x)), leaks_too=True)
    assert {birth.module for birth in used.kept} == {"block.act", "head"}


TRAINING = """
    def test_backward(memory_budget):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 512))
        x = torch.ones(2, 4)

        def step():
            net(x).sum().backward()  # trains

        memory_budget(step, peak="1 KiB")

    def test_optimizer(memory_budget):
        net = nn.Linear(64, 64)
        x, optimizer = torch.ones(2, 64), torch.optim.Adam(net.parameters())

        def step():
            optimizer.zero_grad()
            net(x).sum().backward()  # learns
            optimizer.step()

        memory_budget(step, peak="1 KiB")
"""


def test_a_peak_of_training_names_the_module_whose_backward_it_is(verdicts):
    """Though the first step makes gradients and state, and those that are watched find them."""
    found = verdicts(TRAINING)
    line = f"test_it.py:{line_of('# trains', TRAINING)} in step"
    most, *_ = found["test_backward"].words.partition("at the peak: ")[2].split(", ")
    gradients = 4 * (512 * 8 + 2 * 8)  # of its weight and of its input
    assert most == f"16.1 KiB ({gradients:,} B) by aten::mm in 2 Linear ({line})"
    line = f"test_it.py:{line_of('# learns', TRAINING)} in step"
    words = found["test_optimizer"].words
    assert f"16 KiB (16,384 B) by aten::mm in (model) Linear ({line})" in words
    assert "(in the first call alone)" in words
