"""Sizes in a model's name: read where all are there, and nothing else is taken for one."""

import pytest
from hypothesis import given, strategies as st

from gradbench.experiment.model_names import FAMILIES, LONGEST, VARIABLES, Sized, parse

SIZES = st.integers(1, 10**LONGEST - 1)


@given(SIZES, SIZES, SIZES)
def test_a_name_gives_back_the_sizes_it_was_made_of(depth, width, resolution):
    assert parse(f"mlp_d{depth}_w{width}") == Sized("mlp", depth, width)
    assert parse(f"cnn_d{depth}_w{width}_r{resolution}") == Sized("cnn", depth, width, resolution)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "mlp",
        "mlp_deep",
        "mlp_d8",
        "mlp_w8",
        "mlp_w8_d8",
        "mlp_d8_w256_r32",
        "cnn_d3_w16",
        "cnn_d3_w16_r",
        "mlp_d0_w8",
        "mlp_d8_w0",
        "cnn_d3_w16_r0",
        "mlp_d-1_w8",
        "mlp_d1.5_w8",
        "MLP_d8_w8",
        "my_mlp_d8_w8",
        "mlp_d8_w8_big",
        "mlp_d8_w8\n",
        "vit_d8_w8",
        "nets:mlp_d8_w8",
    ],
)
def test_no_other_name_has_sizes(name):
    assert parse(name) is None


def test_every_family_names_its_sizes_in_the_order_of_the_variables():
    sized = {"mlp": parse("mlp_d1_w2"), "cnn": parse("cnn_d1_w2_r3")}
    sized["decoder"] = parse("decoder_d1_w2")
    assert set(sized) == set(FAMILIES)
    for family, found in sized.items():
        assert FAMILIES[family] == tuple(
            variable for variable in VARIABLES if getattr(found, variable)
        )
        assert [getattr(found, variable) for variable in FAMILIES[family]] == [1, 2, 3][
            : len(FAMILIES[family])
        ]
