"""The page in a real browser: it sorts, filters, keeps its view, and is clean to axe.

Screenshots land in the folder that ``GRADBENCH_SCREENSHOTS`` names, or in pytest's own.
"""

import csv
import json
import os
import re
import shutil
from io import StringIO
from pathlib import Path

import pytest
from builders import (
    block,
    broken_down,
    counted,
    ended,
    environment,
    measured_block,
    refused_block,
    run,
    run_of,
    skipped,
    started,
    timed,
)
from pages import HOSTILE, bisected, with_breakdowns
from patience import PATIENCE_S

from gradbench.report import template, write

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install -e .[dev]"
)
playwright.expect.set_options(timeout=PATIENCE_S * 1000)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium here: apt-get install chromium"
)
FORMULA = '=HYPERLINK("http://x.invalid";"a")'
MODES = ("global_on", "global_off", "no_grad", "inference_mode")


def everything():
    """Return a run with two models, two devices, refusals, and peaks broken down."""
    records = []
    for device in ("cpu", "cuda"):
        for model, speed in (("mlp_tiny", 1), ("cnn_small", 9)):
            for size in (1, 8):
                step_ns = {
                    mode: speed * size * base
                    for mode, base in zip(MODES, (2000, 1500, 1500, 1000), strict=True)
                }
                axes = {"device": device, "model": model, "batch_size": size}
                records += measured_block(step_ns=step_ns, **axes)
                for member in block(**axes):
                    saved = 2000 * size * (member.grad_mode == "global_on")
                    records += [
                        counted(member, 5000 + saved, meter="peak_allocated"),
                        counted(member, 9000 + saved, meter="peak_reserved"),
                        counted(member, 5000 + saved, meter="predicted_peak"),
                        broken_down(member, parameters=5000, saved=saved),
                        skipped(member, meter="energy", cause="unreadable", reason="no counter"),
                    ]
        records += refused_block(device=device)
    design = started(dict.fromkeys(r.cell for r in records), meters=("step_time", "peak_transient"))
    facts = environment(cpu="a CPU", gpu="a GPU", git_dirty=True)
    return run_of([design, facts, *records, ended()], name="everything")


def small():
    """Return a run of two blocks that has every kind of section but scaling."""
    design, facts, *rest = with_breakdowns().records
    refused = refused_block()
    unread = skipped(refused[0].cell, meter="energy", cause="unreadable", reason="no counter")
    cells = dict.fromkeys([*design.cells, *(r.cell for r in refused)])
    return run_of([started(cells, meters=design.meters), facts, *refused, unread, *rest])


