"""The page: it says what the run says, stands alone, and bears whatever names a run holds."""

import re
import subprocess
import sys
import warnings
from collections import Counter
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest
from builders import (
    TORCH_SAYS,
    block,
    cell,
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

from gradbench.errors import StoreError
from gradbench.matrix import GRAD_MODES
from gradbench.report import FIGURES, render, write
from gradbench.report.figures import BRIGHT, COLOURS, GRID, INK, styled
from gradbench.report.page import answer
from gradbench.store import Store

ON, OFF, NO_GRAD, INFERENCE = block()
HOSTILE = "<script>alert(1)</script>\"'"
LONG = "shop.networks." + "very_deep_" * 18 + "net:build"

CUT = run_of(
    [
        started([*block(), *block(batch_size=64)], meters=("step_time", "peak_transient")),
        environment(),
        *measured_block(),
        timed(cell(batch_size=64), [1, 2]),
    ],
    sealed=False,
    dropped="20260102T030405Z-abcd.jsonl.part: dropped 13 bytes from line 9 on: cut or damaged",
)
RUNS = {
    "normal": run([*measured_block(), *measured_block(batch_size=64), *refused_block()]),
    "all-skipped": run(refused_block()),
    "one-cell": run([timed(ON, [100] * 12), counted(ON, 64)]),
    "one-mode": run(
        [o for size in (1, 8, 64) for o in measured_block(["no_grad"], batch_size=size)]
    ),
    "cut": CUT,
    "started-only": run_of([started(block())], sealed=False),
    "no-cells": run_of([started([]), environment(), ended()]),
    "zero-bytes": run([counted(member, 0) for member in block()]),
    "unreadable": run(
        skipped(member, meter="peak_rss", cause="unreadable", reason="no VmHWM")
        for member in block()
    ),
    "long-name": run([o for size in (1, 8) for o in measured_block(model=LONG, batch_size=size)]),
    "every-axis": run(
        measured_block(
            device="cuda:1",
            dtype="bfloat16",
            threads=2,
            memory_format="channels_last",
            compile="on",
        )
    ),
    "two-runs": [run(measured_block(), name="a"), run(measured_block(), name="b")],
}


class Page(HTMLParser):
    """A parsed page: elements with their attributes, and the text outside style."""

    VOID = ("meta", "br", "link", "img", "input", "hr")

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.pieces, self.style = [], [], [], ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.pieces.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.pieces).split())

    def every(self, attribute):
        return [attrs[attribute] for _, attrs in self.elements if attribute in attrs]

    def count(self, tag):
        return sum(name == tag for name, _ in self.elements)


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
    assert page.count("html") == page.count("body") == 1


@every_run
def test_no_id_is_given_twice_and_every_reference_finds_one(name):
    page = page_of(name)
    ids = page.parsed.every("id")
    assert [i for i, times in Counter(ids).items() if times > 1] == []
    wanted = re.findall(r"url\(#([^)]+)\)", page.html)
    wanted += [href.removeprefix("#") for href in page.parsed.every("xlink:href")]
    assert set(wanted) <= set(ids)


@every_run
def test_nothing_is_fetched(name):
    page = page_of(name)
    for attribute in ("src", "href", "xlink:href", "srcset", "action", "data"):
        assert all(value.startswith("#") for value in page.parsed.every(attribute))
    assert not re.search(r"@import|url\(\s*[\"']?(?!#)", page.html)
    assert {"script", "link", "iframe", "img"}.isdisjoint(tag for tag, _ in page.parsed.elements)


@every_run
def test_every_colour_by_name_has_a_value(name):
    page = page_of(name)
    used = set(re.findall(r"var\(--([\w-]+)\)", page.html))
    light, _ = themes(page.parsed.style)
    assert used <= light.keys()
    assert INK not in page.html
    assert GRID not in page.html


def themes(style):
    """Return the names and values of light and of dark."""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    return tuple(dict(re.findall(r"--([\w-]+):\s*([^;]+);", part)) for part in (light, dark))


def test_dark_has_a_rule_for_every_rule_of_light():
    light, dark = themes(page_of("normal").parsed.style)
    assert light.keys() == dark.keys()
    assert {light[mode] for mode in GRAD_MODES} == set(COLOURS.values())
    assert {dark[mode] for mode in GRAD_MODES} == set(BRIGHT.values())
    assert light["paper"] != dark["paper"]
    assert ("meta", {"name": "color-scheme", "content": "light dark"}) in page_of(
        "normal"
    ).parsed.elements


def test_a_page_is_the_same_each_time():
    assert render(RUNS["normal"]) == page_of("normal").html


