"""Versions that would run the same code are refused."""

import sys

import pytest

from gradbench.comparison import checkouts
from gradbench.comparison.code_origins import check_modules
from gradbench.errors import BadModel


def test_a_package_of_the_working_tree_that_another_version_imports_is_refused(tmp_path):
    home = tmp_path / "candidate"
    base, candidate = (
        checkouts.Version(
            name=name,
            python=sys.executable,
            paths=(tmp_path / name,),
            tree=tmp_path / name,
            home=home if name == "base" else None,
        )
        for name in checkouts.SIDES
    )
    installed = str(home / ".venv/lib/python3.11/site-packages/numpy.py")
    check_modules(base, {"numpy": installed, "shop": str(tmp_path / "base/shop.py")})
    elsewhere = str(home / "libs/other/__init__.py")
    with pytest.raises(BadModel, match=r"the base imports other from '.*libs/other/__init__.py'"):
        check_modules(base, {"other": elsewhere})
    check_modules(candidate, {"other": elsewhere})
