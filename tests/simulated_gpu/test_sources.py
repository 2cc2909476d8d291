"""The README of the simulated CUDA runtime lists what its sources read."""

import re
from pathlib import Path

HERE = Path(__file__).parent


def test_the_readme_lists_every_setting_and_no_other():
    sources = "\n".join(path.read_text() for path in HERE.glob("src/*/*.c"))
    read = set(re.findall(r'\bsim_(?:number|text)\("(\w+)"', sources))
    rows = re.findall(r"^\| (`[A-Z].*?) \|", (HERE / "README.md").read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert read == listed
    assert len(read) > 15


def test_every_layout_is_compared_with_the_public_headers():
    comparison = (HERE / "src" / "check_headers.c").read_text()
    layouts = list(HERE.glob("src/*/layouts.h"))
    assert layouts
    for path in layouts:
        for name in re.findall(r"^\} (\w+);|^typedef struct \{.*\} (\w+);", path.read_text(), re.M):
            if (structure := "".join(name)) != "Dim3":
                assert f"SAME_SIZE({structure}," in comparison, structure
