"""Changes in what a step makes torch do, in words."""

import pytest

from gradbench.analysis.operation_changes import in_words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "no change in operations; instructions +0.0% (below 1.0%: no change)"),
        ({"operators": None, "instructions": None}, "operations not counted"),
        (
            {"operators": {"aten.mm": 3}, "instructions": None},
            "operators: -1 aten.add, +1 aten.mm",
        ),
        (
            {
                "operators": {"aten.mm": 2, "aten.add": 1, "a": 1, "b": 2, "c": 3, "d": 4},
                "instructions": None,
            },
            "operators: +4 d, +3 c, +2 b and 1 more",
        ),
        (
            {"nodes": 6, "peak_bytes": 5096, "instructions": None},
            "graph nodes +2; peak +1,000 B",
        ),
        ({"saved_bytes": None, "instructions": None}, "no change in operations"),
        (
            {"instructions": 1_003_000},
            "no change in operations; instructions +0.3% (below 1.0%: no change)",
        ),
        ({"instructions": 1_020_000}, "no change in operations; instructions +2.0%"),
        ({"nodes": 6, "instructions": 980_000}, "graph nodes +2; instructions -2.0%"),
        (
            {"operators": None, "instructions": 970_000},
            "operations not counted; instructions -3.0%",
        ),
        ({"instructions": None}, "no change in operations"),
    ],
)
def test_a_change_in_operations_is_named(change, words):
    base = {
        "operators": {"aten.mm": 2, "aten.add": 1},
        "nodes": 4,
        "saved_bytes": 64,
        "peak_bytes": 4096,
        "instructions": 1_000_000,
    }
    assert in_words(base, base | change) == words
