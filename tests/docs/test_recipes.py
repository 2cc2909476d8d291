"""Every "to add" of CONTRIBUTING.md, done in a copy of gradbench: what it says is all it takes."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("\n## To add\n")[2]
RECIPES = dict(re.findall(r"^\*\*An? ([\w ]+)\.\*\* (.*?)(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE))
SCRIPT = Path(__file__).with_name("with_all_recipes.py")


@dataclass(frozen=True)
class Row:
    """Text that goes into a file, before the next mark after the place where a table begins."""

    file: str
    table: str
    before: str
    text: str


# What each recipe says to write, by recipe.
ROWS = {
    "grad mode": [
        Row("experiment/matrix.py", "GRAD_MODES", ")\n", ', "context_off"'),
        Row(
            "workloads/grad_modes.py",
            "MODES",
            "    )\n}",
            '        GradMode("context_off", enter=partial(torch.set_grad_enabled, False),'
            " hold=partial(globally, False), records=False, reenable=torch.enable_grad),\n",
        ),
        Row("report/figures/style.py", "MARKERS", '", strict', "v"),
        Row("report/figures/style.py", "SIZES", "), strict", ", 0.8"),
        *(
            Row(
                "report/figures/style.py", f"{theme}: Final", "),\n    parts", f', "#01030{number}"'
            )
            for number, theme in ((5, "PAGE"), (6, "DARK"), (7, "LIGHT"))
        ),
    ],
    "model": [
        Row(
            "workloads/models.py",
            "MODELS",
            "    }\n",
            '        "mine": Model(partial(mlp, 8, 16, 10), partial(classification, shape=(8,)),'
            ' head="2", about="2 linear layers"),\n',
        )
    ],
    "workload": [
        Row("experiment/matrix.py", "WORKLOADS", ")\n", ', "evaluation"'),
        Row(
            "workloads/steps.py",
            "WORKLOADS",
            "    )\n}",
            '        Workload("evaluation", inference, optimizes=False),\n',
        ),
    ],
    "meter": [
        Row(
            "runner/meters.py",
            "METERS",
            "    )\n}",
            '        Meter("live_after", "bytes", "memory", True, "bytes live after a step"),\n',
        ),
        Row(
            "runner/memory_pass.py",
            "class _Reader",
            '            "first_peak_allocated"',
            '            "live_after": Figure(window.after_bytes),\n',
        ),
    ],
    "pass": [
        Row(
            "runner/passes.py",
            "PASSES",
            "    )\n}",
            '        Pass(name="again", job=memory_block, malloc=FOR_MEMORY),\n',
        )
    ],
    "claim or a pitfall": [
        Row(
            "semantics/claim_proofs.py",
            "def only_a_function",
            "def only_a_function",
            "def adds_up() -> ProofResult:\n"
            "    total = (torch.ones(2) + torch.ones(2)).tolist()\n"
            "    return claim_verdict(total == [2.0, 2.0], str(total))\n\n\n",
        ),
        Row(
            "semantics/claims.py",
            "CLAIMS",
            "    # --- title",
            '    Claim(id="adds-up", place="title", says="1 + 1 is 2", truth="it is",'
            " proof=proofs.adds_up),\n",
        ),
    ],
    "device": [
        Row(
            "devices/meta.py",
            "",
            "",
            '"""Tensors without data."""\n\nfrom .cpu import CPU\n\n\nclass Meta(CPU):\n'
            '    """The CPU, under another name."""\n\n    name = "meta"\n',
        ),
        Row(
            "devices/__init__.py",
            "def _cuda(",
            "def _cuda(",
            "def _meta(_name):\n    from .meta import Meta\n\n    return Meta()\n\n\n",
        ),
        Row("devices/__init__.py", "DEVICES", "}\n", '    "meta": _meta,\n'),
    ],
    "export": [
        Row(
            "exports/names.py",
            "",
            "",
            '"""The names of runs, one a line."""\n\nfrom .numbers import Exported\n\n\n'
            "def export(runs):\n"
            '    """Return one file."""\n'
            '    return Exported({"names.txt": "".join(f"{run.name}\\n" for run in runs)})\n',
        ),
        Row("exports/formats.py", "from . import", "markdown", "names, "),
        Row(
            "exports/formats.py",
            "FORMATS",
            "    )\n}",
            '        Format("names", "the names of runs", names.export),\n',
        ),
    ],
}
ELSEWHERE = {"axis": "tests/experiment/test_axis.py"}


def test_every_recipe_is_tried_and_nothing_else():
    assert set(RECIPES) == set(ROWS) | set(ELSEWHERE)
    assert [path for path in ELSEWHERE.values() if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("recipe", ROWS)
def test_what_a_recipe_changes_is_what_it_names(recipe):
    """Files and folders, and the tables in them."""
    text = RECIPES[recipe]
    for row in ROWS[recipe]:
        folder = f"{Path(row.file).parent}/"
        assert row.file in text or folder in text or Path(row.file).name in text, row.file
        if row.table.isupper() and row.table not in ("MARKERS", "SIZES"):  # a colour and a shape
            assert f"`{row.table}`" in text


def written(text: str, row: Row) -> str:
    start = text.index(row.table)
    place = text.index(row.before, start)
    return text[:place] + row.text + text[place:]


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """What a gradbench with all of it shows, by recipe."""
    folder = tmp_path_factory.mktemp("recipes")
    copy = folder / "gradbench"
    shutil.copytree(ROOT / "gradbench", copy, ignore=shutil.ignore_patterns("__pycache__"))
    for row in (row for rows in ROWS.values() for row in rows):
        path = copy / row.file
        text = path.read_text("utf-8") if path.exists() else ""
        path.write_text(written(text, row), "utf-8")
    done = subprocess.run(
        [sys.executable, SCRIPT],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_grad_mode_is_measured_and_drawn(shown):
    assert shown["grad modes"][-1] == "context_off"
    assert shown["measured"]["context_off peak_transient"] > 0
    assert "context_off" in shown["page"]


def test_a_model_and_a_workload_are_measured(shown):
    """The hidden layer's output stands beside the ReLU's: two times 16 floats, for 4 samples."""
    assert shown["measured"]["no_grad peak_transient"] == 2 * 16 * 4 * 4
    assert shown["cells"] == [
        "evaluation[cpu-mine-b4-no_grad]",
        "evaluation[cpu-mine-b4-context_off]",
    ]


def test_a_meter_is_read_and_is_in_the_table(shown):
    """Weights, the batch and its labels, and the output that the step returned is gone."""
    weights = 8 * 16 + 16 + 16 * 10 + 10
    assert shown["measured"]["no_grad live_after"] == 4 * (weights + 4 * 8) + 8 * 4
    assert "live_after" in shown["table"]


def test_a_pass_can_be_named_by_a_meter(shown):
    assert shown["passes"][-1] == "again"


def test_a_claim_is_put_to_the_test(shown):
    assert shown["claim"] == "[2.0, 2.0]"


def test_a_device_is_found_and_measured(shown):
    assert "meta" in shown["devices"]
    assert [type(size) for size in shown["on meta"]] == [int, int], "figures, not reasons"


def test_an_export_is_one_of_the_formats(shown):
    assert shown["export"] == {"names.txt": "a\n"}
