"""The page: it says what the run says, stands alone, and bears whatever names a run holds."""

import base64
import hashlib
import re
from collections import Counter
from types import SimpleNamespace

import pytest
from builders import (
    TORCH_SAYS,
    block,
    cell,
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
from pages import HOSTILE, LONG, RUNS, Page, with_breakdowns

from gradbench.errors import StoreError
from gradbench.experiment.matrix import GRAD_MODES
from gradbench.records.selfcheck import Check
from gradbench.report import render, write
from gradbench.report.figures import DARK, LIGHT, PAGE
from gradbench.store.jsonl import Store

ON, OFF, NO_GRAD, INFERENCE = block()

PAGES = {}


def page_of(name):
    """Return the parsed page of a run of `RUNS`, and its HTML; drawn once."""
    if name not in PAGES:
        html = render(RUNS[name])
        PAGES[name] = SimpleNamespace(html=html, parsed=Page(html))
    return PAGES[name]


every_run = pytest.mark.parametrize("name", RUNS)


# --- any page


@every_run
def test_every_element_is_closed(name):
    page = page_of(name).parsed
    assert page.open == []
    assert page.count("html") == page.count("body") == page.count("h1") == 1


@every_run
def test_no_id_is_given_twice_and_every_reference_finds_one(name):
    page = page_of(name)
    ids = page.parsed.every("id")
    assert [i for i, times in Counter(ids).items() if times > 1] == []
    wanted = re.findall(r"url\(#([^)]+)\)", page.html) + page.parsed.every("aria-labelledby")
    for attribute in ("href", "xlink:href"):
        links = [link for link in page.parsed.every(attribute) if link.startswith("#")]
        wanted += [link.removeprefix("#") for link in links]
    assert set(wanted) <= set(ids)


@every_run
def test_nothing_is_fetched_and_only_our_script_may_run(name):
    page = page_of(name).parsed
    for attribute in ("src", "xlink:href", "srcset", "action", "data"):
        assert all(value.startswith("#") for value in page.every(attribute))
    links = {(tag, attrs["href"]) for tag, attrs in page.elements if "href" in attrs}
    assert all(tag == "a" and re.match("#|https://", address) for tag, address in links)
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)", page_of(name).html)
    assert {"link", "iframe", "img"}.isdisjoint(tag for tag, _ in page.elements)
    assert not any(re.match("on", attribute) for _, attrs in page.elements for attribute in attrs)
    _, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = (a["content"] for _, a in page.elements if a.get("http-equiv"))
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )


@every_run
def test_no_number_is_none_of_one(name):
    page = page_of(name)
    text = re.sub(r"none in \d+ points", "", page.parsed.text.lower())  # a history's own words
    words = re.findall(r"\b(?:nan|inf|infinity|none|null)\b", text)
    assert words == (["nan"] if name == "odd-fact" else [])  # there it is what was recorded
    assert page.parsed.data
    assert not re.search(r'\s(d|points|x|y)="[^"]*(nan|inf)', page.html)


@every_run
def test_every_colour_by_name_has_a_value(name):
    page = page_of(name)
    used = set(re.findall(r"var\(--([\w-]+)\)", page.html))
    others = re.findall(r"--([\w-]+): var\(--[\w-]+\)", page.parsed.style)  # by another's name
    assert used <= {*colours(page.parsed.style), *others}
    assert not any(colour in page.html for colour in PAGE.names().values())


def colours(style):
    """Return the colours of the page by name: in the light, in the dark."""
    found = re.findall(r"--([\w-]+):\s*light-dark\(([^,]+), ([^)]+)\);", style)
    return {name: (light, dark) for name, light, dark in found}


def test_modes_and_parts_have_the_figures_colours_in_both_themes():
    known = colours(page_of("normal").parsed.style)
    light, dark = LIGHT.names(), DARK.names()
    assert {name: known[name] for name in light} == {n: (light[n], dark[n]) for n in light}
    assert len({light[mode] for mode in GRAD_MODES}) == len(GRAD_MODES)
    assert known["paper"][0] != known["paper"][1]


@pytest.mark.parametrize("name", ["normal", "breakdowns"])
def test_a_page_is_the_same_each_time(name):
    assert render(RUNS[name]) == page_of(name).html


@every_run
def test_every_chart_says_how_to_read_it_in_a_sentence_or_two(name):
    page = page_of(name).parsed
    captions = [
        page.pieces[place + 1]
        for place, piece in enumerate(page.pieces)
        if piece == "How to read this."
    ]
    assert len(captions) >= page.count("figure")
    assert all(len(caption) > 30 for caption in captions)


# --- what it says


