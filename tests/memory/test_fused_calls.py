"""torch's fused attention is noted where it ran, and no figure is of another path unsaid."""

import pytest
import torch
from batches import unlabelled
from torch import nn
from torch.nn.modules import module as torchs_module

from gradbench.experiment.matrix import GRAD_MODES, Matrix
from gradbench.experiment.plan import Plan
from gradbench.memory.fused_calls import FUSED, FusedCalls, fusible
from gradbench.records.measurements import Breakdown, Measurement, Skipped
from gradbench.runner import memory_pass
from gradbench.runner.memory_pass import OTHER_PATH
from gradbench.workloads.models import Model

pytestmark = pytest.mark.usefixtures("measured_here")

FUSES = pytest.mark.filterwarnings("ignore:.*nested tensors.*")


def encoder(layers=2):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


def measured(build, meters, **axes):
    model = Model(build, lambda size: unlabelled(size, shape=(3, 8)))
    cells = Matrix(**{"models": ["it"], "batch_sizes": [2]} | axes)
    messages = memory_pass.memory_block(list(cells), model, Plan(), meters)
    found = [m for m in messages if isinstance(m, Measurement | Breakdown | Skipped)]
    return {(m.cell.grad_mode, m.meter): m for m in found}


def test_the_note_says_in_which_modes_the_fused_path_ran():
    found = measured(encoder, ["peak_allocated", "saved_for_backward", "breakdown"])
    assert {type(one) for one in found.values()} == {Measurement, Breakdown}  # hooks leave the path
    notes = {mode: found[mode, "peak_allocated"].notes["fused_attention"] for mode in GRAD_MODES}
    taken = "taken: 2 calls of 2 layers"
    assert notes == dict.fromkeys(GRAD_MODES, taken) | {"global_on": "not taken: autograd records"}


def test_a_models_own_hooks_are_why_it_was_not_taken():
    def hooked():
        net = encoder(1)
        net.layers[0].linear1.register_forward_hook(lambda *_: None)
        return net

    found = measured(hooked, ["peak_allocated"], grad_modes=["no_grad"])
    note = found["no_grad", "peak_allocated"].notes["fused_attention"]
    assert note == (
        "taken for the attention in the layers alone, 1 call: hooks are set on Linear, and torch "
        "leaves it for them"
    )


def test_training_is_why_it_was_not_taken():
    found = measured(encoder, ["peak_allocated"], workloads=["training"], grad_modes=["global_on"])
    note = found["global_on", "peak_allocated"].notes["fused_attention"]
    assert note == "not taken: the layers are in train()"


def test_a_model_without_such_layers_has_no_note():
    found = measured(lambda: nn.Linear(8, 8), ["peak_allocated"], grad_modes=["no_grad"])
    assert found["no_grad", "peak_allocated"].notes == {}


class LeavesItForHooks(nn.Module):
    """Takes the fused path unless somebody looks at modules or at what is saved."""

    def __init__(self):
        super().__init__()
        self.net = encoder(1)

    def forward(self, x):
        watched = (
            torchs_module._global_forward_hooks
            or torch._C._autograd._top_saved_tensors_default_hooks(True)
        )
        with torch.set_grad_enabled(bool(watched)):
            return self.net(x)


def test_figures_of_steps_that_hooks_keep_off_the_fused_path_are_reasons():
    meters = ["peak_allocated", "first_peak_allocated", "breakdown", "saved_for_backward"]
    found = measured(LeavesItForHooks, meters, grad_modes=["no_grad"])
    assert found["no_grad", "peak_allocated"].notes["fused_attention"].startswith("taken: 1 call")
    for meter in ("breakdown", "saved_for_backward"):
        assert found["no_grad", meter].reason == OTHER_PATH
    first = found["no_grad", "first_peak_allocated"].notes["fused_attention"]
    assert first == "0 calls here, 1 in later steps"


def test_the_attention_inside_an_encoder_layer_is_its_own():
    alone = nn.MultiheadAttention(8, 2, batch_first=True)
    assert len(fusible(encoder(3), alone)) == 4


def test_counting_leaves_torch_as_it_was():
    before = [getattr(torch, name) for name in FUSED]
    with FusedCalls() as outer, FusedCalls() as inner, torch.no_grad():
        encoder(2).eval()(torch.ones(1, 3, 8))
    assert (outer.counts, inner.counts) == ((2, 0), (2, 0))
    assert [getattr(torch, name) for name in FUSED] == before
