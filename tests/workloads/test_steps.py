"""What a step does under each mode, seen from outside: gradients, statistics, weights."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from gradbench.errors import BadModel, Impossible
from gradbench.experiment.matrix import (
    GRAD_MODES,
    OF_ONE_PROCESS,
    OF_TOKENS,
    WORKLOADS as NAMES,
    Cell,
)
from gradbench.workloads.arms import build
from gradbench.workloads.grad_modes import MODES
from gradbench.workloads.models import MODELS, Model
from gradbench.workloads.steps import WORKLOADS, must_fail, says_the_mode


def subject(workload, model="mlp_tiny", batch_size=4):
    cell = Cell(model=model, workload=workload, grad_mode="global_on", batch_size=batch_size)
    return build(cell, MODELS[model], seed=0)


def step(workload, mode, of):
    row = WORKLOADS[workload]
    work = row.prepare(of, MODES[mode])
    with row.held(MODES[mode]):
        return work()


def gradients(of):
    return [p.grad for part in of.parts() for p in part.parameters()]


def test_the_catalogue_has_the_workloads_that_the_matrix_knows():
    assert tuple(WORKLOADS) == NAMES


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_inference_gives_the_same_bits_in_every_mode(mode):
    of = subject("inference", "cnn_small")
    expected = of.module.eval()(*of.batch.args)
    assert torch.equal(step("inference", mode, of), expected)


def test_training_moves_weights_a_little_and_fills_every_gradient():
    of = subject("training")
    before = [p.clone() for p in of.module.parameters()]
    step("training", "global_on", of)
    assert all(g is not None for g in gradients(of))
    moved = [(a - b).abs().max() for a, b in zip(before, of.module.parameters(), strict=True)]
    assert 0 < max(moved) < 1e-4


@pytest.mark.parametrize("mode", GRAD_MODES[1:])
def test_training_where_nothing_is_recorded_fails_in_torchs_words(mode):
    assert must_fail("training", mode)
    with pytest.raises(RuntimeError, match="does not require grad"):
        step("training", mode, subject("training"))


def test_nothing_else_is_expected_to_fail():
    training = ("training", "training_ddp", "training_fsdp2")
    assert [(w, m) for w in NAMES for m in GRAD_MODES if must_fail(w, m)] == [
        (workload, mode) for workload in training for mode in GRAD_MODES[1:]
    ]


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_reenabled_training_gives_the_gradients_of_plain_training(mode):
    plain, inside = subject("training"), subject("training_reenabled")
    step("training", "global_on", plain)
    step("training_reenabled", mode, inside)
    assert all(map(torch.equal, gradients(plain), gradients(inside)))


@cache
def heads_gradient(model):
    """Return the gradient of a model's head with grad on."""
    of = subject("frozen_backbone", model, 2)
    step("frozen_backbone", "global_on", of)
    return of.head.weight.grad


@pytest.mark.slow
@pytest.mark.parametrize("model", ["mlp_tiny", "mlp_deep", "mlp_wide", "cnn_small", "resnet18_32"])
@pytest.mark.parametrize("mode", GRAD_MODES)
def test_frozen_backbone_gives_the_head_the_same_gradient_in_every_mode(model, mode):
    of = subject("frozen_backbone", model, 2)
    step("frozen_backbone", mode, of)
    assert torch.equal(of.head.weight.grad, heads_gradient(model))


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_frozen_backbone_spares_the_backbones_gradients_where_nothing_is_recorded(mode):
    of = subject("frozen_backbone")
    step("frozen_backbone", mode, of)
    assert all(p.grad is None for p in of.module.parameters()) is not MODES[mode].records


def test_what_has_no_parameters_is_refused_to_be_trained_in_plain_words():
    bare = Model(nn.Tanh, MODELS["mlp_tiny"].batch)
    for workload, mode in (("training", "global_on"), ("evaluate_then_train", "no_grad")):
        cell = Cell(model="bare", workload=workload, grad_mode=mode, batch_size=4)
        with pytest.raises(Impossible, match="it has no parameters to train"):
            step(workload, mode, build(cell, bare, seed=0))


def test_frozen_backbone_needs_a_head():
    with pytest.raises(Impossible, match="names none"):
        WORKLOADS["frozen_backbone"].prepare(
            replace(subject("inference"), head=None), MODES["no_grad"]
        )


@pytest.mark.parametrize(("workload", "moves"), [("inference", False), ("training", True)])
def test_batch_norm_learns_in_training_only(workload, moves):
    of = subject(workload, "cnn_small")
    mean = of.module[1].running_mean
    before = mean.clone()
    step(workload, "global_on", of)
    assert torch.equal(before, mean) is not moves


def test_a_step_leaves_no_mode_behind():
    for workload in OF_ONE_PROCESS:
        model = "decoder_d1_w16" if workload in OF_TOKENS else "mlp_tiny"
        for mode in GRAD_MODES:
            if not must_fail(workload, mode):
                step(workload, mode, subject(workload, model))
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_an_evaluation_is_in_eval_inside_the_mode_and_the_training_after_it_outside(mode):
    of, seen = subject("evaluate_then_train"), []

    def forward(x):
        inside = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        seen.append((of.module.training, *inside))
        return of.module(x)

    step("evaluate_then_train", mode, replace(of, forward=forward))
    evaluated = (False, MODES[mode].records, mode == "inference_mode")
    assert seen == [evaluated, (True, True, False)]


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_training_after_an_evaluation_has_the_gradients_of_plain_training(mode):
    plain, after = subject("training", "cnn_small"), subject("evaluate_then_train", "cnn_small")
    step("training", "global_on", plain)
    step("evaluate_then_train", mode, after)
    assert all(map(torch.equal, gradients(plain), gradients(after)))


@pytest.mark.parametrize("mode", GRAD_MODES)
def test_tables_made_inside_inference_mode_alone_stop_the_training_after_it(mode):
    of = subject("evaluate_then_train", "attention_rotary")
    if mode != "inference_mode":
        step("evaluate_then_train", mode, of)
        assert all(one is not None for one in gradients(of))
        return
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved") as error:
        step("evaluate_then_train", mode, of)
    assert says_the_mode("evaluate_then_train", mode, error.value)
    assert not says_the_mode("evaluate_then_train", "global_on", error.value)
    assert not says_the_mode("inference", mode, error.value)


@pytest.mark.parametrize("workload", ["training", "frozen_backbone"])
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda _output, _given: None, "its loss is NoneType, not a tensor: return one number"),
        (lambda _output, _given: 0.5, "its loss is float, not a tensor: return one number"),
        (
            lambda output, _given: output.sum(1),
            r"its loss has the shape \(4,\): return its mean or its sum",
        ),
    ],
    ids=["None", "float", "vector"],
)
def test_a_loss_that_is_not_one_number_is_called_that(workload, loss, words):
    of = replace(subject(workload), loss=loss)
    with pytest.raises(TypeError, match=f"^{words}$"):
        step(workload, "global_on", of)


def test_what_else_backward_raises_is_left_as_it_is():
    def loss(output, _given):
        output.sum().backward()
        return output.sum()

    of = replace(subject("training"), loss=loss)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        step("training", "global_on", of)


def test_a_batch_without_a_sample_is_no_batch():
    one = Cell(model="mine", workload="training", grad_mode="global_on", batch_size=8)
    mine = Model(build=lambda: nn.Linear(8, 2), batch=lambda _: torch.zeros(0, 8))
    with pytest.raises(BadModel, match=r"of mine has no sample where 8 were asked .* \[0, 8\]"):
        build(one, mine, seed=0)