def test_a_normal_page_has_figures_and_a_row_a_cell_with_ratios_and_reasons():
    page = page_of("normal").parsed
    assert page.count("figure") == 3  # forest, scaling, trade-off: no peak was read
    assert page.text.count("A/A control [1.000, 1.000]") == 2
    assert "0.500 [0.500, 0.500]" in page.text
    assert "0.667 [0.667, 0.667]" in page.text  # inference_mode against no_grad
    assert "This run was cut short" not in page.text
    assert "4.0 s: timing 3.0 s, harness 1.0 s; gradbench's own overhead 25%" in page.text
    assert "torch 2.13.0" in page.text
    assert "load after 0.5" in page.text


def test_a_mode_that_cannot_train_says_so_in_torch_s_words():
    page = page_of("all-skipped").parsed
    assert page.text.count(f"cannot train here: {TORCH_SAYS}") == len(GRAD_MODES)
    assert page.count("figure") == 0
    assert "No block of this run has two measured modes to compare." in page.text
    assert "0 of 4" in page.text


def test_a_mode_partly_measured_shows_both_the_number_and_the_cause():
    out = skipped(ON, meter="peak_transient", cause="out_of_memory", reason="7 GiB")
    page = Page(render(run([timed(ON, [100] * 12), out])))
    assert "100 ns" in page.text
    assert "out of memory" in page.text
    assert "7 GiB" in page.every("title")


def test_a_lone_cell_is_its_own_reference():
    page = page_of("one-cell").parsed
    assert "100 ns 1 80 M/s 64 B 1" in page.text
    assert "No block of this run has two measured modes" in page.text


def test_a_run_cut_in_the_middle_warns_of_what_is_missing():
    page = page_of("cut").parsed
    assert "This run was cut short: 1 of its blocks miss outcomes" in page.text
    assert "(inference[cpu-mlp_tiny-b64])" in page.text
    assert "dropped 13 bytes from line 9 on" in page.text
    assert "the run did not come to its end" in page.text
    assert "not measured" in page.text


def test_a_part_file_cut_in_a_line_is_a_page_all_the_same(tmp_path):
    saved = Store(tmp_path).save(RUNS["normal"].records)
    whole = Store(tmp_path).find(saved.name)
    part = tmp_path / "20260102T030405Z-part.jsonl.part"
    part.write_bytes(whole.read_bytes()[:-2000])
    from gradbench.store.jsonl import load

    assert "it is cut" in Page(render(load(part))).text


def test_no_rounds_are_reported_as_none():
    assert page_of("no-rounds").parsed.text.count("no rounds") >= len(GRAD_MODES)


def test_what_the_meter_cannot_read_is_reported_once_and_not_as_a_mode_s_fault():
    page = page_of("unreadable").parsed
    assert "peak_rss on cpu: no VmHWM" in page.text
    assert "cannot train here" not in page.text


def test_a_figure_that_a_cell_does_not_have_is_not_named_on_its_page():
    meter = {"cause": "not_applicable", "reason": "compile=off", "meter": "compile_time"}
    page = Page(render(run([o for m in block() for o in (timed(m, [5] * 9), skipped(m, **meter))])))
    assert "compile=off" not in page.text
    assert "not applicable" not in page.text


def test_a_long_name_stands_whole_in_the_table():
    page = page_of("long-name").parsed
    assert page.pieces.count(LONG) >= 2 * len(GRAD_MODES)


def test_modes_on_two_devices_have_an_answer_each():
    text = page_of("cpu-and-cuda").parsed.text
    assert 0 < text.index("On cpu,") < text.index("On cuda,")


def test_a_breakdown_brings_its_parts_the_step_and_the_modules():
    page = page_of("breakdowns").parsed
    for words in ("Memory through one step", "Who saves most", "saved, at the peak", "predicted"):
        assert words in page.text
    assert "saved most for backward 0 1.95 KiB" in page.text


def test_what_a_self_check_found_is_shown_or_asked_for():
    assert "gradbench selfcheck validates the measurement" in page_of("normal").parsed.text
    facts = dict.fromkeys(("cpu", "cores", "torch", "load_before", "load_after", "when"), "some")
    checks = [Check("control", 0.5, "share", "of ten", "half", passed=False)]
    text = Page(render(RUNS["one-cell"], checks={"cpu": (checks, facts)})).text
    assert "control 50% half missed of ten" in text


def test_the_self_checks_shown_are_those_of_the_devices_that_the_run_measured():
    facts = dict.fromkeys(("gpu", "cores", "torch", "load_before", "load_after", "when"), "some")
    checks = [Check("ledger", 0, "bytes", "off", "0 B", passed=True), Check.unreadable("W", "none")]
    found = {"cpu": ([Check("of the CPU", 1, "ns", "")], facts), "cuda": (checks, facts)}
    on_cuda = run([timed(cell(device="cuda"), [100, 101, 99, 100, 100, 100])])
    text = Page(render(on_cuda, checks=found)).text
    assert "ledger 0 B 0 B ok off" in text
    assert "W unreadable none" in text
    assert "of the CPU" not in text
    assert "gradbench selfcheck --device cuda validates" in Page(render(on_cuda)).text


