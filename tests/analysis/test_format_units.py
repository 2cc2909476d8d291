"""Numbers as people read them."""

import re

import pytest
from hypothesis import given, strategies as st

from gradbench.analysis.format_units import (
    digits,
    duration,
    energy,
    factor,
    interval,
    parse_size,
    quantity,
    rate,
    size,
)


def case(function, *pairs):
    return [
        pytest.param(function, value, text, id=f"{function.__name__}-{text}")
        for value, text in pairs
    ]


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        *case(digits, (0, "0"), (1, "1"), (0.0123, "0.0123"), (1.234, "1.23"), (12.34, "12.3")),
        *case(digits, (99.96, "100"), (123.4, "123"), (1234.5, "1,234"), (1e9, "1,000,000,000")),
        *case(digits, (-1.234, "-1.23"), (float("inf"), "inf"), (float("nan"), "nan")),
        *case(duration, (0, "0 ns"), (999, "999 ns"), (1000, "1 µs"), (1_230_000, "1.23 ms")),
        *case(duration, (1.5e9, "1.5 s"), (3.6e12, "3,600 s"), (-1500, "-1.5 µs"), (0.5, "0.5 ns")),
        *case(size, (0, "0 B"), (1, "1 B"), (1023, "1,023 B"), (1024, "1 KiB")),
        *case(
            size, (1_572_864, "1.5 MiB"), (3 * 2**30, "3 GiB"), (2**41, "2 TiB"), (-2048, "-2 KiB")
        ),
        *case(energy, (0, "0 µJ"), (999, "999 µJ"), (1230, "1.23 mJ"), (4.5e6, "4.5 J")),
        *case(energy, (2e9, "2 kJ")),
        *case(rate, (0, "0 /s"), (12, "12 /s"), (12_300, "12.3 k/s"), (1.5e7, "15 M/s")),
        *case(
            factor, (1, "1.000"), (0.987, "0.987"), (1.0342, "1.034"), (16.54, "16.5"), (250, "250")
        ),
    ],
)
def test_a_number_reads(function, value, text):
    assert function(value) == text


def test_an_interval_reads_as_its_ends():
    assert interval(0.981, 12.34) == "[0.981, 12.3]"


@pytest.mark.parametrize(
    ("unit", "text"), [("ns", "2.05 µs"), ("bytes", "2 KiB"), ("uJ", "2.05 mJ")]
)
def test_a_quantity_has_its_unit_s_words(unit, text):
    assert quantity(2048, unit) == text


SCALES = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9, "B": 1}
SCALES |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


@given(st.floats(1, 1e15), st.sampled_from([duration, size]))
def test_what_is_read_is_the_number_to_three_digits(number, show):
    words, unit = show(number).split(" ")
    assert float(words.replace(",", "")) * SCALES[unit] == pytest.approx(
        number, rel=0.0051 if unit != "B" else 0.5 / number
    )


@given(st.floats(1e-4, 1e6))
def test_digits_are_read_without_an_exponent(value):
    assert re.fullmatch(r"[\d,]+(\.\d+)?", digits(value))


def test_small_numbers_have_three_digits_too():
    assert digits(0.000012345) == "1.23e-05"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        *case(duration, (999_999, "1 ms"), (999.8, "1 µs")),
        *case(size, (2**20 - 1, "1 MiB")),
        *case(rate, (999_999, "1 M/s")),
    ],
)
def test_what_rounds_to_a_thousand_is_one_of_the_next_unit(function, value, text):
    assert function(value) == text


def test_a_small_factor_is_not_nothing():
    assert float(factor(0.0004)) == 0.0004


# Sizes that people write

BINARY = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
DECIMAL = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("4096", 4096),
        ("4096 B", 4096),
        ("80GiB", 80 * 2**30),
        ("80 gib", 80 * 2**30),
        ("  1.5 MiB ", 3 * 2**19),
        ("24 GB", 24 * 10**9),
        ("24GB", 24 * 10**9),
        ("1KB", 1000),
        ("0.5 B", 0),
        ("2.0", 2),
    ],
)
def test_a_size_is_read(text, nbytes):
    assert parse_size(text) == nbytes


@given(st.integers(0, 10**6), st.sampled_from([*(BINARY | DECIMAL).items(), ("B", 1), ("", 1)]))
def test_a_whole_number_of_any_unit_is_read_to_the_byte(number, unit):
    name, scale = unit
    for written in (f"{number}{name}", f"{number} {name.lower()}", f" {number}{name.upper()} "):
        assert parse_size(written) == number * scale


@given(st.floats(1, 1e15))
def test_a_size_that_was_shown_is_read_to_three_digits(number):
    shown = size(number).replace(",", "")
    assert parse_size(shown) == pytest.approx(number, rel=0.0051, abs=0.51)


@pytest.mark.parametrize(("text", "nbytes"), [("1.001 kB", 1001), (f"{2**53 + 1}", 2**53 + 1)])
def test_a_size_that_is_a_whole_number_of_bytes_is_exact(text, nbytes):
    assert parse_size(text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "GiB", "many", "-1", "-1 GiB", "1e9", "1.GiB", ".5GiB", "80 G", "80 Gi"),
        *("80 GiB/s", "80 GiBs", "1 2", "80 XiB", "inf", "nan", "0x10", "1_000"),
    ],
)
def test_what_is_no_size_is_refused_with_examples(text):
    with pytest.raises(ValueError, match="is no size: write 80GiB") as error:
        parse_size(text)
    assert repr(text) in str(error.value)
