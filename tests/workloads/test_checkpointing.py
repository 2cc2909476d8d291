"""Which modules are blocks, and that computing them again changes no gradient and no other cell."""

from functools import partial

import pytest
import torch
from batches import unlabelled
from torch import nn

from gradbench.errors import Impossible
from gradbench.experiment.matrix import GRAD_MODES, Cell
from gradbench.runner.preflight import obstacle
from gradbench.workloads.arms import build, make_arm, steps
from gradbench.workloads.checkpointing import compute_again, keep_everything
from gradbench.workloads.losses import mean_square
from gradbench.workloads.models import MODELS, Model

WIDE = 8


def pair():
    return nn.Sequential(nn.Linear(WIDE, WIDE), nn.Tanh())


class Encoder(nn.Module):
    """Blocks in a list, a level down, called by name and with a tuple."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = pair()

        def forward(self, x, *, scale, places):
            first, second = places
            return self.layers(x) * scale + first * second

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.ModuleList(Encoder.Block() for _ in range(3))

    def __init__(self):
        super().__init__()
        self.first, self.encoder, self.last = nn.Linear(WIDE, WIDE), self.Inner(), pair()

    def forward(self, x):
        x = self.first(x)
        for block in self.encoder.layer:
            x = block(x, scale=x.sigmoid(), places=(x.cos(), x.sin()))
        return self.last(x)


class Parts(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = pair(), nn.Linear(WIDE, WIDE)

    def forward(self, x):
        return self.head(self.body(x))


class Raw(nn.Module):
    """A block with parameters of its own and no module."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDE))

    def forward(self, x):
        return (x * self.weight).tanh()


BLOCKS = {
    "modules in a Sequential": (MODELS["resnet18_32"].build, "8 blocks, 4 to 11"),
    "in a list within": (Encoder, "3 blocks, encoder.layer.0 to encoder.layer.2"),
    "Sequentials of Sequentials": (
        lambda: nn.Sequential(nn.Sequential(pair(), pair()), nn.Flatten(), pair()),
        "3 blocks, 0.0 to 2",
    ),
    "modules at the top": (Parts, "1 block, body"),
    "modules without parts": (lambda: nn.Sequential(Raw(), nn.Tanh(), Raw()), "2 blocks, 0 to 2"),
    "plain layers": (MODELS["mlp_deep"].build, "6 segments of 9 layers, of 63 layers"),
}


@pytest.mark.parametrize(("made", "said"), BLOCKS.values(), ids=BLOCKS)
def test_blocks_are_what_is_made_of_others_and_plain_layers_are_cut_in_segments(made, said):
    assert compute_again(made()) == said


@pytest.mark.parametrize(
    "made", [lambda: nn.Linear(WIDE, WIDE), lambda: nn.Sequential(nn.Linear(WIDE, 1), nn.ReLU())]
)
def test_a_model_without_blocks_is_a_reason(made):
    with pytest.raises(Impossible, match="it has no blocks to compute again"):
        compute_again(made())


def trained(made, **axes):
    """Return a cell's gradients after two steps."""
    cell = Cell(**{"model": "it", "workload": "training", "grad_mode": "global_on"} | axes)
    model = Model(made, partial(unlabelled, shape=(WIDE,)), loss=mean_square)
    arm = make_arm(cell, build(cell, model, seed=0))
    steps(arm, 2)
    return [parameter.grad for parameter in arm.subject.module.parameters()], arm.subject


SMALL = {
    "blocks": lambda: nn.Sequential(pair(), nn.Dropout(), pair(), nn.Linear(WIDE, WIDE)),
    "by name": Encoder,
    "segments": lambda: nn.Sequential(*pair(), nn.Dropout(), *pair()),
}


@pytest.mark.parametrize("made", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("mode", GRAD_MODES)
def test_gradients_are_those_of_a_step_that_keeps_everything(made, mode):
    """Dropout draws the same again, too."""
    axes = {"workload": "training_reenabled", "grad_mode": mode}
    plain, _ = trained(made, **axes)
    again, subject = trained(made, **axes, checkpointing="blocks")
    assert all(map(torch.equal, plain, again))
    assert "checkpointed" in subject.notes


def test_a_module_that_stands_ready_made_is_plain_again_for_other_cells():
    module = nn.Sequential(pair(), pair())
    _, subject = trained(lambda: module, checkpointing="blocks")
    assert "forward" in vars(subject.module[0])
    _, subject = trained(lambda: module)
    assert subject.module is module
    assert not any("forward" in vars(part) for part in module.modules())


def test_a_forward_that_a_module_brought_along_is_kept():
    block = pair()
    own = block.forward = lambda x: nn.Sequential.forward(block, x) * 2
    module = nn.Sequential(block, nn.Flatten())
    expected = module(torch.ones(2, WIDE))
    compute_again(module)
    assert torch.equal(module(torch.ones(2, WIDE)), expected)
    keep_everything(module)
    assert vars(block).get("forward") is own


def test_inference_keeps_nothing_that_could_be_computed_again():
    cell = Cell(model="mlp_deep", workload="inference", grad_mode="no_grad", checkpointing="blocks")
    cause, reason = obstacle(cell)
    assert cause == "impossible"
    assert "inference makes no backward pass" in reason
