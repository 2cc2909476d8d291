"""Code, screens and docs use the field's terms: the private words they replaced do not return."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

BANNED = {
    r"told": "given, reported, or the noun: lines, reply, request",
    r"fore(?:told|tell\w*)": "predicted",
    r"amiss": "warnings",
    r"spoil(?:s|t|ed|ing)?": "possible interference",
    r"at none": "intercept",
    r"off by": "max error",
    r"can(?:not|(?: this)? machine) tell": "validates, detects",
    r"figures? that repeats?": "deterministic metrics",
    r"change for (?:the )?worse": "a regression",
    r"what may pass": "regression thresholds and exit codes",
    r"doors?": "way to use it, command, plugin",
    r"the host decides": "host-bound",
    r"bit(?:es?|ing)": "reproduces",
    r"nursery": "fork server",
    r"the (?:bench|desk|house|court|floor above)": "the folder's name",
    r"wings?": "the folder's name",
    r"knobs?": "scaling variable",
}
"""Word -> what to say."""

SUFFIXES = {".py", ".j2", ".js", ".css", ".md", ".toml", ".yml", ".ini"}
_WORD = re.compile(rf"\b(?:{'|'.join(BANNED)})\b|(?<=[0-9}}]) %(?!}})", re.IGNORECASE)
"""The words, and a percentage that is not written ``5%``."""


def texts() -> list[Path]:
    """Return the package, its templates, the tests, the tools, the docs and the workflows."""
    folders = ("gradbench", "tests", "docs", "tools", "benchmarks", ".github")
    there = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    there += [path for folder in (".", "results", "reports") for path in (ROOT / folder).glob("*")]
    return sorted(
        path
        for path in there
        if path.suffix in SUFFIXES and path.is_file() and path != Path(__file__)
    )


def violations(name: str, text: str) -> list[str]:
    """Return the banned words of a text, with their lines."""
    spoken = text.replace("_", " ")  # words of identifiers too
    return [
        f"{name}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]!r}"
        for match in _WORD.finditer(re.sub(r"\s", " ", spoken))
    ]


def test_no_text_holds_a_word_that_was_replaced():
    assert len(texts()) > 150
    found = [
        violation
        for path in texts()
        for violation in violations(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "as told",
        "_read_told",
        "What may have spoilt it",
        "off\nby",
        "Three doors",
        "figures that\nrepeat",
    ],
)
def test_a_replaced_word_would_be_found(text):
    assert len(violations("x", f"some {text} words")) == 1


@pytest.mark.parametrize(
    "text", ["outdoors", "a 64-bit word", "retold", "telling apart", "5% of", "{% if x == 1 %}"]
)
def test_a_word_that_merely_looks_like_one_is_none(text):
    assert violations("x", f"some {text} words") == []
