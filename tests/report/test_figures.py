"""The figures: each mark stands where its number says, and odd runs have a figure or none."""

import warnings

import pytest
from builders import (
    block,
    broken_down,
    cell,
    counted,
    environment,
    measured_block,
    run,
    run_of,
    sequence,
    skipped,
    started,
    timed,
)
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from pages import LONG, RUNS, with_breakdowns

from gradbench.analysis.run_view import View
from gradbench.errors import StoreError
from gradbench.report import FIGURES, save_figures
from gradbench.report.figures import DARK, LIGHT, PAGE, scaling, tokens
from gradbench.report.figures.memory import parts_of

ON, OFF, NO_GRAD, INFERENCE = block()
every_figure = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def drawable(draw):
    """Return a small run that a figure has something to draw for."""
    if draw is scaling:
        return run([o for size in (1, 8) for o in measured_block(batch_size=size)])
    return sequences() if draw is tokens else with_breakdowns()


def sequences(**axes):
    members = block(workload="generate", new_tokens=4, **axes)
    whole = run([counted(one, 1) for one in members])
    return run_of(
        [*whole.records, *(sequence(one, saved=90 * (one == members[0])) for one in members)]
    )


@pytest.mark.parametrize(
    "name", ["all-skipped", "started-only", "no-cells", "no-rounds", "unreadable"]
)
@every_figure
def test_with_nothing_to_draw_there_is_no_figure(draw, name):
    assert draw(RUNS[name]) is None


@pytest.mark.parametrize(
    ("figure", "outcomes"),
    [
        ("forest", [timed(ON, [1])]),
        ("forest", [timed(OFF, [1]), timed(NO_GRAD, [1])]),
        ("peak_parts", measured_block()),
        ("scaling", measured_block()),
        (
            "scaling",
            [
                skipped(one, cause="out_of_memory", reason="no memory")
                for size in (1, 8)
                for one in block(batch_size=size)
            ],
        ),
        ("tradeoff", [timed(ON, [1]), timed(NO_GRAD, [1])]),
        ("timeline", measured_block()),
        ("modules", measured_block()),
        ("tokens", measured_block(workload="generate")),
    ],
    ids=[
        *(
            "one-mode",
            "no-reference",
            "no-peak",
            "one-batch-size",
            "out-of-memory",
            "no-memory",
            "none",
            "none-too",
        ),
        "no-sequence",
    ],
)
def test_with_too_little_to_draw_there_is_no_figure(figure, outcomes):
    assert FIGURES[figure](run(outcomes)) is None


@pytest.mark.parametrize("theme", [LIGHT, DARK, PAGE], ids=["light", "dark", "page"])
@every_figure
def test_a_figure_is_drawn_without_a_warning_in_any_theme(draw, theme):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw(drawable(draw), theme=theme)
        assert isinstance(figure, Figure)
        figure.draw_without_rendering()


@every_figure
def test_nothing_is_written_over_a_legend_in_a_figure_of_one_block(draw):
    """The smallest figure there is, where a label has the least room."""
    figure = draw(drawable(draw))
    figure.draw_without_rendering()
    apart = {text for legend in figure.legends for text in legend.get_texts()}
    for axes in figure.axes:
        apart |= {*axes.get_xticklabels(), *axes.get_yticklabels()}
    labels = [text for text in figure.findobj(Text) if text.get_text() and text not in apart]
    assert labels
    over = [
        label.get_text()
        for label in labels
        for legend in figure.legends
        if legend.get_window_extent().overlaps(label.get_window_extent())
    ]
    assert over == []


@pytest.mark.parametrize("draw", [FIGURES["forest"], FIGURES["scaling"], FIGURES["tradeoff"]])
def test_a_long_name_stays_in_the_figure_and_leaves_it_room(draw):
    figure = draw(RUNS["long-name"])
    figure.draw_without_rendering()
    axes = figure.axes[0]
    assert axes.get_position().width > 0.1
    for text in (axes.title, *axes.get_yticklabels()):
        assert len(text.get_text()) < len(LONG)
        drawn = text.get_window_extent()
        assert figure.bbox.x0 <= drawn.x0
        assert drawn.x1 <= figure.bbox.x1


def marks(axes):
    """Return the x and y of every mark that is scattered on some axes, top first."""
    points = [
        tuple(map(float, place)) for points in axes.collections for place in points.get_offsets()
    ]
    return sorted((p for p in points if p != (0, 0)), key=lambda p: p[1])


def test_a_mark_stands_at_its_mode_s_ratio_in_its_mode_s_row():
    times, memory = FIGURES["forest"](run(measured_block())).axes
    assert [x for x, _ in marks(times)] == pytest.approx([0.75, 0.75, 0.5])
    assert [x for x, _ in marks(memory)] == pytest.approx([0.25, 0.25, 0.25])
    rows = [y for _, y in marks(times)]
    assert [row - rows[0] for row in rows] == pytest.approx([0, 1, 2])