def test_several_runs_share_a_page_in_their_order_and_are_compared():
    text = page_of("two-runs").parsed.text
    assert 0 < text.index("What changed") < text.index("run a ,") < text.index("run b ,")
    assert "b against a" in text
    assert "Their environments agree in every fact." in text


def test_without_a_run_there_is_no_page():
    with pytest.raises(StoreError, match="no run to report"):
        render([])


# --- the data inside


def test_the_figures_inside_are_those_of_the_run():
    (inside,) = page_of("normal").parsed.data
    assert [dict(zip(inside["axes"], row, strict=True)) for row in inside["cells"]] == [
        c.axes() for c in RUNS["normal"].header.cells
    ]
    rows = [
        dict(zip(inside["figures"]["columns"], r, strict=True)) for r in inside["figures"]["rows"]
    ]
    assert len(rows) == len(RUNS["normal"].outcomes)
    assert all((row["value"] is None) == bool(row["reason"]) for row in rows)
    first = rows[0]
    assert (first["meter"], first["unit"], first["rounds"]) == ("step_time", "ns", 12)
    assert first["low"] <= first["value"] <= first["high"]
    ratios = [
        dict(zip(inside["ratios"]["columns"], r, strict=True)) for r in inside["ratios"]["rows"]
    ]
    halves = [r for r in ratios if r["ratio"] == 0.5]
    assert {(r["reference"], r["verdict"]) for r in halves} == {("global_on", "better")}


# --- hostile names


HOSTILE_RUNS = {
    "model": run([o for size in (1, 8) for o in measured_block(model=HOSTILE, batch_size=size)]),
    "skipped-model": run(refused_block(model=HOSTILE)),
    "broken-down-model": with_breakdowns(model=HOSTILE),
    "fact": run_of([started([]), environment(git_branch=HOSTILE, **{HOSTILE: 1})]),
    "machine": run_of([started([]), environment(cpu=HOSTILE)]),
    "device": run(measured_block(device=HOSTILE)),
    "reason": run(refused_block(HOSTILE)),
    "title": run(
        [timed(ON, [1] * 9), skipped(ON, meter="peak_rss", cause="failed", reason=HOSTILE)]
    ),
    "unreadable": run([skipped(ON, meter="peak_rss", cause="unreadable", reason=HOSTILE)]),
    "command": run_of([started([], command=("gradbench", "run", "--model", HOSTILE))]),
    "note": run([timed(ON, [1] * 9, stopped=HOSTILE)]),
    "dropped": run_of([started([])], dropped=HOSTILE),
    "name": run(measured_block(), name=HOSTILE),
    "phase": run_of([started([]), ended(**{HOSTILE: 1.0})]),
    "two-runs": [run(measured_block(), name=HOSTILE), run(measured_block(model=HOSTILE))],
}


@pytest.mark.parametrize("where", HOSTILE_RUNS)
def test_a_hostile_string_is_shown_and_is_no_markup(where):
    page = Page(render(HOSTILE_RUNS[where]))
    assert page.open == []
    assert page.count("script") == len(page.scripts) == 2
    assert page.count("img") == 0
    assert "onerror" not in {a for _, attrs in page.elements for a in attrs}
    assert any(HOSTILE in text for text in (page.text, *page.every("title")))
    assert not re.search("[<>&]", page.scripts[0])
    assert page.data


@pytest.mark.parametrize(
    "names",
    [
        ("a&amp;b", "--><b>", "]]>", "caf\xe9:net", "{{ 7 * 7 }}", "100%"),
        ('x id="y',),
        ("net$a$b",),
        (r"$\frac$",),
    ],
)
def test_names_are_drawn_letter_by_letter(names):
    modes = ["global_on", "no_grad"]
    outcomes = [
        outcome
        for name in names
        for size in (1, 8)
        for outcome in measured_block(modes, model=name, batch_size=size)
    ]
    page = Page(render(run(outcomes)))
    assert page.open == []
    drawn = [p for p in page.pieces if p.strip()]
    for name in names:
        assert sum(name in text for text in drawn if f"{name}-b8" in text) >= 3


# --- files


def test_a_page_is_written_where_it_is_asked_for_in_utf_8(tmp_path):
    path = write(RUNS["one-cell"], tmp_path / "new" / "page.html")
    assert path.read_text("utf-8") == page_of("one-cell").html
    assert '<meta charset="utf-8">' in path.read_text("utf-8")


def test_a_page_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write the page .*page\.html"):
        write(RUNS["one-cell"], tmp_path / "file" / "page.html")


def test_a_command_that_was_no_utf_8_is_written_all_the_same(tmp_path):
    odd = run_of([started([], command=("gradbench", "run", "--config", "caf\udce9.toml"))])
    assert write(odd, tmp_path / "page.html").exists()


def test_a_place_that_no_page_can_have_is_named_before_one_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr("gradbench.report.page.render", None)
    with pytest.raises(StoreError, match=r"cannot write the page .*: Is a directory"):
        write([], tmp_path)
