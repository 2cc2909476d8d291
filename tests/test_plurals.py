"""One function puts a number before its noun: nobody is shown ``1 cells``."""

import re
from pathlib import Path

import pytest

from gradbench.plurals import counted, plural

PACKAGE = Path(__file__).parents[1] / "gradbench"

NOUNS = (
    *("batch", "block", "call", "cell", "change", "character", "claim", "comparison", "core"),
    *("figure", "file", "finding", "machine", "module", "note", "other", "outcome", "pair"),
    *(
        "place",
        "point",
        "process",
        "record",
        "round",
        "row",
        "run",
        "sample",
        "shard",
        "tensor",
        "test",
    ),
    *("thread", "verdict"),
)
BY_HAND = re.compile(
    r"(?<!\$)\{[^{}:]*(?::,)?\}\}? (?:more |single |new )?(?:" + "|".join(NOUNS) + r")(?:s|es)\b"
)
"""A replacement field of an f-string or a template, and a noun in the plural right behind it."""

ALLOWED = {
    "{FEWEST_ROUNDS} rounds": "a constant above 1",
    "{LONGEST_TEXT:,} characters": "a constant above 1",
    "{look.elsewhere} runs": "a verb",
    "{elsewhere[0]} runs": "a verb",
    "{type(elsewhere[0]).__name__} runs": "a verb",
    "{seen:,} files": "more than a folder of runs may have, which are many",
    "{cell.device} runs": "a verb",
    "{changed.size} samples": "what memory does not limit is far above 1",
    "{value} cores": "a measured share of a core is no count",
}


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 cells"), (1, "1 cell"), (2, "2 cells"), (2000, "2,000 cells")]
)
def test_a_noun_follows_its_number(number, words):
    assert counted(number, "cell") == words
    assert plural(number, "more cell") == ("more cell" if number == 1 else "more cells")
    assert plural(number, "process") == ("process" if number == 1 else "processes")


def test_nothing_else_puts_a_number_before_a_plural():
    paths = [path for suffix in ("py", "j2") for path in PACKAGE.rglob(f"*.{suffix}")]
    assert len(paths) > 150
    found = [
        f"{path.relative_to(PACKAGE)}: {match[0]}"
        for path in paths
        for match in BY_HAND.finditer(path.read_text("utf-8"))
        if match[0] not in ALLOWED
    ]
    assert found == []
    by_hand = [p.name for p in paths if re.search(r"'s' \* \(|\"s\" \* \(", p.read_text("utf-8"))]
    assert by_hand == []
