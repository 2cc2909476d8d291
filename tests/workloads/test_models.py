"""The models: shapes in, shapes out, sizes as named; a user's own by import path."""

from dataclasses import dataclass

import pytest
import torch
from torch import nn

from gradbench.errors import BadModel
from gradbench.workloads.models import MODELS, Catalogue, Model
from gradbench.workloads.own_models import from_path, resolve

READY = """
from torch import nn
class Net(nn.Linear):
    def __init__(self):
        super().__init__(4, 2)
model = Net()
"""


def test_a_module_that_stands_ready_made_is_used_and_a_class_is_called(tmp_path, monkeypatch):
    (tmp_path / "ready_made.py").write_text(READY, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    ready, built = (from_path(f"ready_made:{name}", shape=(4,)) for name in ("model", "Net"))
    assert ready.build() is ready.build() is resolve("ready_made:model")
    assert built.build() is not built.build()
    assert built.build()(built.batch(3)).shape == (3, 2)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in MODELS if name != "decoder_tiny"),
        "mlp_d1_w8",
        "mlp_d5_w16",
        "cnn_d1_w4_r8",
        "cnn_d3_w4_r9",
    ],
)
def test_a_model_eats_its_own_batch_and_its_head_is_its_last_layer(name):
    model = MODELS[name]
    module = model.build().eval()
    batch = model.batch(2)
    (x,), y = batch.args, batch.target
    with torch.no_grad():
        output = module(x)
    assert output.shape == (2, output.shape[1])
    assert y.shape == (2,)
    assert y.max() < output.shape[1]
    assert module.get_submodule(model.head) is list(module.modules())[-1]
    assert model.loss(output, batch).dim() == 0
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


@pytest.mark.parametrize(("depth", "width"), [(1, 1), (2, 16), (8, 33)])
def test_a_sized_mlp_has_so_many_square_layers_and_a_head(depth, width):
    model = MODELS[f"mlp_d{depth}_w{width}"]
    module, (x,) = model.build(), model.batch(3).args
    hidden, head = depth * (width * width + width), width * 10 + 10
    assert sum(p.numel() for p in module.parameters()) == hidden + head
    assert sum(isinstance(layer, nn.ReLU) for layer in module) == depth
    assert x.shape == (3, width)
    assert f"{depth} hidden layers of width {width}" in model.about


@pytest.mark.parametrize(("depth", "width", "resolution"), [(1, 1, 1), (3, 16, 32), (5, 2, 7)])
def test_a_sized_cnn_has_so_many_convolutions_with_batchnorm(depth, width, resolution):
    model = MODELS[f"cnn_d{depth}_w{width}_r{resolution}"]
    module, (x,) = model.build(), model.batch(3).args
    kernels = (3 + (depth - 1) * width) * width * 9
    norms, head = depth * 2 * width, width * 10 + 10
    assert sum(p.numel() for p in module.parameters()) == kernels + norms + head
    assert x.shape == (3, 3, resolution, resolution)
    assert module(x).shape == (3, 10)


def test_a_catalogue_finds_sized_models_that_it_does_not_list():
    assert "mlp_d2_w16" in MODELS
    assert "mlp_d2_w16" not in list(MODELS)
    assert len(MODELS) == len(list(MODELS)) == len(MODELS.values())
    assert "mlp_tiny" in list(MODELS)


@pytest.mark.parametrize("name", ["mlp_huge", "mlp_d0_w16", "cnn_d2_w16", "mlp_d2_w16_r8", ""])
def test_a_name_that_is_neither_listed_nor_sized_is_a_key_error(name):
    assert name not in MODELS
    assert MODELS.get(name) is None
    with pytest.raises(KeyError, match=repr(name)):
        MODELS[name]


def test_models_of_ones_own_are_listed_besides_and_go_first():
    own = MODELS["mlp_tiny"]
    more = MODELS | {"jobs:Net": own, "mlp_d2_w16": own}
    assert isinstance(more, Catalogue)
    assert list(more) == [*MODELS, "jobs:Net", "mlp_d2_w16"]
    assert more["mlp_d2_w16"] is own
    assert "mlp_d3_w16" in more
    assert "jobs:Net" not in MODELS


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(1)
    first = MODELS["cnn_small"].build()
    torch.manual_seed(1)
    second = MODELS["cnn_small"].build()
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_a_factory_is_found_by_path_and_fed_its_shape():
    model = from_path("jobs:Net", shape=(4,))
    x = model.batch(3)
    assert model.loss(model.build()(x), x).requires_grad
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
def test_a_wrong_path_is_reported_in_one_line(path, words):
    with pytest.raises(BadModel, match=words) as error:
        resolve(path)
    assert "\n" not in str(error.value)


def test_a_factory_that_returns_no_module_is_reported():
    with pytest.raises(BadModel, match="returned tuple"):
        from_path("builtins:tuple", shape=(4,)).build()


@dataclass
class Rows:
    """A function of a user's that has no hash."""

    width: int

    def __call__(self, size):
        return torch.zeros(size, self.width)


def test_a_model_of_functions_without_a_hash_is_a_key_all_the_same():
    one, other = (Model(nn.Identity, Rows(width)) for width in (3, 4))
    with pytest.raises(TypeError):
        hash(one.batch)
    known = {one: "one", other: "other"}
    assert [known[Model(nn.Identity, Rows(width))] for width in (3, 4)] == ["one", "other"]