@pytest.mark.parametrize(
    ("meters", "words"),
    [
        (("peak_transient",), "not asked for"),
        (("step_time", "peak_transient"), "not measured"),
    ],
)
def test_where_no_time_was_measured_the_forest_says_why_instead_of_numbers(meters, words):
    outcomes = [o for o in measured_block() if o.meter == "peak_transient"]
    first = started([o.cell for o in outcomes], meters=meters)
    times, memory = FIGURES["forest"](run_of([first, environment(), *outcomes])).axes
    assert [text.get_text() for text in times.texts if text.get_text()][-1] == words
    assert list(times.get_xticks()) == []
    assert len(marks(memory)) == 3


def test_against_another_reference_the_ratios_are_to_it():
    times, _ = FIGURES["forest"](run(measured_block()), reference="inference_mode").axes
    assert [x for x, _ in marks(times)] == pytest.approx([2, 1.5, 1.5])


def test_a_mark_is_hollow_where_the_verdict_is_neither_better_nor_worse():
    outcomes = [timed(mode, [1000] * 12) for mode in (ON, OFF, NO_GRAD)]
    times, _ = FIGURES["forest"](run([*outcomes, timed(INFERENCE, [500] * 12)])).axes
    scattered = [c for c in times.collections if isinstance(c, PathCollection)]
    filled = {tuple(c.get_facecolors()[0]) == tuple(c.get_edgecolors()[0]) for c in scattered[:2]}
    assert filled == {False}
    assert tuple(scattered[2].get_facecolors()[0]) == tuple(scattered[2].get_edgecolors()[0])


def test_a_mode_that_adds_no_byte_is_reported_to_add_nothing():
    figure = FIGURES["forest"](run([counted(ON, 4096), counted(NO_GRAD, 0)]))
    assert [text.get_text() for text in figure.axes[1].texts] == ["adds nothing"]


def test_the_parts_of_a_bar_are_the_breakdown_s():
    view = View(with_breakdowns())
    assert {part: size for part, size in parts_of(view, ON).items() if size} == {
        "parameters": 3000,
        "saved": 2000,
    }


def test_without_a_breakdown_a_bar_has_what_was_there_and_what_the_step_added():
    outcomes = [counted(ON, 5000, meter="peak_allocated"), counted(ON, 1800)]
    assert dict(parts_of(View(run(outcomes)), ON)) == {"before": 3200, "added": 1800}


def test_a_bar_s_length_is_its_share_of_the_block_s_largest_peak_or_reserve():
    (axes,) = FIGURES["peak_parts"](with_breakdowns()).axes
    ends = [
        p.vertices[:, 0].max()
        for c in axes.collections
        for p in c.get_paths()
        if len(p.vertices) > 3
    ]
    assert max(ends) == pytest.approx(1)  # the reserve, 9,000
    assert sorted({round(float(end), 3) for end in ends}) == pytest.approx(
        [3000 / 9000, 5000 / 9000, 1], abs=1e-3
    )


def test_throughput_is_samples_over_the_step_s_time():
    figure = scaling(run([timed(cell(batch_size=n), [n * 1000] * 6) for n in (1, 10, 100)]))
    line = next(line for line in figure.axes[0].lines if len(line.get_xdata()))
    assert list(line.get_xdata()) == [1, 10, 100]
    assert list(line.get_ydata()) == pytest.approx([1e6] * 3)


def test_what_was_not_read_of_a_family_takes_no_room():
    sizes = (1, 10)
    times = [timed(cell(batch_size=n), [n * 1000] * 6) for n in sizes]
    peaks = [counted(cell(batch_size=n), 100 * n, meter="peak_allocated") for n in sizes]
    (rates,) = scaling(run(times)).axes
    assert rates.get_xlabel() == "batch size"
    both = scaling(run([*times, *peaks]))
    assert [axes.get_ylabel() for axes in both.axes] == ["samples/s", "peak memory"]
    assert both.get_figheight() > rates.figure.get_figheight() > both.get_figheight() / 2


def test_a_panel_beside_a_higher_one_is_as_high():
    times = [timed(cell(batch_size=n, dtype="float16"), [n * 1000] * 6) for n in (1, 10)]
    peaks = [counted(cell(batch_size=n), 100 * n, meter="peak_allocated") for n in (1, 10)]
    beside = [timed(cell(batch_size=n), [n * 1000] * 6) for n in (1, 10)]
    ends = {}
    for axes in scaling(run([*times, *peaks, *beside])).axes:
        place = axes.get_position()
        low, high = ends.get(place.x0, (1.0, 0.0))
        ends[place.x0] = min(low, place.y0), max(high, place.y1)
    assert len(ends) == 2
    (first, second) = ends.values()
    assert first == pytest.approx(second)


