"""The models: shapes in, shapes out, sizes as named; a user's own by import path."""

import pytest
import torch
from torch import nn

from gradbench.errors import BadModel
from gradbench.models import MODELS, from_path, resolve


@pytest.mark.parametrize("name", MODELS)
def test_a_model_eats_its_own_batch_and_its_head_is_its_last_layer(name):
    model = MODELS[name]
    module = model.build().eval()
    x, y = model.batch(2)
    with torch.no_grad():
        output = module(x)
    assert output.shape == (2, output.shape[1])
    assert y.shape == (2,)
    assert y.max() < output.shape[1]
    assert module.get_submodule(model.head) is list(module.modules())[-1]
    assert model.loss(output, y).dim() == 0
    assert model.about


def test_mlp_deep_has_32_linear_layers():
    layers = [m for m in MODELS["mlp_deep"].build() if isinstance(m, nn.Linear)]
    assert len(layers) == 32


def test_resnet18_has_the_parameters_of_the_paper():
    """11,689,512 is what torchvision's resnet18 has; the layers are the same."""
    module = MODELS["resnet18_224"].build()
    assert sum(p.numel() for p in module.parameters()) == 11_689_512


def test_resnet18_takes_large_and_small_images():
    module = MODELS["resnet18_32"].build().eval()
    with torch.no_grad():
        assert module(torch.randn(1, 3, 32, 32)).shape == (1, 10)
        assert module(torch.randn(1, 3, 224, 224)).shape == (1, 10)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(1)
    first = MODELS["cnn_small"].build()
    torch.manual_seed(1)
    second = MODELS["cnn_small"].build()
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_factory_is_found_by_path_and_fed_its_shape():
    model = from_path("jobs:Net", shape=(4,))
    x, y = model.batch(3)
    assert model.loss(model.build()(x), y).requires_grad
    assert x.shape == (3, 4)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("jobs", "package.module:factory"),
        (":Net", "package.module:factory"),
        ("jobs:", "package.module:factory"),
        ("jobs:Nett", "cannot be imported.*Nett"),
        ("no_such_module:Net", "cannot be imported.*no_such_module"),
        ("jobs:__name__", "not a factory"),
    ],
)
def test_a_wrong_path_is_told_in_one_line(path, words):
    with pytest.raises(BadModel, match=words) as error:
        resolve(path)
    assert "\n" not in str(error.value)


def test_a_factory_that_returns_no_module_is_told():
    with pytest.raises(BadModel, match="returned tuple"):
        from_path("jobs:batch", shape=(4,)).build.func("builtins:tuple")
