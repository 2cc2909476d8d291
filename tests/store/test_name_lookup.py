"""Which record of a folder a user means."""

from pathlib import Path

import pytest

from gradbench.errors import StoreError
from gradbench.store import name_lookup

NAMES = [f"2026010{day}T000000Z" for day in range(1, 9)]


def meant(name: str, names: list[str] = NAMES) -> str:
    return name_lookup.meant(name, names, beginning=name, kind="run", folder=Path("results"))


def test_a_name_its_beginning_and_latest_each_mean_one():
    assert meant(NAMES[2]) == meant("20260103") == NAMES[2]
    assert meant("latest") == NAMES[-1]


@pytest.mark.parametrize(
    ("name", "names", "words"),
    [
        ("2026010", NAMES[:2], f"'2026010' fits several runs: {NAMES[0]}, {NAMES[1]}"),
        ("2026", NAMES, f"'2026' fits several runs: {', '.join(NAMES[:5])} and 3 more"),
        ("1999", NAMES, f"no run '1999' in 'results'; the latest there: {', '.join(NAMES[-5:])}"),
        ("latest", [], "no run 'latest' in 'results'; the latest there: none"),
    ],
)
def test_what_means_none_or_several_is_refused_with_what_there_is(name, names, words):
    with pytest.raises(StoreError) as caught:
        meant(name, names)
    assert str(caught.value) == words


@pytest.mark.parametrize("name", ["", " "])
def test_nothing_is_no_name(name):
    with pytest.raises(StoreError, match="names no run: give its name, its beginning or latest"):
        name_lookup.check_named(name, "run")
