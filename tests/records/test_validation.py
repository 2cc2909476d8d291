"""What a file says is held against its dataclass once: the wrong value is named by its place."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
from builders import cell

from gradbench.experiment.matrix import Cell
from gradbench.records import selfcheck, semantics
from gradbench.records.validation import Misfit, fill, parse

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Inner:
    size: int


@dataclass(frozen=True)
class Outer:
    """Every kind of annotation that a record has."""

    name: str
    share: float
    kind: Literal["a", "b"]
    sizes: tuple[int, ...]
    pair: tuple[bool, str]
    inner: tuple[Inner, ...]
    count: int | tuple[int, ...]
    limit: float | None
    colour: Colour
    cell: Cell
    spare: str = "spare"


GOOD = {
    "name": "n",
    "share": 1,
    "kind": "b",
    "sizes": [1, 2],
    "pair": [True, "x"],
    "inner": [{"size": 3}],
    "count": [4],
    "limit": None,
    "colour": "red",
    "cell": cell().axes(),
    "of_tomorrow": [],
}


def test_what_fits_is_a_dataclass_with_its_defaults():
    assert fill(Outer, GOOD) == Outer(
        name="n",
        share=1,
        kind="b",
        sizes=(1, 2),
        pair=(True, "x"),
        inner=(Inner(3),),
        count=(4,),
        limit=None,
        colour=Colour.RED,
        cell=cell(),
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": 1}, "name must be text, not 1"),
        ({"name": "a" * 1_000_001}, "name must be at most 1,000,000 characters"),
        ({"share": "1"}, "share must be a number, not '1'"),
        ({"share": True}, "share must be a number, not True"),
        ({"share": float("nan")}, "share must be a finite number, not nan"),
        ({"kind": "c"}, "kind must be one of a, b, or this gradbench newer, not 'c'"),
        ({"kind": ["a"]}, "kind must be one of a, b"),
        ({"sizes": {}}, "sizes must be a list, not {}"),
        ({"sizes": [1, None]}, "sizes[1] must be a whole number, not None"),
        ({"sizes": [-(2**64)]}, "sizes must be numbers of 64 bits, not a number of 65 bits"),
        ({"pair": [True]}, "pair must be a list of 2"),
        ({"inner": [{}]}, "inner[0].size is missing"),
        ({"inner": [{"size": 1.0}]}, "inner[0].size must be a whole number, not 1.0"),
        ({"count": None}, "count must be a whole number or a list, not None"),
        ({"count": [1, "2"]}, "count[1] must be a whole number, not '2'"),
        ({"limit": "x"}, "limit must be a number or null, not 'x'"),
        ({"colour": "blue"}, "colour must be one of red, not 'blue'"),
        ({"cell": {"soul": 1}}, "cell has axes unknown to this gradbench, soul: upgrade"),
        ({"cell": {**cell().axes(), "dtype": "x"}}, "cell: unknown dtype 'x'"),
        ({"cell": {**cell().axes(), "batch_size": 10**30}}, "from 1 up, not a number of 100 bits"),
        ({"cell": {**cell().axes(), "model": ["m"]}}, "cell must be a cell"),
        ({"cell": {**cell().axes(), "model": "m" * 2000}}, "2,000 characters: 1000 at most"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit_is_named_by_its_place(change, words):
    with pytest.raises(Misfit) as caught:
        fill(Outer, GOOD | change)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", "9" * 5000, "[" * 100_000, b"\xff", b"\xef\xbb\xbf1"]
)
def test_what_is_no_json_is_a_line(text):
    with pytest.raises(Misfit) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def places(value, path=()):
    """Yield the way to everything in a JSON value, of a long list to its first two."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:2])
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


@pytest.mark.parametrize(
    ("name", "load"), [("selfcheck.json", selfcheck.load), ("semantics.json", semantics.load)]
)
@pytest.mark.parametrize("wrong", [None, -1, "\x1b", [], {}, [[]], True], ids=repr)
def test_a_saved_check_with_another_value_anywhere_is_read_or_is_none(name, load, wrong, tmp_path):
    content = json.loads((REFERENCE / name).read_text("utf-8"))
    assert load(REFERENCE / name) is not None
    path = tmp_path / name
    if name == "semantics.json":  # a large file: its parts are alike
        for part in ("claims", "pitfalls", "listings", "transitions", "table", "outcomes"):
            content[part] = content[part][:2] if part != "outcomes" else content[part]
    for place in places(content):
        holder = content
        for key in place[:-1]:
            holder = holder[key]
        before, holder[place[-1]] = holder[place[-1]], wrong
        path.write_text(json.dumps(content), "utf-8")
        load(path)  # whatever it is, it raises nothing
        holder[place[-1]] = before


def test_what_the_modes_do_is_of_one_torch():
    path = REFERENCE / "semantics.json"
    torch = semantics.load(path).torch
    assert semantics.load_of(path, torch=torch) is not None
    assert semantics.load_of(path, torch="1.0") is None
    assert semantics.load_of(path, torch=None) is None


def test_a_link_that_is_no_page_is_refused(tmp_path):
    content = json.loads((REFERENCE / "semantics.json").read_text("utf-8"))
    content["pitfalls"][0]["link"] = "javascript:alert(1)"
    (tmp_path / "semantics.json").write_text(json.dumps(content), "utf-8")
    assert semantics.load(tmp_path / "semantics.json") is None