# --- what it says


def test_a_normal_page_has_figures_and_a_line_a_mode_with_ratios_and_reasons():
    page = page_of("normal").parsed
    assert page.count("figure") == page.count("svg") == len(FIGURES)
    assert page.text.count("A/A control [1.000, 1.000]") == 2
    assert "inference[cpu-mlp_tiny-b64]" in page.text
    assert "0.500 [0.500, 0.500]" in page.text
    assert "0.667 [0.667, 0.667]" in page.text  # inference_mode against no_grad
    assert "This run was cut short" not in page.text
    assert "4.0 s: timing 3.0 s, harness 1.0 s; the harness's own share 25%" in page.text
    assert "torch 2.13.0" in page.text
    assert "load_after 0.5" in page.text


def test_a_mode_that_cannot_train_says_so_in_torch_s_words():
    page = page_of("all-skipped").parsed
    assert page.text.count(f"cannot train here: {TORCH_SAYS}") == len(GRAD_MODES)
    assert page.count("figure") == 0
    assert "No block of this run has two measured modes to compare." in page.text


def test_a_mode_partly_measured_shows_both_the_number_and_the_cause():
    page = Page(
        render(
            run(
                [
                    timed(ON, [100] * 12),
                    skipped(ON, meter="peak_transient", cause="out_of_memory", reason="7 GiB"),
                ]
            )
        )
    )
    assert "100 ns" in page.text
    assert "out of memory" in page.text
    assert "7 GiB" in page.every("title")


def test_a_lone_cell_is_its_own_reference():
    page = page_of("one-cell").parsed
    assert "100 ns 1 80 M/s not measured 64 B 1" in re.sub(r" +", " ", page.text)
    assert "No block of this run has two measured modes" in page.text


def test_one_mode_at_several_batch_sizes_has_no_ratios_but_a_line_of_throughput():
    html = page_of("one-mode").html
    assert "figure-throughput" in html
    assert "figure-time_ratios" not in html


def test_a_run_cut_in_the_middle_warns_of_what_is_missing():
    page = page_of("cut").parsed
    assert "This run was cut short: 1 of its blocks miss outcomes" in page.text
    assert "(inference[cpu-mlp_tiny-b64])" in page.text
    assert "dropped 13 bytes from line 9 on" in page.text
    assert "the run did not come to its end" in page.text
    assert "not measured" in page.text


def test_what_the_meter_cannot_read_is_said_once_and_not_as_a_mode_s_fault():
    page = page_of("unreadable").parsed
    assert "peak_rss on cpu: no VmHWM" in page.text
    assert "cannot train here" not in page.text


def test_a_long_name_stands_whole_in_the_table():
    assert f"inference[cpu-{LONG}-b8]" in page_of("long-name").parsed.text


@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_a_long_name_stays_in_the_figure_and_leaves_it_room(draw):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = styled(draw, RUNS["long-name"])
        figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_position().width > 0.25
    for text in (axes.title, *axes.get_yticklabels()):
        drawn = text.get_window_extent()
        assert figure.bbox.x0 <= drawn.x0
        assert drawn.x1 <= figure.bbox.x1


def test_several_runs_share_a_page_in_their_order():
    text = page_of("two-runs").parsed.text
    assert 0 < text.index("run a, started") < text.index("run b, started")


def test_without_a_run_there_is_no_page():
    with pytest.raises(StoreError, match="no run to report"):
        render([])


# --- the answer


def test_the_answer_is_computed_from_inference_blocks():
    memory, times, control = answer(RUNS["normal"])
    assert memory == (
        "On cpu, an inference step under no_grad or inference_mode adds 0.250 times the memory "
        "that it adds under global_on."
    )
    assert times == "It takes 0.50 to 0.75 times as long."
    assert "off by 0.0% at most, and its 95 % interval holds 1 in 2 of 2 blocks" in control


def test_the_answer_says_when_the_control_is_off():
    off = measured_block(step_ns={"global_off": 1650})
    assert "off by 10.0% at most, and its 95 % interval holds 1 in 0 of 1" in answer(run(off))[-1]


def test_the_answer_is_by_device():
    both = run([*measured_block(), *measured_block(device="cuda")])
    assert [s.split(",")[0] for s in answer(both) if s.startswith("On ")] == ["On cpu", "On cuda"]


def test_a_mode_that_adds_no_byte_is_no_error():
    assert answer(run([counted(ON, 64), counted(NO_GRAD, 0)]))


# --- hostile names