def test_models_named_by_their_sizes_are_followed_over_depth_too():
    deep = [counted(cell(model=f"mlp_d{d}_w64"), 1000 * d, meter="peak_allocated") for d in (2, 8)]
    figure = FIGURES["scaling"](run(deep))
    (peaks,) = [axes for axes in figure.axes if axes.get_xlabel()]
    assert peaks.get_xlabel() == "depth"
    (line,) = [line for line in peaks.lines if len(line.get_xdata()) == 2]
    assert [list(line.get_xdata()), list(line.get_ydata())] == [[2, 8], [2000, 8000]]


def test_a_batch_that_ran_out_of_memory_is_a_cross_at_its_size():
    lost = skipped(cell(batch_size=100), cause="out_of_memory", reason="7 GiB")
    figure = scaling(run([*(timed(cell(batch_size=n), [n * 1000] * 6) for n in (1, 10)), lost]))
    crosses = [
        x for line in figure.axes[0].lines if line.get_marker() == "x" for x in line.get_xdata()
    ]
    assert crosses == [100]


@pytest.mark.parametrize("figure", ["forest", "peak_parts", "tradeoff"])
def test_a_figure_that_leaves_blocks_out_says_how_many(figure):
    outcomes = [o for size in range(1, 4) for o in measured_block(batch_size=size)]
    outcomes += [counted(o.cell, 8192, meter="peak_allocated") for o in outcomes[::2]]
    drawn = FIGURES[figure](run(outcomes), most=2)
    said = [text.get_text() for text in drawn.texts] + [
        axes.get_title("left") for axes in drawn.axes
    ]
    assert any("2 of the 3 blocks" in text for text in said)


def test_a_checkpointed_cell_is_a_filled_mark_in_the_panel_of_its_plain_block():
    """Over the plain block's reference: half its memory, in three times the reference's time."""
    again = cell(checkpointing="blocks")
    outcomes = [*measured_block(rounds=4), timed(again, [61500] * 3, iterations=10)]
    drawn = FIGURES["tradeoff"](run([*outcomes, counted(again, 2048)]))
    (axes,) = (axes for axes in drawn.axes if axes.axison)
    filled = [mark for mark in axes.collections if len(mark.get_facecolors())]
    (place,) = (tuple(map(float, mark.get_offsets()[0])) for mark in filled)
    assert place == pytest.approx((6150 / 2030, 0.5), rel=0.01)
    assert len(axes.collections) == 4
    assert [text.get_text() for text in drawn.legends[0].get_texts()][-1] == "filled: checkpointed"


def test_the_step_is_drawn_for_the_blocks_that_save_most():
    cells = [cell(model=name) for name in ("a", "b", "c")]
    records = [broken_down(c, saved=size) for c, size in zip(cells, (10, 30, 20), strict=True)]
    whole = run([counted(c, 1) for c in cells])
    drawn = FIGURES["timeline"](run_of([*whole.records, *records]), most=2)
    titles = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert titles == ["inference[cpu-b-b8]", "inference[cpu-c-b8]"]


def test_every_figure_is_saved_as_png_and_svg(tmp_path):
    paths = list(save_figures(with_breakdowns(), tmp_path / "new"))
    assert {path.suffix for path in paths} == {".png", ".svg"}
    assert {path.stem for path in paths} == FIGURES.keys() - {"scaling", "tokens"}
    svg = (tmp_path / "new" / "forest.svg").read_text("utf-8")
    assert "inference_mode" in svg
    assert LIGHT.modes["inference_mode"].lower() in svg
    assert "cell:" not in svg


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match="cannot write the figure"):
        list(save_figures(with_breakdowns(), tmp_path / "file"))


def test_memory_over_tokens_is_a_line_a_mode_of_what_a_sequence_adds_until_it_is_over():
    (axes,) = FIGURES["tokens"](sequences()).axes
    heights = {line.get_color(): list(line.get_ydata()) for line in axes.lines}
    assert heights[LIGHT.modes["no_grad"]] == [0, 15, 25, 35, 0]
    assert heights[LIGHT.modes["global_on"]] == [0, 105, 205, 305, 0]
    assert [list(line.get_xdata()) for line in axes.lines] == [list(range(5))] * 4


def test_a_sequence_of_many_tokens_has_one_phase_of_them_in_the_timeline():
    (first, *_) = FIGURES["timeline"](sequences()).axes
    first.figure.draw_without_rendering()
    words = [label.get_text() for label in first.get_xticklabels()]
    assert words[-1] == "tokens"
    assert len(words) == 3


@pytest.mark.parametrize("name", ["forest", "scaling", "tradeoff"])
def test_a_legend_names_the_modes_that_are_drawn_and_no_others(name):
    made = [o for b in (1, 8) for o in measured_block(["global_on", "no_grad"], batch_size=b)]
    (legend,) = FIGURES[name](run(made)).legends
    drawn = ["no_grad"] if name == "forest" else ["global_on", "no_grad"]
    assert [text.get_text() for text in legend.get_texts()] == drawn
