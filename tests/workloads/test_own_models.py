"""Models of the user's own: found by path and file, fed by inputs or a function, or refused."""

import importlib
import pickle
import sys

import pytest
import torch
from torch import nn

from gradbench.errors import BadModel
from gradbench.experiment.matrix import Cell
from gradbench.experiment.model_source import HIGHEST, ModelSource, parse_input
from gradbench.workloads.arms import build, make_arm
from gradbench.workloads.own_models import RandomBatch, file_of, imported, model_of, models_of

NETS = """
import torch
from torch import nn
import gradbench
from beside import WIDTH


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(WIDTH, 4), nn.Linear(4, 2)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.table(input_ids))


ready = Net()


def make():
    return Net()


def make_batch(size):
    return {"input_ids": torch.randint(WIDTH, (size, 3))}


def loss(output, batch):
    return output.sum() + batch["input_ids"].float().mean()


whole = gradbench.Model(Net, make_batch, loss=loss, head="head")


def make_of_one():
    def net():
        return kept_net

    global kept_net
    kept_net = kept_net or Net()
    return gradbench.Model(net, make_batch, loss=loss, head="head")


kept_net = None


def make_whole():
    return gradbench.Model(Net, make_batch, loss=loss, head="head")


class Image(nn.Conv2d):
    def __init__(self):
        super().__init__(3, 4, 3)


class Sized(nn.Linear):
    def __init__(self, width):
        super().__init__(width, 2)


def sized(width, *rest, depth, scale=1):
    return nn.Linear(width, depth)


def broken():
    raise ValueError("no weights here")


halved = gradbench.Model(Net, make_batch, dtype="bfloat16")


class Many(nn.Linear):
    def forward(self, *inputs):
        return sum(map(super().forward, inputs))


class Named(nn.Linear):
    def forward(self, **inputs):
        return super().forward(inputs["x"])


class Collated(nn.Linear):
    def forward(self, batch: dict[str, torch.Tensor]):
        return super().forward(batch["x"])


many, named, collated = Many(3, 2), Named(3, 2), Collated(3, 2)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a file of models and one beside it, where the user stands."""
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "nets.py").write_text(NETS, "utf-8")
    (tmp_path / "some" / "beside.py").write_text("WIDTH = 10\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in repr(getattr(sys.modules[name], "__spec__", None)):  # it lies there
            del sys.modules[name]


IDS = ("input_ids=B,3:int64<10",)
NET = "some/nets.py:make"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Net", {"input": IDS}),
        ("ready", {"input": IDS}),
        ("make", {"input": IDS}),
        ("make", {"batch": "some/nets.py:make_batch", "loss": "some/nets.py:loss"}),
        ("whole", {}),
        ("make_whole", {}),
        ("whole", {"input": IDS}),
    ],
)
def test_a_model_is_found_by_file_and_fed(name, options, folder):
    model = model_of(ModelSource(build=f"some/nets.py:{name}", **options))
    cell = Cell(model="it", workload="training", grad_mode="global_on", batch_size=4)
    subject = build(cell, model, seed=0)
    make_arm(cell, subject).step()
    assert subject.batch.kwargs["input_ids"].shape == (4, 3)
    assert all(p.grad is not None for p in subject.module.parameters())
    assert (model.head == "head") is ("whole" in name)
    assert file_of(f"some/nets.py:{name}") == str(folder / "some" / "nets.py")


def test_options_win_over_what_a_model_says_itself(folder):
    source = ModelSource(build="some/nets.py:whole", head="table", batch="some/nets.py:make_batch")
    assert model_of(source).head == "table"


@pytest.mark.parametrize(
    ("build", "options", "words"),
    [
        ("some/nets.py:Net", {}, ["forward(input_ids, attention_mask=None)", "int64<1000"]),
        ("some/nets.py:make", {}, ["forward(input_ids, attention_mask=None)", "--input"]),
        ("some/nets.py:ready", {}, ["forward(input_ids, attention_mask=None)"]),
        ("some/nets.py:Image", {}, ["forward(input)", "--input 8,3,224,224"]),
        ("some/nets.py:broken", {}, ["needs --input"]),
        ("some/nets.py:many", {}, ["forward(*inputs)", "example --input 8,64"]),
        ("some/nets.py:named", {}, ["forward(**inputs)", "example --input NAME=8,64"]),
        ("some/nets.py:collated", {}, ["forward(batch)", "example --batch file.py:function"]),
        ("some/net.py:Net", {}, ["no file 'some/net.py' here"]),
        ("some/nets.py:Nets", {}, ["has no attribute 'Nets'"]),
        ("some/nets.py:WIDTH", {}, ["is int, not a factory"]),
        ("some/nets.py:sized", {"input": IDS}, ["needs width, depth,", "without arguments"]),
        ("some/nets.py:Sized", {"input": IDS}, ["needs width,", "without arguments"]),
        ("some/nets.py:make", {"batch": "some/nets.py:WIDTH"}, ["batch", "is int, not a function"]),
        ("some/nets.py:make", {"input": IDS, "loss": "nowhere:loss"}, ["loss 'nowhere:loss'"]),
    ],
)
def test_what_cannot_be_had_is_said_in_a_line(build, options, words, folder):
    with pytest.raises(BadModel) as error:
        model_of(ModelSource(build=build, **options))
    assert [word for word in words if word not in str(error.value)] == []
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"build": "some/nets.py"}, "lacks the name.*some/nets.py:Net, or ready, make, whole$"),
        ({"build": "some/nets.py:"}, "some/nets.py:Net, or ready"),
        ({"build": NET, "batch": "some/nets.py"}, "batch .*: some/nets.py:make_batch$"),
        ({"build": NET, "input": IDS, "loss": "some/nets.py"}, "loss 'some/nets.py'"),
        ({"build": "some/net.py"}, "no file 'some/net.py' here"),
        ({"build": "some/beside.py"}, "nothing in it could be a model: some/beside.py:NAME"),
    ],
)
def test_a_file_without_a_name_is_answered_with_the_names_in_it(options, words, folder):
    with pytest.raises(BadModel, match=words) as error:
        model_of(ModelSource(**options))
    assert "\n" not in str(error.value)


