"""A screen is as wide as it is when it is written to."""

import io

import pytest

from gradbench.terminal.screen import Screen


@pytest.mark.parametrize(
    ("said", "columns"), [("200", 200), ("080", 80), ("0", 120), ("", 120), ("wide", 120)]
)
def test_columns_are_those_that_the_environment_says_now(monkeypatch, said, columns):
    monkeypatch.setenv("COLUMNS", "40")
    screen = Screen(file=io.StringIO())
    monkeypatch.setenv("COLUMNS", said)
    assert screen.columns(piped=120) == columns
