"""observe(): each fact about a call, where it is so and where it is not."""

import asyncio
import functools
import queue
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.pool import ThreadPool

import pytest
import torch
from torch import nn

import gradbench
from gradbench.lazy_results import LazyResult
from gradbench.observation import KINDS, Observation, State, Switch, tensors

pytestmark = pytest.mark.usefixtures("collected")

ON, OFF, INFERENCE = State(True, False), State(False, False), State(False, True)


class Cut(nn.Module):
    """Uses its second layer's weight through a view that is made with grad off."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, batch):
        with torch.no_grad():
            weight = self.second.weight.view(4, 4)
        return self.first(batch) @ weight


@pytest.fixture
def batch():
    return torch.ones(2, 4)


def mlp(*widths):
    layers = [nn.Linear(a, b) for a, b in pairwise(widths)]
    return nn.Sequential(*[part for layer in layers for part in (layer, nn.ReLU())])


class Result:
    """What a library returns in a class of its own."""

    def __init__(self, logits):
        self.parts = {"logits": [logits]}


def test_what_is_returned_inside_an_object_leads_to_its_parameters(batch):
    model = mlp(4, 8, 2)
    assert gradbench.observe(lambda: Result(model(batch))).without_gradient == {}
    assert gradbench.observe(lambda: Result(model(batch).detach())).without_gradient


def test_a_healthy_training_forward_has_nothing_to_complain_of(batch):
    seen = gradbench.observe(mlp(4, 8, 2), batch)
    assert seen == Observation(
        entry=ON,
        exit=ON,
        graph_built=True,
        saved=2,
        saved_bytes=4 * 2 * (8 + 2),  # what each ReLU returned
        without_gradient={},
        inference_outputs=(),
        switches=(),
    )
    assert not seen.leaked
    assert not seen.switched


@pytest.mark.parametrize(
    ("enter", "state"), [(torch.no_grad, OFF), (torch.inference_mode, INFERENCE)]
)
def test_inside_a_mode_no_graph_is_built_and_nothing_is_saved(batch, enter, state):
    model = mlp(4, 2)
    with enter():
        seen = gradbench.observe(model, batch)
    assert (seen.entry, seen.exit) == (state, state)
    assert not seen.graph_built
    assert (seen.saved, seen.saved_bytes) == (0, 0)
    assert list(seen.without_gradient) == ["0.weight", "0.bias"]
    assert not seen.switched


def test_a_view_made_with_grad_off_is_found_though_everything_looks_trained_on(batch):
    model = Cut()
    seen = gradbench.observe(model, batch)
    assert seen.graph_built
    assert list(seen.without_gradient) == ["second.weight"]
    why = seen.without_gradient["second.weight"]
    assert re.fullmatch(r"used with grad off: test_observe.py:\d+ in forward", why)
    model(batch).sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert reached == {"first.weight", "first.bias"}


def test_what_observe_says_is_what_backward_does(batch):
    for model in (mlp(4, 8, 2), Cut(), nn.ModuleList([mlp(4, 4), mlp(4, 4)])):
        call = model[0] if isinstance(model, nn.ModuleList) else model
        seen = gradbench.observe(functools.partial(call), batch)
        call(batch).sum().backward()
        missing = {name for name, p in call.named_parameters() if p.grad is None}
        assert set(seen.without_gradient) == missing


def test_parameters_that_are_not_used_or_lead_nowhere_are_distinguished(batch):
    model = nn.ModuleDict({"used": nn.Linear(4, 1), "idle": nn.Linear(4, 1, bias=False)})

    def call(module, x):
        module["used"](x)
        return (x * module["used"].bias).sum()

    seen = gradbench.observe(call, model, batch)
    assert seen.without_gradient == {
        "used.weight": "used, but nothing that was returned depends on it",
        "idle.weight": "not used",
    }


def test_frozen_parameters_are_no_complaint(batch):
    model = mlp(4, 2).requires_grad_(False)
    assert gradbench.observe(model, batch).without_gradient == {}


def test_a_skeleton_on_meta_is_no_complaint_unless_the_call_is_there_too(batch):
    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4, 4))
            self.skeleton = nn.Linear(4, 4, bias=False, device="meta")

        def forward(self, batch):
            return torch.func.functional_call(self.skeleton, {"weight": self.weight}, (batch,))

    assert gradbench.observe(Called(), batch).without_gradient == {}
    there = nn.ModuleList([nn.Linear(4, 4, device="meta"), nn.Linear(4, 4, device="meta")])
    seen = gradbench.observe(lambda: there[0](batch.to("meta")))
    assert set(seen.without_gradient) == {"1.weight", "1.bias"}


def test_a_leaf_that_is_no_modules_parameter_is_named_by_shape_and_line():
    weight = torch.ones(3, requires_grad=True)
    seen = gradbench.observe(lambda factor: (weight * factor).detach(), 2)
    ((name, why),) = seen.without_gradient.items()
    assert re.fullmatch(r"\(3,\) test_observe.py:\d+ in <lambda>", name)
    assert why == "used, but nothing that was returned depends on it"
    assert gradbench.observe(lambda: weight * 2).without_gradient == {}
    weight.grad = torch.ones(3)  # from before: no excuse
    assert (
        len(gradbench.observe(lambda factor: (weight * factor).detach(), 2).without_gradient) == 1
    )


def test_a_training_step_that_runs_backward_itself_reaches_its_parameters(batch):
    model = mlp(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        loss = model(batch).sum()
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(2):  # gradients that are there already are no new ones
        seen = gradbench.observe(step)
        assert seen.without_gradient == {}
        assert seen.graph_built
        assert seen.saved > 0


def test_a_step_that_forgets_backward_is_reported(batch):
    model = mlp(4, 2)
    model(batch).sum().backward()  # gradients from before are no excuse

    def step():
        return model(batch).sum().item()

    seen = gradbench.observe(step)
    assert list(seen.without_gradient) == ["0.weight", "0.bias"]


def test_a_leak_of_the_grad_bit_is_reported_and_put_right(batch):
    def leaky(x):
        torch.set_grad_enabled(False)
        return x

    seen = gradbench.observe(leaky, batch)
    assert seen.leaked
    assert (seen.entry, seen.exit) == (ON, OFF)
    assert torch.is_grad_enabled()
    assert "LEAKED: left with grad off" in repr(seen)


def test_a_leak_through_a_suspended_generator_is_reported():
    def leaky():
        with torch.no_grad():
            yield

    kept = []

    def call():
        kept.append(leaky())
        next(kept[0])

    assert gradbench.observe(call).leaked


def test_the_state_is_put_back_after_an_error_too_and_the_error_comes_through():
    def fails():
        torch.set_grad_enabled(False)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        gradbench.observe(fails)
    assert torch.is_grad_enabled()
    assert gradbench.observe(lambda: None).saved == 0


def test_switches_are_reported_in_order_with_their_lines(batch):
    def call(x):
        with torch.no_grad():
            x = x + 1
        with torch.inference_mode():
            return x + 1

    seen = gradbench.observe(call, batch)
    assert [switch.to for switch in seen.switches][:2] == [OFF, ON]
    assert INFERENCE in [switch.to for switch in seen.switches]
    assert all(re.match(r"test_observe.py:\d+ in call", s.line) for s in seen.switches)
    assert seen.switched
    assert not seen.leaked


def test_setting_what_is_set_already_is_no_switch(batch):
    def call(x):
        torch.set_grad_enabled(True)
        return x + 1

    assert gradbench.observe(call, batch).switches == ()


def test_torchs_own_switch_inside_a_custom_function_is_not_the_users(batch):
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, gradient):
            return gradient * 2

    weight = torch.ones(4, requires_grad=True)
    seen = gradbench.observe(lambda: Doubled.apply(weight) + batch)
    assert seen.switches == ()
    assert seen.graph_built
    assert seen.without_gradient == {}


def test_inference_tensors_are_found_wherever_they_are_in_what_is_returned():
    @dataclass
    class Result:
        logits: torch.Tensor
        cache: list

    def call():
        with torch.inference_mode():
            made = torch.ones(2)
        return {"a": Result(torch.ones(2), [made, (torch.ones(1), made)])}

    assert gradbench.observe(call).inference_outputs == (
        "output['a'].cache[0]",
        "output['a'].cache[1][1]",
    )


def test_a_graph_that_came_in_is_not_one_that_was_built():
    x = torch.ones(3, requires_grad=True) * 2
    assert not gradbench.observe(lambda y: y, x).graph_built
    assert not gradbench.observe(lambda y: y.detach() + 1, x).graph_built
    assert gradbench.observe(lambda y: y + 1, x).graph_built


def test_a_graph_that_was_thrown_away_was_built_all_the_same():
    weight = torch.ones(3, requires_grad=True)
    assert gradbench.observe(lambda more: (weight + more).detach(), 1).graph_built


def test_modules_are_found_in_methods_partials_closures_and_arguments(batch):
    model = mlp(4, 2)

    class Trainer:
        def __init__(self):
            self.model = model

        def step(self, x):
            return self.model(x).detach()

        def __call__(self, x):
            return self.step(x)

    calls = [
        (model.forward, (batch,)),
        (functools.partial(model), (batch,)),
        (lambda x: model(x) + 1, (batch,)),
        (lambda m, x: m(x), (model, batch)),
        (Trainer().step, (batch,)),
        (Trainer(), (batch,)),
    ]
    for call, inputs in calls:
        with torch.no_grad():
            seen = gradbench.observe(call, *inputs)
        assert list(seen.without_gradient) == ["0.weight", "0.bias"], call
    # One that is hidden deeper is seen by the operations that use it.
    hidden = {"model": model}
    named = list(gradbench.observe(lambda x: hidden["model"](x).detach(), batch).without_gradient)
    assert len(named) == 2
    assert named[0].startswith("(2, 4) test_observe.py:")


def test_parameters_of_two_models_keep_apart(batch):
    one, two = mlp(4, 4), mlp(4, 4)
    seen = gradbench.observe(lambda a, b, x: a(x) + b(x).detach(), one, two, batch)
    assert list(seen.without_gradient) == ["Sequential1.0.weight", "Sequential1.0.bias"]


def test_the_repr_has_a_line_for_each_finding_with_its_cure_and_stays_short():
    seen = Observation(
        entry=ON,
        exit=OFF,
        graph_built=True,
        saved=2,
        saved_bytes=2048,
        without_gradient={f"layer{i}.weight": "not used" for i in range(7)},
        inference_outputs=("output[0]",),
        switches=(Switch(OFF, "nets.py:12 in forward"),),
    )
    unused = "gets no gradient, not used: use it in forward, or freeze it: requires_grad_(False)"
    assert repr(seen).splitlines() == [
        "Observation: entered with grad on; graph built; 2 tensors, 2 KiB saved",
        "  LEAKED: left with grad off (nets.py:12 in forward): enter the mode by a with statement, "
        "which puts back what was there",
        *(f"  layer{i}.weight {unused}" for i in range(5)),
        "  and 2 more like that",
        "  output[0] is an inference tensor: clone() it outside of inference mode before autograd "
        "is to use it",
        "  switches to grad off (nets.py:12 in forward): none needed where it is meant",
    ]


def test_a_finding_has_its_kind_its_place_and_its_cure(batch):
    findings = gradbench.observe(Cut(), batch).findings
    cut = next(finding for finding in findings if finding.kind == "used_without_grad")
    assert cut.text == "second.weight gets no gradient, used with grad off"
    assert re.fullmatch(r"test_observe.py:\d+ in forward", cut.place)
    assert cut.cure == KINDS["used_without_grad"]
    assert gradbench.observe(mlp(4, 2), batch).findings == ()
    with torch.no_grad():
        assert gradbench.observe(mlp(4, 2), batch).findings == ()


def in_a_thread(call):
    out = []
    thread = threading.Thread(target=lambda: out.append(call()))
    thread.start()
    thread.join()
    return out


def in_a_pool(call):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


def in_multiprocessings_pool(call):
    with ThreadPool(1) as pool:
        return pool.map(lambda _: call(), [0])


@pytest.mark.parametrize("elsewhere", [in_a_thread, in_a_pool, in_multiprocessings_pool])
def test_what_a_thread_of_the_call_does_is_seen(batch, elsewhere):
    model = mlp(4, 8, 2)
    alone = gradbench.observe(model, batch)
    seen = gradbench.observe(lambda m, x: elsewhere(lambda: m(x)), model, batch)
    assert (seen.saved, seen.saved_bytes) == (alone.saved, alone.saved_bytes)
    assert seen.without_gradient == {}
    with torch.no_grad():
        seen = gradbench.observe(lambda m, x: elsewhere(lambda: m(x)), model, batch)
    assert [finding.kind for finding in seen.findings] == ["thread_mode", "graph_in_vain"]
    assert not seen.switched


def test_a_graph_of_a_thread_that_was_there_before_is_not_zero_tensors(batch):
    model, given, done = mlp(4, 8, 2), queue.SimpleQueue(), queue.SimpleQueue()
    worker = threading.Thread(target=lambda: done.put(given.get()()))
    worker.start()

    def call():
        given.put(lambda: model(batch))
        return done.get()

    seen = gradbench.observe(call)
    worker.join()
    assert seen.graph_built
    assert (seen.saved, seen.saved_bytes) == (None, None)
    assert "what is saved is not known" in repr(seen)
    assert seen.findings[0].kind == "out_of_sight"


def test_an_observation_cannot_be_changed(batch):
    seen = gradbench.observe(mlp(4, 2), batch)
    with pytest.raises(AttributeError):
        seen.graph_built = False


def test_observing_changes_neither_outputs_nor_hooks(batch):
    model, got = mlp(4, 2), []
    before = model(batch)
    gradbench.observe(lambda: got.append(model(batch)))
    assert torch.equal(got[0], before)
    assert not any(module._forward_hooks for module in model.modules())


def _generator():
    yield mlp(4, 2)(torch.ones(1, 4))


async def _coroutine():
    return mlp(4, 2)(torch.ones(1, 4))


class _Streaming(nn.Module):
    def forward(self, batch):
        yield batch


LAZY = {
    "generator function": _generator,
    "generator": lambda: (row for row in range(3)),
    "module": functools.partial(_Streaming(), torch.ones(1)),
    "coroutine function": _coroutine,
    "map": lambda: map(mlp(4, 2), [torch.ones(1, 4)]),
}


@pytest.mark.parametrize("look", [gradbench.observe, gradbench.memory_usage])
@pytest.mark.parametrize("kind", [Future, torch.futures.Future])
def test_a_future_is_refused_until_its_work_has_ended(look, kind):
    future = kind()
    with pytest.raises(LazyResult, match="returned a Future, and its work has not ended: give"):
        look(lambda: future)
    future.set_result(torch.ones(1))
    look(lambda: future)


def test_a_call_that_fails_with_hooks_on_what_is_saved_is_observed_without():
    layer = nn.Linear(3, 3)

    def call(x):
        torch.set_grad_enabled(True)
        return torch.func.grad(lambda one: layer(one).sum())(x).sum()

    with torch.no_grad():
        seen = gradbench.observe(call, torch.ones(3))
    assert (seen.saved, seen.saved_bytes) == (None, None)
    assert [str(switch.to) for switch in seen.switches][:1] == ["grad on"]
    assert "what is saved is not known" in repr(seen)


@pytest.mark.parametrize("look", [gradbench.observe, gradbench.memory_usage])
@pytest.mark.parametrize("lazy", LAZY.values(), ids=LAZY)
def test_what_has_not_run_yet_is_refused(look, lazy):
    grad = torch.is_grad_enabled()
    with pytest.raises(LazyResult, match=r"^the call returned a \w+, and .* has not run: give"):
        look(lazy)
    assert torch.is_grad_enabled() is grad


def test_what_the_refusal_proposes_is_observed():
    assert gradbench.observe(lambda: list(_generator())).graph_built
    assert gradbench.observe(lambda: asyncio.run(_coroutine())).graph_built


def test_the_fixture_is_the_same_function(gradbench_observe, batch):
    assert gradbench_observe is gradbench.observe
    with torch.no_grad():
        assert not gradbench_observe(mlp(4, 2), batch).graph_built


def test_tensors_are_found_with_their_paths():
    found = dict(tensors({"x": (torch.ones(1), [torch.zeros(1)]), "y": 3, "z": None}))
    assert list(found) == ["output['x'][0]", "output['x'][1][0]"]


def test_weights_of_a_model_that_the_call_makes_are_not_saved():
    def call(x):
        return mlp(4, 8, 2)(x)

    x = torch.ones(3, 4)
    assert gradbench.observe(call, x).saved_bytes == gradbench.observe(mlp(4, 8, 2), x).saved_bytes