def test_a_model_at_a_path_keeps_all_that_it_says_of_itself(folder):
    model = model_of(ModelSource(build="some/nets.py:halved"))
    cell = Cell(model="it", workload="inference", grad_mode="no_grad", batch_size=2)
    assert build(cell, model, seed=0).module.head.weight.dtype == torch.bfloat16


def test_a_function_that_says_what_its_model_takes_is_given_no_other_batch(folder):
    model = model_of(ModelSource(build="some/nets.py:make_whole", input=IDS))
    with pytest.raises(BadModel, match=r"returns a gradbench.Model, which has a batch .*: give no"):
        model.build()


def test_a_module_that_a_factory_keeps_is_never_one_without_numbers(folder):
    model = model_of(ModelSource(build="some/nets.py:make_of_one"))
    cell = Cell(model="it", workload="training", grad_mode="global_on", batch_size=2)
    with pytest.raises(BadModel, match=r"on meta, without numbers: .* anew in each call"):
        build(cell, model, seed=0)  # it was asked here what it takes
    imported("some/nets.py:Net", "model")
    sys.modules["nets"].kept_net = None  # as in a measuring process, which is another one
    model.load()
    make_arm(cell, build(cell, model, seed=0)).step()


def test_a_file_that_exits_when_it_is_imported_ends_no_command(folder):
    (folder / "some" / "script.py").write_text("import sys\nsys.exit(0)\n", "utf-8")
    script = "some/script.py:make"
    for options in ({"build": script}, {"build": "some/nets.py:make", "batch": script}):
        with pytest.raises(BadModel, match=r"script.py:make' cannot be imported: SystemExit: 0: "):
            model_of(ModelSource(**options))


def test_a_factory_that_exits_is_asked_for_its_input_like_one_that_raises(folder):
    (folder / "some" / "leaving.py").write_text("def make():\n    raise SystemExit(0)\n", "utf-8")
    with pytest.raises(BadModel, match="needs --input"):
        model_of(ModelSource(build="some/leaving.py:make"))


def test_an_interrupt_during_an_import_is_no_fault_of_the_model(folder):
    (folder / "some" / "stopped.py").write_text("raise KeyboardInterrupt\n", "utf-8")
    with pytest.raises(KeyboardInterrupt):
        model_of(ModelSource(build="some/stopped.py:make"))


def test_a_file_in_a_package_is_a_module_of_it(folder):
    package = folder / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "sizes.py").write_text("WIDTH = 3\n", "utf-8")
    (package / "towers.py").write_text("from .sizes import WIDTH\n", "utf-8")
    assert imported("shop/towers.py:WIDTH", "model") == 3
    assert sys.modules["shop.towers"] is not None


def test_a_file_with_the_name_of_another_module_is_read_all_the_same(folder):
    (folder / "some" / "json.py").write_text("class Net: ...\n", "utf-8")
    net = imported("some/json.py:Net", "model")
    assert imported("some/json.py:Net", "model") is net
    import json

    assert json.dumps([]) == "[]"


@pytest.mark.parametrize(
    ("texts", "kind"),
    [
        (("B,3",), torch.Tensor),
        (("B,3", "B,2:bool"), tuple),
        (("a=B,3", "b=B:int64<7"), dict),
    ],
)
def test_inputs_make_the_simplest_tree_that_holds_them(texts, kind):
    model = model_of(ModelSource(build="torch.nn:Identity", input=texts))
    assert isinstance(model.batch(4), kind)