def hostile():
    """Return runs whose every string of the user's wants to be markup."""
    first = with_breakdowns(model=HOSTILE, device=HOSTILE)
    design, *rest = first.records
    facts = environment(cpu=HOSTILE, git_branch=HOSTILE, **{HOSTILE: HOSTILE})
    reasons = [
        skipped(member, reason=HOSTILE) for member in block(model=HOSTILE, workload="training")
    ]
    noted = [timed(member, [1] * 9, stopped=HOSTILE) for member in block(workload="training")]
    records = [design, facts, *rest[1:-1], *reasons, *noted, ended(**{HOSTILE: 1.0})]
    return run_of(records, name=HOSTILE, dropped=HOSTILE)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Return the addresses of pages, by name."""
    folder = tmp_path_factory.mktemp("pages")
    runs = {
        "everything": everything(),
        "small": small(),
        "hostile": [hostile(), run(measured_block(), name="other")],
        "formulas": run([*measured_block(model=FORMULA), *refused_block("+1\t=2")], name="@SUM(1)"),
    }
    written = {name: write(of, folder / f"{name}.html") for name, of in runs.items()}
    written["bisection"] = template.save(bisected(), folder / "bisection.html")
    return {name: path.as_uri() for name, path in written.items()}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as engine:
        started = engine.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu"],
            timeout=PATIENCE_S * 1000,
        )
        yield started
        started.close()


@pytest.fixture
def visit(browser, pages):
    """Return a function that opens a page; whatever it complains of or asks for fails the test."""
    contexts, wrong = [], []

    def opened(name="everything", fragment="", **options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | options)
        context.set_default_timeout(PATIENCE_S * 1000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on(
            "dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss())
        )
        page.on(
            "request",
            lambda request: (
                wrong.append(request.url)
                if not request.url.startswith(("file:", "blob:"))
                else None
            ),
        )
        page.goto(pages[name] + fragment)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture
def keep(tmp_path):
    """Return where a screenshot of this name is to be kept."""
    folder = Path(os.environ.get("GRADBENCH_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda name: folder / f"{name}.png"


def shown(page):
    """Return the cells that the table shows, in its order: model, mode and step time."""
    rows = page.locator("table.cells tbody tr:visible")
    return [
        (row.locator("td").nth(0).inner_text(), row.get_attribute("data-grad_mode"))
        for row in rows.all()
    ]


def column(page, place):
    """Return the words of a column of the visible rows."""
    cells = page.locator(f"table.cells tbody tr:visible td:nth-child({place})")
    return [text.replace("\xa0", " ").strip() for text in cells.all_inner_texts()]


def tick(page, facet, value):
    """Choose a value of a facet as a reader does."""
    box = page.locator(f'.facet[data-facet="{facet}"]')
    box.locator("summary").click()
    box.get_by_label(value, exact=True).check()
    page.keyboard.press("Escape")


# --- without a script


def test_without_a_script_everything_is_there_and_the_reference_still_switches(visit):
    page = visit(java_script_enabled=False)
    assert page.get_by_text("On cpu (a CPU)").is_visible()
    assert page.locator("table.cells tbody tr").count() == 40
    assert not page.locator(".facets").is_visible()
    assert page.locator(".plate:visible svg").count() == 6  # one forest, and each other figure
    page.locator("#ref-no_grad").check(force=True)
    assert page.locator('.plate[data-ref="no_grad"]').is_visible()
    assert not page.locator('.plate[data-ref="global_on"]').is_visible()
    page.locator("details.drawer summary").first.click()
    assert page.get_by_text("gradbench run --model mlp_tiny").first.is_visible()


# --- filtering


def test_facets_keep_the_rows_drawers_and_marks_that_fit(visit):
    page = visit()
    tick(page, "model", "cnn_small")
    tick(page, "grad_mode", "no_grad")
    assert set(shown(page)) == {("cnn_small", "no_grad")}
    playwright.expect(page.locator("#count")).to_have_text("4 of 40 cells")
    assert page.locator("details.drawer:visible").count() == 4
    assert page.locator(".plate:visible .mark:not(.out)").count() < (
        page.locator(".plate:visible .mark.out").count()
    )
    page.locator("#reset").click()
    playwright.expect(page.locator("#count")).to_have_text("40 cells")
    assert page.locator(".mark.out").count() == 0


def test_free_text_wants_every_word(visit):
    page = visit()
    page.get_by_label("Find a cell").fill("CNN cuda b8")
    playwright.expect(page.locator("#count")).to_have_text("4 of 40 cells")
    page.get_by_label("Find a cell").fill("nothing like it")
    assert shown(page) == []


def test_a_reason_is_found_too(visit):
    page = visit()
    page.get_by_label("Find a cell").fill("does not require grad")
    playwright.expect(page.locator("#count")).to_have_text("8 of 40 cells")


# --- sorting


def test_a_column_sorts_up_then_down_then_as_it_was(visit):
    page = visit()
    before = shown(page)
    head = page.locator("table.cells thead th", has_text="step time")
    button = head.get_by_role("button")
    nanoseconds = lambda: [  # noqa: E731 # read again after each click
        float(n)
        for n in page.locator("table.cells tbody tr td:nth-child(5)").evaluate_all(
            "cells => cells.map(cell => cell.dataset.n).filter(n => n)"
        )
    ]
    button.click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert nanoseconds() == sorted(nanoseconds())
    assert column(page, 5)[-1].startswith("cannot train here")  # reasons come last
    button.click()
    assert head.get_attribute("aria-sort") == "descending"
    assert nanoseconds() == sorted(nanoseconds(), reverse=True)
    assert column(page, 5)[-1].startswith("cannot train here")
    button.click()
    assert head.get_attribute("aria-sort") == "none"
    assert shown(page) == before


def test_sorting_by_ratio_is_by_the_chosen_reference(visit):
    page = visit(fragment="#ref=inference_mode&sort=5d")
    found = [text for text in column(page, 6) if text and not text.startswith("cannot")]
    ratios = [float(re.search(r"[\d.]+", text)[0]) for text in found]
    assert ratios == sorted(ratios, reverse=True)
    assert max(ratios) == 2


def test_the_keyboard_sorts_and_opens_and_closes(visit):
    page = visit()
    page.locator("table.cells thead button").nth(4).focus()
    page.keyboard.press("Enter")
    assert page.locator("table.cells thead th").nth(4).get_attribute("aria-sort") == "ascending"
    facet = page.locator('.facet[data-facet="model"]')
    facet.locator("summary").focus()
    page.keyboard.press("Enter")
    assert facet.get_by_label("cnn_small").is_visible()
    page.keyboard.press("Escape")
    assert not facet.get_by_label("cnn_small").is_visible()


# --- the view


def test_a_view_is_in_the_fragment_and_comes_back_from_it(visit):
    page = visit()
    tick(page, "model", "cnn_small")
    page.get_by_label("Find a cell").fill("cuda")
    page.locator("#ref-no_grad").check(force=True)
    page.locator("table.cells thead button").nth(4).click()
    fragment = page.evaluate("location.hash")
    again = visit(fragment=fragment)
    assert shown(again) == shown(page)
    assert again.locator("#ref-no_grad").is_checked()
    assert again.locator("table.cells thead th").nth(4).get_attribute("aria-sort") == "ascending"
    playwright.expect(again.locator("#count")).to_have_text("8 of 40 cells")


def test_a_fragment_that_means_nothing_is_no_error(visit):
    for fragment in ("#nonsense", "#sort=99z&model=<b>&ref=none", "#%E0%A4%A", "#sort=99a"):
        page = visit("small", fragment)
        assert len(shown(page)) in (0, 8)
        assert page.locator('input[name="ref"]:checked').count() == 1


def test_a_mark_leads_to_its_cell(visit):
    page = visit()
    page.locator(".plate:visible .mark").first.click()
    number = page.evaluate("location.hash")
    assert re.fullmatch(r"#r0-c\d+", number)
    article = page.locator(number)
    article.wait_for(state="visible")
    assert article.locator("svg.sketch").is_visible()


def test_a_row_leads_to_its_rounds_and_commands(visit):
    page = visit()
    page.locator("table.cells tbody tr a").nth(2).click()
    article = page.locator("#r0-c2")
    article.wait_for(state="visible")
    assert "test_inference[cpu-mlp_tiny-b1-no_grad]" in article.inner_text()


# --- theme


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


@pytest.mark.parametrize(("system", "other"), [("light", "dark"), ("dark", "light")])
def test_the_theme_follows_the_system_until_it_is_chosen(visit, system, other):
    page = visit(color_scheme=system)
    followed = background(page)
    mark = page.locator(".plate:visible .mark path").first
    ink = mark.evaluate("path => getComputedStyle(path).stroke")
    page.locator(f"#theme-{other}").check(force=True)
    assert background(page) != followed
    assert mark.evaluate("path => getComputedStyle(path).stroke") != ink
    page.reload()
    assert page.locator(f"#theme-{other}").is_checked()
    page.locator("#theme-auto").check(force=True)
    assert background(page) == followed


def test_no_figure_has_a_white_box_in_the_dark(visit):
    page = visit(color_scheme="dark")
    fills = page.locator(".plate:visible svg path").evaluate_all(
        "paths => paths.map(path => getComputedStyle(path).fill)"
    )
    assert "rgb(255, 255, 255)" not in fills
    texts = page.locator(".plate:visible svg text").evaluate_all(
        "texts => texts.map(text => getComputedStyle(text).fill)"
    )
    assert "rgb(0, 0, 0)" not in texts


# --- downloads


def downloaded(page, name):
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name).click()
    return Path(waiting.value.path()).read_text("utf-8"), waiting.value.suggested_filename


@pytest.mark.parametrize("name", ["everything", "hostile"])
def test_the_data_comes_out_as_it_went_in(visit, name):
    page = visit(name)
    inside = json.loads(page.locator("#data").text_content())
    text, file = (
        downloaded(page.locator("section.run").first.page, "all as JSON")
        if (name == "everything")
        else (None, None)
    )
    if text is not None:
        assert json.loads(text) == inside
        assert file == "gradbench.json"
    with page.expect_download() as waiting:
        page.get_by_role("button", name="figures as CSV").first.click()
    table = list(csv.DictReader(StringIO(Path(waiting.value.path()).read_text("utf-8"))))
    assert len(table) == sum(len(one["figures"]["rows"]) for one in inside)
    assert {row["model"] for row in table} == {cell[0] for one in inside for cell in one["cells"]}
    assert not any(row["value"] in ("NaN", "null") for row in table)


def test_ratios_come_out_with_their_verdicts(visit):
    text, file = downloaded(visit(), "ratios as CSV")
    rows = list(csv.DictReader(StringIO(text)))
    assert file == "gradbench-ratios.csv"
    assert {row["verdict"] for row in rows} <= {"better", "same", "worse", "inconclusive"}
    halves = [row for row in rows if row["ratio"] == "0.5" and row["meter"] == "step_time"]
    assert {(row["grad_mode"], row["reference"]) for row in halves} == {
        ("inference_mode", "global_on")
    }


@pytest.mark.parametrize("button", ["figures as CSV", "ratios as CSV"])
def test_no_text_of_a_download_is_a_formula(visit, button):
    text, _ = downloaded(visit("formulas"), button)
    rows = list(csv.DictReader(StringIO(text)))
    assert f"'{FORMULA}" in {row["model"] for row in rows}
    assert {row["run"] for row in rows} == {"'@SUM(1)"}
    numbers = {row.get("value", row.get("ratio")) for row in rows} - {""}
    assert all(float(number) is not None for number in numbers)
    texts = {value for row in rows for value in row.values()} - numbers
    assert [value for value in texts if value.startswith(("=", "+", "-", "@", "\t"))] == []


# --- hostile names, in earnest


def test_nothing_hostile_runs_and_it_can_still_be_used(visit):
    page = visit("hostile")
    assert page.locator("img").count() == 0
    assert page.locator("table.cells").first.get_by_text(HOSTILE).first.is_visible()
    tick(page, "model", HOSTILE)
    assert {model for model, _ in shown(page)} == {HOSTILE}
    fragment = page.evaluate("location.hash")
    assert {model for model, _ in shown(visit("hostile", fragment))} == {HOSTILE}


# --- for everyone


VIEWS = {
    "light": {"color_scheme": "light"},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_and_a_screenshot_is_kept(visit, keep, view):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    visit(**VIEWS[view]).screenshot(path=keep(f"page-{view}"), full_page=True)
    page = visit("small", **VIEWS[view])
    page.locator("details.drawer summary").first.click()
    page.locator("details.drawer").first.screenshot(path=keep(f"rounds-{view}"))
    page.locator("#r0-missing summary").click()
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.slow
def test_axe_finds_nothing_where_two_runs_are_compared(visit, keep):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    page = visit("hostile")
    page.screenshot(path=keep("compared"), full_page=True)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


@pytest.mark.slow
@pytest.mark.parametrize("view", VIEWS)
def test_axe_finds_nothing_on_the_page_of_a_bisection(visit, keep, view):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe here")
    page = visit("bisection", **VIEWS[view])
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.screenshot(path=keep(f"bisection-{view}"), full_page=True)
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert page.get_by_text(f"{HOSTILE} 3").first.is_visible()


@pytest.mark.parametrize("name", ["everything", "hostile", "bisection"])
def test_a_phone_scrolls_tables_and_figures_not_the_page(visit, name):
    page = visit(name, **VIEWS["phone"])
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_on_paper_there_are_no_controls_and_it_is_light(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert not page.locator("#toolbar").is_visible()
    assert background(page) == "rgb(255, 255, 255)"
    assert len(page.pdf()) > 10_000


def test_a_table_that_goes_on_beyond_its_edge_is_shaded_there(visit):
    """The shade stays where it is, and what covers it where nothing lies beyond moves with it."""
    page = visit("everything", viewport={"width": 390, "height": 800})
    table = page.locator(".scroll.tall").first
    assert table.evaluate("box => box.scrollWidth > box.clientWidth")
    style = table.evaluate('box => getComputedStyle(box)["background-attachment"]')
    assert style == "local, local, scroll, scroll"
