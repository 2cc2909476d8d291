"""`gradbench report` as it is called: what it writes, opens and refuses, and never with torch."""

import subprocess
import sys

import pytest
from builders import measured_block, run
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.store.jsonl import Store


@pytest.fixture
def stored(tmp_path):
    """Return a folder with two runs, and their names by time."""
    store = Store(tmp_path / "results")
    records = [run(measured_block(step_ns={"no_grad": ns})).records for ns in (1500, 1900)]
    return store.folder, [store.save(of).name for of in records]


def called(*words):
    return CliRunner().invoke(app, ["report", *map(str, words)])


def test_two_runs_are_compared_in_the_order_given(stored, tmp_path):
    folder, (old, new) = stored
    done = called(old, new, "--results", folder, "-o", tmp_path / "page.html")
    assert done.exit_code == 0
    text = (tmp_path / "page.html").read_text("utf-8")
    assert f"<code>{new}</code> against <code>{old}</code>" in text
    assert "1.267 [" in text


@pytest.mark.parametrize(("found", "said"), [(True, ""), (False, "found no browser")])
def test_open_shows_the_page_or_says_that_nothing_can(stored, tmp_path, monkeypatch, found, said):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or found)
    done = called("--results", stored[0], "-o", tmp_path / "a page.html", "--open")
    assert opened == [(tmp_path / "a page.html").as_uri()]
    assert said in done.output
    assert done.exit_code == 0


def test_figures_go_into_a_folder_each_where_runs_are_several(stored, tmp_path):
    folder, names = stored
    where = ("--results", folder, "-o", tmp_path / "page.html", "--figures", tmp_path / "figures")
    assert called(*where).exit_code == 0
    assert (tmp_path / "figures" / "forest.png").read_bytes().startswith(b"\x89PNG")
    assert called(*names, *where).exit_code == 0
    assert {path.name for path in (tmp_path / "figures").iterdir() if path.is_dir()} == set(names)


def test_a_folder_for_figures_that_is_a_file_is_one_line(stored, tmp_path):
    (tmp_path / "file").write_text("in the way")
    done = called(
        "--results", stored[0], "-o", tmp_path / "page.html", "--figures", tmp_path / "file"
    )
    assert done.exit_code == 2
    assert "cannot write the figure" in done.output


def test_it_needs_no_torch_and_writes_the_same_page_in_another_process(stored, tmp_path):
    code = (
        "import sys; from gradbench.cli import app; app(sys.argv[1:], standalone_mode=False);"
        "sys.exit('torch' in sys.modules)"
    )
    words = ["report", "--results", stored[0], "-o", tmp_path / "page.html"]
    subprocess.run([sys.executable, "-c", code, *map(str, words)], check=True, capture_output=True)
    called("--results", stored[0], "-o", tmp_path / "again.html")
    assert (tmp_path / "page.html").read_bytes() == (tmp_path / "again.html").read_bytes()