def test_random_numbers_are_of_their_dtype_and_below_their_limit():
    texts = ("a=B,90:int64<7", "b=B,90:bool", "c=B,90:complex64", "e=90,B:uint8<2")
    batch = model_of(ModelSource(build="torch.nn:Identity", input=texts)).batch(5)
    assert set(batch["a"].unique().tolist()) == set(range(7))
    assert batch["b"].dtype == torch.bool
    assert batch["c"].is_complex()
    assert batch["e"].shape == (90, 5)
    assert batch["e"].max() == 1


def test_floating_inputs_follow_the_model_unless_their_dtype_is_given(monkeypatch):
    cell = Cell(model="it", workload="inference", grad_mode="no_grad", batch_size=2)
    monkeypatch.setitem(sys.modules, "doubles", Doubles)
    for text, dtype in (("B,3", torch.float64), ("B,3:float32", torch.float32)):
        source = ModelSource(build="doubles:make", input=(text,))
        assert build(cell, model_of(source), seed=0).batch.args[0].dtype == dtype


class Doubles:
    @staticmethod
    def make():
        return nn.Linear(3, 2).double()


def test_what_a_module_prints_is_no_output_and_its_factory_is_asked_once(folder, capsys):
    talk = "print('loading')\n\n\ndef make():\n    print('making')\n    raise SystemExit\n"
    (folder / "some" / "talking.py").write_text(talk, "utf-8")
    with pytest.raises(BadModel, match="needs --input"):
        models_of({"it": ModelSource(build="some/talking.py:make")})
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "loading\nmaking\n"


def test_models_of_the_users_stand_beside_those_that_are_built_in(folder):
    models = models_of({"mine": ModelSource(build="some/nets.py:whole")})
    assert "mine" in models
    assert "mlp_tiny" in models
    assert models["mine"].source == ModelSource(build="some/nets.py:whole")


@pytest.mark.parametrize("library", ["timm", "torchvision", "transformers"])
def test_a_library_that_is_not_here_is_named_with_what_installs_it(library, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        BadModel, match=rf"needs {library}: pip install 'torch-gradbench\[{library}\]'"
    ):
        model_of(ModelSource(build=f"{library}:anything"))


@pytest.mark.parametrize("name", HIGHEST)
def test_the_highest_number_of_a_dtype_is_torch_s_own(name):
    dtype = getattr(torch, name)
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    assert HIGHEST[name] == info.max


@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "int32", "float16"])
def test_the_highest_limit_that_is_taken_can_be_drawn_from(name):
    whole = getattr(torch, name) is not torch.float16
    tensor, _ = parse_input(f"8,3:{name}<{HIGHEST[name] + whole}")
    assert RandomBatch((tensor,))(8).isfinite().all()


TOKENS = """
import torch
from torch import nn
import gradbench


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(30, 8), nn.Linear(8, 30)

    def forward(self, tokens, before=0.0):
        total = before + self.table(tokens).sum(1)
        return self.head(total), total


def make():
    made.append(1)
    how = gradbench.Generation(
        prefill=lambda model, tokens, room: model(tokens),
        decode=lambda model, token, cache: model(token, cache),
        vocabulary=30,
    )
    return gradbench.Model(Sum, lambda size: torch.zeros(size, 1).long(), generation=how)


made = []
"""


def test_a_model_by_its_path_says_how_it_makes_tokens_and_is_asked_for_it_once(tmp_path):
    (tmp_path / "makes_tokens.py").write_text(TOKENS, "utf-8")
    path = f"{tmp_path / 'makes_tokens.py'}:make"
    model = pickle.loads(pickle.dumps(model_of(ModelSource(build=path))))
    cell = Cell(model="it", workload="generate", grad_mode="no_grad", batch_size=2, prompt=3)
    arm = make_arm(cell, build(cell, model, seed=0))
    made = imported(path.replace(":make", ":made"), "model")
    with arm.held():
        first = arm.step()
        asked = len(made)
        assert torch.equal(arm.step(), first)
    assert first.shape == (2, cell.new_tokens)
    assert len(made) == asked


def test_a_step_has_the_functions_of_the_module_that_stands_at_the_path_when_it_is_made(tmp_path):
    """Two versions of a module take turns under one name, where versions are compared."""
    file = tmp_path / "takes_turns.py"
    cell = Cell(model="it", workload="generate", grad_mode="no_grad", batch_size=2, prompt=3)
    arms, modules = [], []
    for calls in (1, 22):  # of another length: or Python takes the first one's bytecode
        file.write_text(TOKENS.replace("lambda model, tokens, room: model(tokens)",
                                       f"lambda *given: seen.append({calls}) or given[0](given[1])")
                        + "seen = []\n", "utf-8")  # fmt: skip
        sys.modules.pop("takes_turns", None)
        importlib.invalidate_caches()
        model = model_of(ModelSource(build=f"{file}:make"))
        arms.append(make_arm(cell, build(cell, model, seed=0)))
        modules.append(sys.modules["takes_turns"])
    for arm in arms:
        with arm.held():
            arm.step()
    assert [module.seen for module in modules] == [[1], [22]]
