"""Text of others can be seen whole, and acts nowhere: on a screen, in a log, in a spreadsheet."""

import io
import json
import unicodedata

import pytest
from hypothesis import given, settings, strategies as st

from gradbench.printable import (
    ENCODING_ERRORS,
    json_without_commands,
    one_line,
    printable,
    printable_data,
    printable_lines,
    spreadsheet,
    without_commands,
)

UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("mlp_tiny", "mlp_tiny"),
        ("größe × ▁ 模型", "größe × ▁ 模型"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]52;c;YQ==\x07", "\\x1b]52;c;YQ==\\x07"),
        ("\x9b31m", "\\x9b31m"),
        ("two\r\nlines\n", "two lines"),
        ("a\u2028b\x85c", "a b c"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
        ("\ufffe", "\\ufffe"),
    ],
)
def test_what_cannot_be_seen_is_spelled_out(text, seen):
    assert printable(text) == seen


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=())))
def test_of_any_text_nothing_unseen_is_left_and_what_can_be_seen_is_as_it_was(text):
    seen = printable(text)
    assert not {unicodedata.category(character) for character in seen} & UNSEEN
    assert printable(seen) == seen
    assert seen.encode("utf-8").decode("utf-8") == seen
    if not {unicodedata.category(character) for character in text} & UNSEEN:
        assert seen == text or "\\uff" in seen or "\\U" in seen  # but for noncharacters


def test_lines_stay_lines_where_several_are_wanted():
    assert printable_lines("a\n\x1bb\n") == "a\n\\x1bb\n"
    assert printable_data({"\x1b": ["\x07", 1, None, ("a\nb",)]}) == {
        "\\x1b": ["\\x07", 1, None, ["a\nb"]]
    }


def test_a_complaint_has_an_end():
    assert one_line("a" * 5000).endswith("… (3,000 more characters)")
    assert one_line("as it is") == "as it is"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("::error::x", "\\::error::x"),
        ("  \t::error::x", "  \t\\::error::x"),
        ("a\n::error::x", "a\n\\::error::x"),
        ("aten::add in a::b", "aten::add in a::b"),
        ("##[error]x", "#\\#[error]x"),
        ("say ##vso[task.setvariable]x", "say #\\#vso[task.setvariable]x"),
        ("##teamcity[x]", "#\\#teamcity[x]"),
        ("## heading", "## heading"),
    ],
)
def test_no_line_is_a_command_to_a_ci_system(text, safe):
    assert without_commands(text) == safe


def test_json_without_commands_says_the_same():
    content = {"##vso[x]": ["##[error]a", "###", "#"]}
    text = json_without_commands(json.dumps(content))
    assert "##" not in text
    assert json.loads(text) == content


@pytest.mark.parametrize(
    "formula", ["=1+1", "+1", "-1+2", "@SUM(1)", "\t=1", " =1", "\uff1d1", "'=1"]
)
def test_no_text_is_a_formula(formula):
    assert spreadsheet(formula).startswith("'")
    assert spreadsheet("mlp_tiny") == "mlp_tiny"


def test_a_screen_without_utf_8_gets_ascii():
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, "ascii", ENCODING_ERRORS)
    stream.write("1 µs → 2 µs, × 2 ± 1 ▁█ 模 \ud800")
    stream.flush()
    assert buffer.getvalue() == rb"1 us -> 2 us, x 2 +/- 1 _# \u6a21 \ud800"
