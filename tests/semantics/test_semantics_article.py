"""The article's own listings, as printed, in fresh interpreters; skipped where it is absent."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradbench.semantics.listings import LISTINGS, run
from gradbench.semantics.proof import in_a_thread

ROOT = Path(__file__).parents[2]
NAME = "000_d7023da5ada383c1.txt"


def article() -> Path | None:
    """Return the article: where GRADBENCH_SEEDS says, or in shared/seeds beside the checkout."""
    places = [folder / "shared" / "seeds" for folder in ROOT.parents]
    if "GRADBENCH_SEEDS" in os.environ:
        places.insert(0, Path(os.environ["GRADBENCH_SEEDS"]))
    return next((place / NAME for place in places if (place / NAME).exists()), None)


ARTICLE = article()
pytestmark = pytest.mark.skipif(ARTICLE is None, reason=f"no shared/seeds/{NAME} here")


@pytest.fixture(scope="module")
def printed():
    """Each listing as it went: its source and the finished process."""
    text = ARTICLE.read_text("utf-8")
    sources = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", source],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for source in sources
    ]
    return [
        (source, process, *process.communicate())
        for source, process in zip(sources, processes, strict=True)
    ]


def stopped_at(source: str, errors: str) -> tuple[int, str]:
    """Return which of the calls of backward() in the program a traceback is of, and the line."""
    number = int(re.findall(r'File "<string>", line (\d+)', errors)[-1])
    lines = source.splitlines()
    calls = [i for i, line in enumerate(lines, 1) if ".backward()" in line.partition("#")[0]]
    return calls.index(number), lines[number - 1]


def test_there_are_three(printed):
    assert len(printed) == 3


def test_the_first_stops_at_its_only_backward_and_prints_nothing(printed):
    source, process, out, errors = printed[0]
    assert process.returncode == 1
    assert out == ""
    assert stopped_at(source, errors)[0] == 0
    assert "element 0 of tensors does not require grad" in errors


def test_the_second_prints_the_error_that_it_catches_and_ends(printed):
    _, process, out, errors = printed[1]
    assert process.returncode == 0, errors
    (line,) = out.splitlines()
    assert "element 0 of tensors does not require grad" in line


def test_the_third_stops_at_its_inner_backward_before_the_try(printed):
    source, process, out, errors = printed[2]
    assert process.returncode == 1
    assert out == ""
    index, line = stopped_at(source, errors)
    assert index == 0
    assert line.startswith(" " * 8)  # inside both blocks
    assert "try:" in source.partition(line)[2]


@pytest.mark.parametrize(
    ("number", "ours"), list(enumerate(["local-disable", "global-disable", "nested-reenable"]))
)
def test_a_listing_ends_as_the_printed_one(printed, number, ours):
    _, process, out, errors = printed[number]
    ran = in_a_thread(lambda: run(LISTINGS[ours].source))
    assert bool(ran.error) is (process.returncode != 0)
    said = errors.strip().splitlines()[-1] if errors.strip() else ""
    assert ran.error == said
    assert bool(ran.printed) is bool(out)