HOSTILE_RUNS = {
    "model": run([o for size in (1, 8) for o in measured_block(model=HOSTILE, batch_size=size)]),
    "skipped-model": run(refused_block(model=HOSTILE)),
    "fact": run_of([started([]), environment(git_branch=HOSTILE, **{HOSTILE: 1})]),
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
}


@pytest.mark.parametrize("where", HOSTILE_RUNS)
def test_a_hostile_string_is_shown_and_is_no_markup(where):
    html = render(HOSTILE_RUNS[where])
    page = Page(html)
    assert "<script" not in html.lower()
    assert page.open == []
    assert page.count("script") == 0
    shown = [page.text, *page.every("title"), *page.every("id")]
    assert any(HOSTILE in text for text in shown)


@pytest.mark.parametrize(
    "names",
    [
        ("a&amp;b", "--><b>", "]]>", "caf\xe9:net", "{{ 7 * 7 }}", "100%"),
        ('x id="y',),
        ("net$a$b",),
        (r"$\frac$",),
    ],
)
def test_names_are_drawn_letter_by_letter(names, monkeypatch):
    monkeypatch.setattr("gradbench.words.diagnose", lambda _: [])  # it names blocks too
    modes = ["global_on", "no_grad"]
    page = Page(
        render(
            run(
                outcome
                for name in names
                for size in (1, 8)
                for outcome in measured_block(modes, model=name, batch_size=size)
            )
        )
    )
    assert page.open == []
    places = 2 + 2 + 2 + 1  # a title a block, a label a block in two figures, a panel in the third
    assert {name: page.text.count(name) for name in names} == dict.fromkeys(names, places)


# --- figures


NOTHING = ["all-skipped", "started-only", "no-cells", "unreadable"]


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)
def test_with_nothing_to_draw_there_is_no_figure(draw, name):
    assert draw(RUNS[name]) is None


@pytest.mark.parametrize(
    ("figure", "outcomes"),
    [
        ("time_ratios", [timed(ON, [1])]),
        ("time_ratios", [timed(OFF, [1]), timed(NO_GRAD, [1])]),
        ("time_ratios", [counted(ON, 1), counted(NO_GRAD, 1)]),
        ("peak_memory", measured_block()[::2]),
        ("throughput", measured_block()),
    ],
    ids=["one-mode", "no-reference", "no-times", "no-memory", "one-batch-size"],
)
def test_with_too_little_to_draw_there_is_no_figure(figure, outcomes):
    assert FIGURES[figure](run(outcomes)) is None


def marks(axes):
    """Return the x and y of each mark of a figure of rows."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() not in ("None", "")
    ]


def test_a_mark_stands_at_its_mode_s_ratio_in_its_mode_s_row():
    figure = FIGURES["time_ratios"](run(measured_block()))
    assert marks(figure.axes[0]) == [
        (pytest.approx(0.75), 1),
        (pytest.approx(0.75), 2),
        (pytest.approx(0.5), 3),
    ]


def test_memory_stands_at_its_bytes_and_nothing_at_the_axis_s_left_end():
    figure = FIGURES["peak_memory"](run([counted(ON, 4096), counted(NO_GRAD, 0)]))
    assert marks(figure.axes[0]) == [(4096, 0), (1, 1)]


def test_throughput_is_samples_over_the_step_s_time():
    figure = FIGURES["throughput"](
        run([timed(cell(batch_size=size), [size * 1000] * 6) for size in (1, 10, 100)])
    )
    line = next(line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert list(line.get_xdata()) == [1, 10, 100]
    assert list(line.get_ydata()) == pytest.approx([1e6] * 3)


def test_a_figure_that_leaves_blocks_out_says_how_many(monkeypatch):
    monkeypatch.setattr("gradbench.report.figures.MANY", 2)
    page = Page(render(run(o for size in range(1, 4) for o in measured_block(batch_size=size))))
    assert re.search(r"2 of (the |its )?3 blocks", page.text)


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


RENDER = """
import sys
from pathlib import Path
from gradbench.report import write
from gradbench.store import Store
runs, amiss = Store(sys.argv[1]).load_all()
write(runs, Path(sys.argv[2]))
print(len(runs), len(amiss), "torch" in sys.modules, "pandas" in sys.modules)
"""


def test_a_stored_run_is_rendered_without_torch(tmp_path):
    saved = Store(tmp_path / "results").save(RUNS["normal"].records)
    page = tmp_path / "page.html"
    answered = subprocess.run(
        [sys.executable, "-c", RENDER, tmp_path / "results", page],
        check=True,
        capture_output=True,
        text=True,
    )
    assert answered.stdout.split() == ["1", "0", "False", "True"]
    assert page.read_text("utf-8") == render(saved)
