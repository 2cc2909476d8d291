"""How a model of the user's is said: its inputs, its name, the options that stand for it."""

import pytest

from gradbench.errors import BadModel, Impossible
from gradbench.experiment.model_source import (
    InputTensor,
    ModelSource,
    parse_input,
    parse_model,
)


@pytest.mark.parametrize(
    ("text", "tensor", "batch"),
    [
        ("8, 3,224,224", InputTensor(shape=("B", 3, 224, 224)), 8),
        ("8,128:int64<30522", InputTensor(shape=("B", 128), dtype="int64", below=30522), 8),
        (
            "input_ids=8,128:int64<30522",
            InputTensor(shape=("B", 128), name="input_ids", dtype="int64", below=30522),
            8,
        ),
        ("mask=B,128:bool", InputTensor(shape=("B", 128), name="mask", dtype="bool"), None),
        ("128,B,256", InputTensor(shape=(128, "B", 256)), None),
        ("labels=4:int64<10", InputTensor(shape=("B",), name="labels", dtype="int64", below=10), 4),
        ("B:float64", InputTensor(shape=("B",), dtype="float64"), None),
    ],
)
def test_an_input_says_name_shape_dtype_and_limit(text, tensor, batch):
    assert parse_input(text) == (tensor, batch)
    assert parse_input(str(tensor)) == (tensor, None)  # as a record keeps it


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "needs a batch size"),
        ("8,x", "not 'x'"),
        ("8,", "not ''"),
        ("0,3", "not '0'"),
        ("8,3:float31", "'float31': one of float32"),
        ("8,3:bool<2", "of whole or floating numbers"),
        ("8,3<0", "above 0"),
        ("x=8,128:int8<300", "int8 has numbers up to 127, so <HIGH is 128 at most"),
        ("8,3:uint8<257", "uint8 has numbers up to 255, so <HIGH is 256 at most"),
        ("8,3:float16<65505", "float16 has numbers up to 65504, so <HIGH is 65504 at most"),
        ("a b=8,3", r"\[NAME=\]SHAPE"),
        ("", r"\[NAME=\]SHAPE"),
        ("x=", r"\[NAME=\]SHAPE"),
    ],
)
def test_an_input_that_says_nothing_sensible_is_refused(text, said):
    with pytest.raises(Impossible, match=said):
        parse_input(text)


def test_an_input_is_sized_where_its_samples_are():
    tensor, _ = parse_input("128,B,256")
    assert tensor.sized(4) == (128, 4, 256)


@pytest.mark.parametrize(
    ("text", "name", "build"),
    [
        ("transformers:bert", "bert", "transformers:bert"),
        ("transformers:google/vit-base", "vit-base", "transformers:google/vit-base"),
        ("transformers:some/folder/", "folder", "transformers:some/folder/"),
        ("transformers:some/folder/config.json", "folder", "transformers:some/folder/config.json"),
        ("timm:resnet50.a1_in1k", "resnet50.a1_in1k", "timm:resnet50.a1_in1k"),
        ("my.pkg.nets:make", "nets.make", "my.pkg.nets:make"),
        ("path/to/file.py:Net", "file.Net", "path/to/file.py:Net"),
        ("mine=my.pkg.nets:make", "mine", "my.pkg.nets:make"),
    ],
)
def test_a_name_on_screen_is_short(text, name, build):
    assert parse_model(text) == (name, build)


def test_a_name_of_other_signs_is_refused():
    with pytest.raises(BadModel, match="'a b' is no name"):
        parse_model("a b=pkg:make")


def test_a_source_comes_back_from_its_options_and_from_its_row():
    source = ModelSource(build="nets:make", batch="nets.py:batch", loss="nets.py:loss", head="last")
    assert source.arguments("nets.make") == [
        *("--model", "nets:make", "--batch", "nets.py:batch"),
        *("--loss", "nets.py:loss", "--head", "last"),
    ]
    assert source.arguments("mine")[1] == "mine=nets:make"
    assert ModelSource.read(source.row()) == source
    assert ModelSource.read({**source.row(), "of_tomorrow": 1}) == source


def test_a_source_with_two_ways_to_make_a_batch_is_refused():
    with pytest.raises(BadModel, match="both input and batch"):
        ModelSource(build="nets:make", input=("B,3",), batch="nets.py:batch")
