"""The listings of README.md and docs/grad-modes.md run; links and files of pages exist."""

import re
import runpy
from dataclasses import fields
from pathlib import Path

import pytest

import gradbench
from gradbench.experiment.matrix import AXES
from gradbench.experiment.plan import Plan
from gradbench.records import selfcheck
from gradbench.semantics.proof import in_a_thread
from gradbench.semantics.state import RULES, Rule
from gradbench.store.jsonl import load

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "grad-modes.md"
LISTINGS = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
BITS = {"on": True, "off": False, "stays": None}


def test_there_are_listings_and_each_asserts_something():
    assert len(LISTINGS) >= 8
    assert [listing for listing in LISTINGS if "assert" not in listing] == []


@pytest.mark.parametrize("listing", LISTINGS, ids=lambda listing: listing.splitlines()[-1][:40])
def test_a_listing_runs(listing):
    program = compile(listing, str(PAGE), "exec")
    in_a_thread(lambda: exec(program, {"__name__": "listing"}))


def test_a_listing_that_is_wrong_would_be_found():
    with pytest.raises(AssertionError):
        in_a_thread(lambda: exec("assert False", {}))


def test_the_table_of_bits_is_the_state_machine():
    rows = re.findall(
        r"^\| `(\w+(?:\(\w+\))?)` \| (on|off|stays) \| (on|off|stays) \|$",
        PAGE.read_text("utf-8"),
        re.MULTILINE,
    )
    table = {name: Rule(BITS[grad], BITS[inference]) for name, grad, inference in rows}
    assert table == {name: rule for name, rule in RULES.items() if name != "none"}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```|`[^`\n]+`", "code", page.read_text("utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text)
    assert page.name != "README.md" or len(links) > 10
    files = [link for link in links if "://" not in link]
    assert [link for link in files if not (page.parent / link).exists()] == []


def named_files(text: str) -> list[str]:
    """Return what a page names in backticks that reads like one of our files or folders."""
    folders = "|".join(path.name for path in (ROOT / "gradbench").iterdir() if path.is_dir())
    return re.findall(rf"`((?:tests/|tools/|gradbench/|(?:{folders})/)[\w/.]*)`", text)


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], ids=lambda p: p.name
)
def test_a_file_that_a_page_names_is_there(page):
    named = named_files(page.read_text("utf-8"))
    assert page.name != "architecture.md" or len(named) > 40
    missing = [
        name for name in named if not any((ROOT / at / name).exists() for at in (".", "gradbench"))
    ]
    assert missing == []


def test_a_file_that_is_not_there_would_be_found():
    assert named_files("see `stats/no_such.py` and `tests/`, not `results/`") == [
        "stats/no_such.py",
        "tests/",
    ]


def test_the_picture_of_the_architecture_names_every_folder():
    picture = re.findall(
        r"^```\n(.*?)^```$", (ROOT / "docs/architecture.md").read_text("utf-8"), re.DOTALL | re.M
    )[0]
    folders = {f"{path.parent.name}/" for path in (ROOT / "gradbench").glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / "gradbench").glob("[a-z]*.py")}
    assert {name for name in folders | modules if name not in picture} == set()


def section_of_the_matrix(title: str) -> str:
    """Return a section of docs/matrix.md."""
    text = (ROOT / "docs/matrix.md").read_text("utf-8")
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def names_in(title: str) -> set[str]:
    """Return what the first column of a section's table in docs/matrix.md names."""
    rows = re.findall(r"^\| (.*?) \|", section_of_the_matrix(title), re.MULTILINE)[2:]  # no head
    return {name.strip(" `").replace(" ", "_") for row in rows for name in row.split(",")}


def test_the_tables_of_the_matrix_have_every_axis_and_every_meter():
    assert names_in("Axes") == {axis.name for axis in fields(gradbench.Cell)}
    assert names_in("Meters") == set(gradbench.METERS)


def test_the_table_of_axes_has_every_value_of_an_axis_that_has_a_list_of_them():
    text = section_of_the_matrix("Axes")
    values = [value for axis in AXES.values() for value in axis.values]
    assert len(values) > 30
    assert [value for value in values if f"`{value}`" not in text] == []


def test_the_glossary_says_each_word_once():
    glossary = (ROOT / "docs/glossary.md").read_text("utf-8")
    entries = re.findall(r"^\*\*(.+?)\.\*\* ", glossary, re.MULTILINE)
    words = [word.strip().lower() for entry in entries for word in entry.split(",")]
    assert {"cell", "block", "arm", "round", "a/a control", "noise floor", "drift"} <= set(words)
    assert sorted(words) == sorted(set(words))


README = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE
)


def test_the_listing_that_measures_leaves_records_a_page_and_three_tables(
    tmp_path, monkeypatch, capsys, shared_fork_servers
):
    """With a budget of a moment, which the reader's own run is not cut to."""
    (listing,) = (listing for listing in README if "gb.run(" in listing)
    moment = Plan(budget_s=0.02, warmup_s=0.01)
    monkeypatch.setitem(gradbench.run.__kwdefaults__, "plan", moment)
    monkeypatch.chdir(tmp_path)
    exec(compile(listing, "README.md", "exec"), {"__name__": "listing"})
    (run,) = (tmp_path / "results").glob("*.jsonl")
    assert load(run).unfinished() == []
    assert "<!doctype html>" in (tmp_path / "page.html").read_text("utf-8").lower()
    printed = capsys.readouterr().out
    assert len(re.findall(r"\[\d+ rows x \d+ columns\]", printed)) == 3


def test_the_page_on_reliability_is_what_its_figures_print(capsys):
    runpy.run_path(str(ROOT / "tools/faults/reliability_doc.py"), run_name="__main__")
    assert capsys.readouterr().out == (ROOT / "docs/reliability.md").read_text("utf-8")


def test_a_self_check_changes_the_results_on_its_page_and_nothing_above_them():
    tool = runpy.run_path(str(ROOT / "tools/selfcheck_doc.py"))
    page = (ROOT / "docs/selfcheck.md").read_text("utf-8")
    saved = selfcheck.load(ROOT / "results/reference/selfcheck.json")
    above, heading, results = tool["with_results"](page, saved, ["A note."]).partition("## Results")
    assert (above, heading) == page.partition("## Results")[:2]
    assert results.splitlines()[-1] == page.splitlines()[-1]
    checks, facts = saved
    assert f"{facts['when']}.\n\nA note.\n" in results
    assert [check.name for check in checks if f"\n| {check.name} |" not in results] == []
