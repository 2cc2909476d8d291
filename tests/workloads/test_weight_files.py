"""Files that are read as weights and hold none: named in one line, whatever reads them."""

import io
import pickle
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import cell
from torch import nn

from gradbench.errors import BadModel, message_line
from gradbench.workloads.arms import build
from gradbench.workloads.models import Model
from gradbench.workloads.own_models import imported

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
LFS = (
    "is a Git LFS pointer, not the file that it stands for: run git lfs install, then git lfs pull"
)


def by_safetensors(path: Path) -> object:
    return pytest.importorskip("safetensors.torch").load_file(path)


def in_a_with(path: Path) -> object:
    with path.open("rb") as file:
        return pickle.load(file)


def from_memory(path: Path) -> object:
    return torch.load(io.BytesIO(path.read_bytes()))


def within_another_error(path: Path) -> object:
    try:
        return torch.load(path)
    except Exception as error:
        raise RuntimeError("no weights") from error


READERS = {
    "torch.load": torch.load,
    "torch.load of a name": lambda path: torch.load(str(path)),
    "torch.load, pickles too": partial(torch.load, weights_only=False),
    "torch.load, mapped": lambda path: torch.load(path, mmap=True),
    "torch.load of a file": lambda path: torch.load(path.open("rb")),
    "torch.load of bytes": from_memory,
    "torch.jit.load": torch.jit.load,
    "numpy.load": np.load,
    "safetensors": by_safetensors,
    "pickle": in_a_with,
    "another error": within_another_error,
}


def model_reading(read, path: Path) -> Model:
    def build() -> nn.Module:
        model = nn.Linear(4, 2)
        model.load_state_dict(read(path))
        return model

    return Model(build, lambda size: torch.randn(size, 4))


def why_not(read, path: Path) -> str:
    with pytest.raises(BadModel) as raised:
        build(cell(model="net"), model_reading(read, path), seed=0)
    return message_line(raised.value)


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_pointer_of_git_lfs_is_called_that_however_it_is_read(read, tmp_path):
    path = tmp_path / "weights.bin"
    path.write_text(POINTER, "utf-8")
    named = "what it reads" if read is from_memory else repr(str(path))
    assert why_not(read, path) == f"model 'net' cannot be built: {named} {LFS}"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("net.pt", b"<!DOCTYPE html>\n<html>no</html>", "is a web page, not weights: download"),
        ("download", b"\n<html lang='en'>", "is a web page, not weights: download"),
        ("net.pth", b"404: Not Found", "is text, not weights; it begins '404: Not Found'"),
        ("net.ckpt", "é".encode() * 300, "is text, not weights; it begins 'éééé"),
        ("net.safetensors", b"", "is empty: get it again"),
    ],
)
def test_what_came_in_the_place_of_weights_is_named(name, content, words, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    assert f"{str(path)!r} {words}" in why_not(torch.load, path)


def test_an_error_over_another_file_keeps_its_own_words(tmp_path):
    """A page that a model shows, or text beside whole weights, is no fault."""
    page, weights = tmp_path / "about.html", tmp_path / "net.pt"
    page.write_text("<html>", "utf-8")
    torch.save({"weight": torch.zeros(3, 3)}, weights)

    def read(path: Path) -> object:
        page.read_text("utf-8")
        return torch.load(path)

    with pytest.raises(RuntimeError, match="size mismatch"):
        build(cell(), model_reading(read, weights), seed=0)


def test_a_module_that_reads_a_pointer_when_it_is_imported_says_so(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "net_of_a_pointer.pt").write_text(POINTER, "utf-8")
    (tmp_path / "reads_a_pointer.py").write_text(
        "import torch\nfrom pathlib import Path\n"
        "torch.load(Path(__file__).with_name('net_of_a_pointer.pt'))\n",
        "utf-8",
    )
    with pytest.raises(BadModel) as raised:
        imported("reads_a_pointer:make", "model")
    assert str(raised.value).endswith(f"net_of_a_pointer.pt' {LFS}")
