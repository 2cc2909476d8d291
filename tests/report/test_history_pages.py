"""A history longer than a page: each series is on one of the pages, and every link leads to it."""

from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import pytest
from builders import measured_block, run_at, write_run
from pages import Page
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import StoreError
from gradbench.history import series
from gradbench.history.commit_links import linker
from gradbench.report import history, history_pages

MODELS = ("a b", "conv#1", "linear", "mlp", "wide")


def grown(number):
    """Return the run of a commit; from the third on three models need more."""
    outcomes = [
        one for model in MODELS for one in measured_block(["global_on", "no_grad"], model=model)
    ]
    more = 8 * (number > 2)
    larger = [one.exact and one.cell.model in MODELS[2:] for one in outcomes]
    return run_at(
        number,
        [
            replace(one, values=(one.values[0] + more,)) if is_larger else one
            for one, is_larger in zip(outcomes, larger, strict=True)
        ],
    )


@pytest.fixture
def found(monkeypatch):
    monkeypatch.setattr(history_pages, "A_PAGE", 2)
    found, _ = series.history(series.of([grown(number) for number in range(5)]))
    return found


@pytest.fixture
def written(found, tmp_path):
    path = tmp_path / "out" / "a page.html"
    count = history_pages.save(found, path, link=linker(""), warnings=["left out"])
    assert count == len(list(path.parent.rglob("*.html")))
    return path


def read(path):
    page = Page(path.read_text("utf-8"))
    assert page.open == []
    return page


def links(path):
    """Return the files that a page links to, and what in them."""
    found = (href.partition("#") for href in read(path).every("href"))
    return [(path.parent / unquote(file), anchor) for file, _, anchor in found if file]


def test_every_page_is_reached_by_links_that_lead_somewhere(written):
    seen, ahead = set(), [written]
    while ahead:
        path = ahead.pop().resolve()
        if path not in seen:
            seen.add(path)
            for target, anchor in links(path):
                assert target.is_file()
                assert not anchor or anchor in read(target).every("id")
                ahead.append(target)
    assert seen == set(written.parent.resolve().rglob("*.html"))


def test_each_series_is_on_one_of_all_pages(written, found):
    drawn = [read(path).count("svg") for path in written.parent.rglob("all-*.html")]
    assert sum(drawn) == len(found)
    assert max(drawn) == 2


def test_the_first_page_has_what_changed_and_where_the_rest_is(written, found):
    changed = [one for one in found if one.changes]
    assert len(changed) > 2
    page = read(written)
    assert page.count("svg") == page.count("circle") == 2
    assert f"{len(changed)} of {len(found)} series changed" in page.text
    assert "left out" in page.text
    assert all(model in page.text for model in MODELS)


def test_what_fits_a_page_is_one_page(found, tmp_path, monkeypatch):
    monkeypatch.setattr(history_pages, "A_PAGE", len(found))
    path = tmp_path / "page.html"
    assert history_pages.save(found, path, link=linker("")) == 1
    assert list(tmp_path.rglob("*")) == [path]
    assert path.read_text("utf-8") == history.render(found, link=linker(""))


def test_a_shorter_history_leaves_no_page_of_the_longer_one(written, found, monkeypatch):
    folder = written.with_name("a page-pages")
    theirs = folder / "all-99.html"
    theirs.write_text("<!doctype html><title>mine</title>", "utf-8")
    count = history_pages.save(found[:4], written, link=linker(""))
    assert len(list(written.parent.rglob("*.html"))) == count + 1
    monkeypatch.setattr(history_pages, "A_PAGE", len(found))
    history_pages.save(found, written, link=linker(""))
    assert list(folder.iterdir()) == [theirs]
    theirs.unlink()
    history_pages.save(found, written, link=linker(""))
    assert list(written.parent.iterdir()) == [written]


def test_a_name_that_is_no_utf_8_is_linked_as_it_is(found, tmp_path):
    path = tmp_path / "p\udcff.html"
    renamed = [replace(one, cell=replace(one.cell, model="net\udcff:make")) for one in found]
    history_pages.save(renamed, path, link=linker(""))
    html = path.read_text("utf-8")
    assert "p%FF-pages/all-1.html#model-net%5Cudcff" in html
    assert 'href="../p%FF.html"' in (tmp_path / "p\udcff-pages" / "all-1.html").read_text("utf-8")


def test_pages_link_to_those_near_and_to_both_ends(found, tmp_path):
    pages = history_pages._Pages(found * 10, tmp_path / "p.html", linker(""))
    steps = [step.text for step in pages._steps("all", 9)]
    last = str(history_pages._pages(found * 10))
    assert steps == ["‹ before", "1", "…", "7", "8", "9", "10", "11", "…", last, "next ›"]
    assert next(step for step in pages._steps("all", 9) if step.text == "9").url == ""


def test_the_command_says_how_many_pages_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(history_pages, "A_PAGE", 2)
    for number in range(3):
        write_run(grown(number), tmp_path / "runs")
    page = tmp_path / "page.html"
    answer = CliRunner().invoke(app, ["history", str(tmp_path / "runs"), "-o", str(page)])
    assert answer.exit_code == 0
    behind = len(list((tmp_path / "page-pages").iterdir()))
    assert f"and {behind} pages behind it" in answer.output
    assert Path(page).is_file()


@pytest.mark.parametrize("place", [".", "..", "/"])
def test_a_folder_in_the_place_of_the_page_is_named_before_anything_is_written(place, tmp_path):
    with pytest.raises(StoreError, match=f"cannot write the page '{place}': Is a directory"):
        history_pages.save([], Path(place), link=linker(""))
