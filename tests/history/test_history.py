"""Series keyed by commit: what belongs together does, what does not is apart, changes are named."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import block, cell, counted, measured_block, run_at, timed, write_run
from pages import Page
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.errors import GradbenchError, StoreError
from gradbench.experiment.matrix import AXES, Cell
from gradbench.experiment.plan import PROTOCOL, PROTOCOLS
from gradbench.history import figures as points, series as history, series_text
from gradbench.history.chosen import Chosen
from gradbench.history.commit_links import commit_url, linker
from gradbench.report import history as on_page, render
from gradbench.terminal.series_table import table

ON, OFF, NO_GRAD, INFERENCE = block()


def at(number, *, step_ns=1000, over=0.5, noise=0.0, size=64, **facts):
    """Return the run of a commit: one mode that takes ``over`` times the other's time."""
    rng = np.random.default_rng(number)
    first, second = (1 + noise * rng.normal() for _ in range(2))
    outcomes = [
        timed(ON, [int(step_ns * 1000 * first)] * 6),
        timed(NO_GRAD, [int(step_ns * 1000 * over * second)] * 6),
        counted(ON, size),
    ]
    return run_at(number, outcomes, **facts)


def series_of(runs, **chosen):
    series, warnings = history.history(history.of(runs), chosen=Chosen(**chosen))
    assert warnings == []
    return series


def one(runs, figure, *, of=None, **chosen):
    (found,) = [
        s for s in series_of(runs, **chosen) if s.figure == figure and s.cell == (of or s.cell)
    ]
    return found


# --- the key


def test_a_key_gives_its_cell_back():
    every = Cell(
        model="m", workload="training", grad_mode="no_grad", device="cuda:1", batch_size=7,
        dtype="float16", threads=2, memory_format="channels_last", compile="default",
        entry="per_call", malloc="system", l2="cold", optimizer="adamw", precision="tf32",
        autocast="bfloat16", checkpointing="blocks", prompt=64, new_tokens=16, world_size=2,
    )  # fmt: skip
    assert points.cell_of(points.key(every)) == every
    assert set(json.loads(points.key(every))) == set(AXES)


def test_axes_at_their_default_are_not_in_the_key():
    assert json.loads(points.key(Cell(model="m", workload="inference", grad_mode="no_grad"))) == {
        "model": "m",
        "workload": "inference",
        "grad_mode": "no_grad",
    }


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"model":1}', '{"model":"m"}'])
def test_a_key_that_is_none_is_refused(text):
    with pytest.raises(StoreError):
        points.cell_of(text)


def test_figures_of_an_axis_unknown_here_are_left_out_and_reported():
    figures = history.of([at(0), at(1)])
    frame = figures.frame.copy()
    frame.loc[0, "cell"] = frame.loc[0, "cell"].replace("{", '{"moon":"full",')
    series, warnings = history.history(replace(figures, frame=frame))
    assert warnings == ["axes unknown to this gradbench, moon: upgrade"]
    assert series


def without_axis(path, axis):
    """Rewrite a run's file as it was before there was an axis."""
    import hashlib

    rows = [json.loads(line) for line in path.read_bytes().splitlines()][:-1]
    for row in rows:
        for axes in [*row.get("cells", []), *([row["cell"]] if "cell" in row else [])]:
            del axes[axis]
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    seal = {
        "kind": "sealed",
        "records": body.count(b"\n"),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    path.write_bytes(body + json.dumps(seal).encode() + b"\n")


def test_a_series_survives_a_new_axis_with_a_default(tmp_path):
    for number in range(4):
        path = write_run(at(number), tmp_path)
        if number < 2:
            without_axis(path, "optimizer")
    series, _ = history.history(history.read([tmp_path]))
    assert {len(s.values) for s in series} == {4}


def test_a_series_survives_a_renamed_test():
    commands = [("pytest", "--benchmark-only", "tests/test_old.py::a"), ("gradbench", "run")]
    runs = [run_at(n, measured_block(), command=c) for n, c in enumerate(commands)]
    assert {len(s.values) for s in series_of(runs)} == {2}


def test_a_model_with_a_new_name_goes_on_where_that_is_declared():
    runs = [run_at(n, measured_block(model=m)) for n, m in enumerate(["a:make", "b:make"])]
    assert {len(s.values) for s in series_of(runs)} == {1}
    joined = series_of(runs, renamed={"a:make": "b:make"})
    assert {(s.cell.model, len(s.values)) for s in joined} == {("b:make", 2)}


# --- points


def test_a_point_is_a_commit_in_order_of_its_first_run():
    runs = [at(2, step_ns=30), at(0, step_ns=10), at(1, step_ns=20)]
    found = one(runs, "step_time", of=ON)
    assert found.values.tolist() == [10_000, 20_000, 30_000]
    assert found.labels == tuple(f"{n:040x}" for n in range(3))
    assert list(found.started) == sorted(found.started)


def test_runs_of_one_commit_are_one_point_their_median():
    runs = [at(0, step_ns=7), *(at(n, step_ns=n, git_commit="a" * 40) for n in (1, 2, 9))]
    found = one(runs, "step_time", of=ON)
    assert found.values.tolist() == [7000, 2000]
    assert found.labels[1] == "a" * 40


def test_a_commit_measured_again_later_keeps_its_place():
    runs = [at(0, step_ns=10), at(1, step_ns=20), at(2, step_ns=12, git_commit=f"{0:040x}")]
    assert one(runs, "step_time", of=ON).values.tolist() == [11_000, 20_000]


@pytest.mark.parametrize(
    "facts", [{"git_dirty": True}, {"git_commit": "unknown: no git", "git_dirty": "unknown"}]
)
def test_a_run_that_is_of_no_commit_is_a_point_of_its_own(facts):
    runs = [at(n, **({"git_commit": "b" * 40} | facts)) for n in range(3)]
    found = one(runs, "step_time", of=ON)
    assert len(found.values) == 3
    assert "b" * 40 not in found.labels


def test_one_commit_under_two_torches_is_two_points():
    runs = [at(n, git_commit="c" * 40, torch=f"2.{n}", over=0.5 + n / 10) for n in range(2)]
    found = one(runs, "step_time / global_on")
    assert found.values.tolist() == pytest.approx([0.5, 0.6])


# --- what spans machines


@pytest.mark.parametrize("fact", ["host", "cpu", "cores", "torch"])
def test_times_never_mix_machines_and_ratios_and_bytes_do(fact):
    runs = [at(n, **{fact: n % 2}) for n in range(4)]
    series = series_of(runs)
    counts = {
        figure: sorted(len(s.values) for s in series if s.figure == figure and s.cell != NO_GRAD)
        for figure in ("step_time", "peak_transient")
    }
    assert counts == {"step_time": [2, 2], "peak_transient": [4]}
    assert [len(s.values) for s in series if s.figure == "step_time / global_on"] == [4]
    assert len({s.machine for s in series if s.figure == "step_time"}) == 2


@pytest.mark.parametrize(("device", "fact"), [("cuda", "gpu"), ("cuda:1", "cuda:1 gpu")])
def test_times_of_a_gpu_never_mix_with_another_s_and_times_of_the_cpu_do(device, fact):
    runs = [
        run_at(
            n,
            [*measured_block(["no_grad"], device=device), *measured_block(["no_grad"])],
            **{fact: ("A100", "H100")[n % 2]},
        )
        for n in range(4)
    ]
    found = [(s.cell.device, len(s.values)) for s in series_of(runs) if s.figure == "step_time"]
    assert sorted(found) == [("cpu", 4), (device, 2), (device, 2)]


def test_bytes_of_two_builds_of_one_torch_are_one_build_on_the_cpu():
    builds = [f"2.13.0+{('cpu', 'cu130')[n % 2]}" for n in range(8)]
    runs = [at(n, size=(64, 96)[n % 2], torch=torch) for n, torch in enumerate(builds)]
    assert [change.at for change in one(runs, "peak_transient").changes] == list(range(1, 8))


def test_protocols_never_mix_and_an_old_one_is_reported():
    series = series_of([at(n, protocol=PROTOCOL - n % 2) for n in range(4)])
    assert {len(s.values) for s in series} == {2}
    assert {s.where for s in series if s.meter == "peak_transient"} == {
        "",
        f"protocol {PROTOCOL - 1}",
    }
    (words,) = series_text.protocols(series)
    for number, what in PROTOCOLS.items():
        assert f"protocol {number}: {what}" in words
    assert series_text.protocols([one for one in series if one.protocol == str(PROTOCOL)]) == []


def test_the_machine_s_speed_cancels_in_the_ratio():
    runs = [at(n, step_ns=1000 * (1 + n % 3), host=f"h{n % 3}") for n in range(30)]
    assert one(runs, "step_time / global_on").values.tolist() == pytest.approx([0.5] * 30)


def test_the_reference_is_the_first_mode_measured_and_stands_in_the_key():
    runs = [
        run_at(0, measured_block()),
        run_at(1, measured_block(["no_grad", "inference_mode"])),
    ]
    figures = {s.figure for s in series_of(runs) if s.cell == INFERENCE and s.reference}
    assert figures == {"step_time / global_on", "step_time / no_grad"}


def test_bytes_of_machines_that_take_turns_do_not_change():
    runs = [at(n, size=(64, 96)[n % 2], cpu_capability=("AVX2", "AVX512")[n % 2]) for n in range(8)]
    changes = one(runs, "peak_transient").changes
    assert [(c.at, c.before, c.after) for c in changes] == [(1, 64, 96)]
    assert "cpu_capability AVX2 → AVX512" in changes[0].also


def test_a_byte_more_is_a_change_at_once_and_each_build_says_so():
    runs = [
        at(n, size=(64, 96)[n % 2] + (n >= 6), cpu_capability=("AVX2", "AVX512")[n % 2])
        for n in range(10)
    ]
    changes = one(runs, "peak_transient").changes
    assert [(c.at, c.before, c.after) for c in changes[1:]] == [(6, 64, 65), (7, 96, 97)]
    assert {str(c.verdict) for c in changes} == {"worse"}
    assert changes[1].since == f"{4:040x}"


def test_a_figure_that_was_nothing_has_no_ratio_and_is_reported_all_the_same():
    found = one([at(0, size=0), at(1, size=8)], "peak_transient")
    (change,) = found.changes
    assert change.ratio is None
    assert "from nothing (+8 bytes)" in series_text.sentence(found, change)


def test_a_figure_that_doubles_is_reported_as_a_factor():
    found = one([at(0, size=64), at(1, size=160)], "peak_transient")
    assert "worse ×2.5 (+96 bytes)" in series_text.sentence(found, found.changes[0])


# --- changes


@pytest.fixture(scope="module")
def slower():
    """Return sixty commits of 1% noise; from number 40 on a mode takes 10% longer."""
    return [
        at(n, over=0.5 * (1.1 if n >= 40 else 1), noise=0.01, python=("3.11", "3.12")[n >= 40])
        for n in range(60)
    ]


def test_a_step_is_found_with_its_commit_size_and_what_else_changed(slower):
    found = one(slower, "step_time / global_on")
    (change,) = found.changes
    assert (change.at, change.commit, change.since) == (40, f"{40:040x}", f"{39:040x}")
    assert (change.before_points, change.after_points) == (40, 20)
    assert change.ratio == pytest.approx(1.1, abs=0.01)
    assert change.verdict == "worse"
    assert change.also == ("python 3.11 → 3.12",)
    words = series_text.sentence(found, change)
    assert words.startswith("worse +")
    for part in ("at 0000000000, 2026-01-02", "0.5", "→", "40 and 20 points", "python 3.11 → 3.12"):
        assert part in words


def test_a_step_down_is_better():
    runs = [at(n, over=0.5 * (0.8 if n >= 20 else 1), noise=0.01) for n in range(40)]
    (change,) = one(runs, "step_time / global_on").changes
    assert (change.at, str(change.verdict)) == (20, "better")


def test_without_a_step_nothing_changes():
    assert [s.changes for s in series_of([at(n, noise=0.01) for n in range(60)])] == [()] * 4


def test_series_are_chosen_by_model_workload_mode_and_meter(slower):
    assert {s.cell for s in series_of(slower, grad_modes=("no_grad",))} == {NO_GRAD}
    assert {s.meter for s in series_of(slower, meters=("peak_transient",))} == {"peak_transient"}
    assert series_of(slower, models=("other",)) == []
    assert series_of(slower, workloads=("training",)) == []


# --- words


def test_bars_rise_with_the_values_and_one_spike_does_not_press_them_flat():
    runs = [at(n, step_ns=1000 + 10 * n) for n in range(64)]
    found = one(runs, "step_time", of=ON)
    drawn = series_text.bars(found)
    assert len(drawn) == 32
    assert list(drawn) == sorted(drawn)
    spiked = replace(found, values=np.concatenate([found.values[:-1], [1e12]]))
    assert len(set(series_text.bars(spiked))) > 4


@pytest.mark.parametrize("points", [221, 500, 601])
def test_a_long_series_is_thinned_where_its_points_are(points):
    values = np.repeat([1.0, 2.0], [points // 2, points - points // 2])
    drawn = series_text.thinned(values, most=220)
    step = int(np.flatnonzero(drawn > 1)[0])
    assert step / (len(drawn) - 1) == pytest.approx((points // 2) / (points - 1), abs=1 / 200)


def test_a_flat_series_is_a_flat_line():
    assert len(set(series_text.bars(one([at(n) for n in range(9)], "step_time", of=ON)))) == 1


def test_the_table_has_a_row_a_series_and_its_change(slower):
    from rich.console import Console

    console = Console(width=300, record=True, file=io.StringIO())
    console.print(table(series_of(slower)))
    text = console.export_text()
    assert text.count("step_time / global_on") == 1
    assert text.count("worse +") == 2  # in the time, and in its ratio
    assert "on here" in text


# --- links


@pytest.mark.parametrize(
    ("remote", "url"),
    [
        ("https://github.com/o/r.git", "https://github.com/o/r/commit/{commit}"),
        ("https://token:x@github.com/o/r", "https://github.com/o/r/commit/{commit}"),
        ("git@github.com:o/r.git\n", "https://github.com/o/r/commit/{commit}"),
        ("ssh://git@forge.example:2222/o/r.git", "https://forge.example/o/r/commit/{commit}"),
        ("https://gitlab.com/g/s/r.git", "https://gitlab.com/g/s/r/-/commit/{commit}"),
        ("/srv/git/r.git", ""),
        ("../r", ""),
        ("file:///srv/git/r.git", ""),
        ("", ""),
        ('https://github.com/o/r"><script>', ""),
    ],
)
def test_a_remote_s_commits_have_an_address(remote, url):
    assert commit_url(remote) == url


def test_a_link_is_made_of_commits_only():
    link = linker("https://x.org/{commit}")
    assert link("abcdef0123") == "https://x.org/abcdef0123"
    assert link("abcdef0123+") == "https://x.org/abcdef0123"
    assert link("20260101T000000Z-aaaa") == ""
    assert linker("")("abcdef0123") == ""


@pytest.mark.parametrize("wrong", ["https://x.org/", "javascript:{commit}", "{commit}"])
def test_a_template_that_is_no_address_is_refused(wrong):
    with pytest.raises(GradbenchError, match="no commit's address"):
        linker(wrong)


# --- the page


def test_a_page_of_several_runs_has_their_history_and_of_one_has_none(slower):
    html = render(slower[38:42], commit_url="https://x.org/{commit}")
    assert "History" in Page(html).text
    assert "History" not in Page(render(slower[0])).text


def test_the_history_page_is_whole_and_marks_changes_with_links(slower):
    html = on_page.render(
        series_of(slower), link=linker("https://x.org/{commit}"), warnings=["a <b>"]
    )
    page = Page(html)
    assert page.open == []
    assert page.count("svg") == 4
    assert page.count("circle") == 2
    assert set(page.every("href")) == {"#main", f"https://x.org/{40:040x}"}
    assert page.every("src") == []
    assert "a <b>" in page.text
    assert "2 of 4 series changed their level." in page.text


def test_a_hostile_name_is_text_on_the_page():
    hostile = "<script>alert(1)</script>"
    runs = [run_at(n, measured_block(model=hostile), git_commit=f"{hostile}{n}") for n in range(2)]
    page = Page(on_page.render(series_of(runs), link=linker("https://x.org/{commit}")))
    assert page.count("script") == 0
    assert hostile in page.text


def test_what_is_not_drawn_is_counted(slower, monkeypatch):
    monkeypatch.setattr(on_page, "MANY", 1)
    context = on_page.context(series_of(slower), link=linker(""))
    assert (len(context["lines"]), context["left_out"]) == (1, 3)
    assert context["lines"][0].changes


def test_one_point_is_no_history():
    assert on_page.context(series_of([at(0)]), link=linker("")) is None


# --- the command


def cli(*arguments):
    return CliRunner().invoke(app, ["history", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory, slower):
    folder = tmp_path_factory.mktemp("runs")
    for run in slower:
        write_run(run, folder)
    return folder


def test_the_command_shows_changes_and_exits_0(folder):
    answer = cli(folder)
    assert answer.exit_code == 0
    assert "worse +" in answer.output
    assert "2 of 4 series changed their level" in answer.output


def test_json_has_every_point_and_change(folder):
    answer = cli(folder, "--json", "--grad-mode", "no_grad", "--meter", "step_time")
    reply = json.loads(answer.stdout)
    by_reference = {series["reference"]: series for series in reply["series"]}
    ratio = by_reference["global_on"]
    assert len(ratio["points"]) == 60
    assert [change["at"] for change in ratio["changes"]] == [40]
    assert ratio["cell"] == NO_GRAD.axes()
    assert by_reference[""]["machine"]


@pytest.mark.parametrize(("points_back", "status"), [(19, 0), (20, 1), (60, 1)])
def test_it_fails_on_a_regression_among_the_last_points_if_asked(folder, points_back, status):
    ratio = ["--meter", "step_time", "--grad-mode", "no_grad"]
    assert cli(folder, *ratio, "--fail-on-worse", points_back).exit_code == status


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "no folder 'nowhere'"),
        (["--grad-mode", "nograd"], "did you mean 'no_grad'"),
        (["--workload", "inferense"], "did you mean 'inference'"),
        (["--renamed", "a"], "write OLD=NEW"),
        (["--commit-url", "x"], "no commit's address"),
        (["--commit-url", ""], "has an empty value"),
    ],
)
def test_a_wrong_argument_is_one_line_and_status_2(folder, monkeypatch, arguments, says):
    monkeypatch.chdir(folder)
    answer = cli(*([] if arguments == ["nowhere"] else [folder]), *arguments)
    assert answer.exit_code == 2
    assert says in answer.output
    assert "Traceback" not in answer.output


def test_nothing_to_show_is_status_5(tmp_path, folder):
    assert cli(tmp_path).exit_code == 5
    assert cli(folder, "--model", "other").exit_code == 5


def test_the_command_writes_a_page(folder, tmp_path):
    page = tmp_path / "deep" / "page.html"
    answer = cli(folder, "-o", page, "--commit-url", "https://x.org/{commit}")
    assert answer.exit_code == 0
    assert "https://x.org/" in page.read_text("utf-8")


def test_a_file_and_a_pack_are_sources_too(folder, tmp_path):
    pytest.importorskip("pyarrow")
    packed = CliRunner().invoke(app, ["pack", str(folder), "-o", str(tmp_path / "pack")])
    assert packed.exit_code == 0
    assert "added 60 runs, 180 rows; there before: 0 runs" in packed.output
    assert "2 of 4 series" in cli(tmp_path / "pack").output
    (first, *_) = sorted(Path(folder).glob("*.jsonl"))
    assert "4 have one point only" in cli(first).output


def test_runs_of_one_commit_alone_are_said_to_be_one_point(tmp_path):
    for n in range(2):
        write_run(at(n, git_commit="2ba2e2a" + "0" * 33), tmp_path)
    words = "2 runs of one commit (2ba2e2a000): one point; measure at another commit"
    assert words in " ".join(cli(tmp_path).output.split())
    only_one = cli(tmp_path, "--since", "2026-01-01T00:30")
    assert "have one point only" in only_one.output
    write_run(at(2), tmp_path)
    assert "runs of one commit" not in cli(tmp_path).output


def test_one_series_of_one_point_has_one(tmp_path):
    write_run(run_at(0, [counted(cell(), 8)]), tmp_path)
    assert "1 has one point only" in " ".join(cli(tmp_path).output.split())


@pytest.mark.parametrize("facts", [{"git_commit": ""}, {"git_dirty": True}])
def test_runs_that_no_commit_stands_for_are_not_said_to_be_of_one(facts, tmp_path):
    for n, model in enumerate(("mlp_tiny", "mlp_deep")):
        write_run(run_at(n, measured_block(model=model), **facts), tmp_path)
    shown = " ".join(cli(tmp_path).output.split())
    assert "have one point only" in shown
    assert "one commit" not in shown


def test_packing_what_is_not_there_is_one_line(tmp_path):
    answer = CliRunner().invoke(app, ["pack", str(tmp_path / "no"), "-o", str(tmp_path / "pack")])
    assert answer.exit_code == 2
    assert "there is no such folder or file" in answer.output


def test_a_bad_file_is_named_and_the_rest_is_packed(tmp_path):
    pytest.importorskip("pyarrow")
    paths = [write_run(at(n), tmp_path / "runs") for n in range(3)]
    paths[1].write_bytes(paths[1].read_bytes()[:-20])
    answer = CliRunner().invoke(app, ["pack", str(tmp_path / "runs"), "-o", str(tmp_path / "p")])
    assert answer.exit_code == 0
    assert paths[1].name in answer.output.replace("\n", "")
    assert "added 2 runs, 6 rows;" in answer.output


def test_a_cell_of_every_axis_keeps_its_series_apart():
    runs = [run_at(n, [*measured_block(), *measured_block(threads=2)]) for n in range(2)]
    assert len(series_of(runs)) == 2 * len(series_of([run_at(0, measured_block())]))
    assert cell(threads=2) in {s.cell for s in series_of(runs)}


def test_neither_command_loads_torch(folder, tmp_path):
    pytest.importorskip("pyarrow")
    code = """
import sys
from gradbench.cli import app
runs, pack, page = sys.argv[1:]
for arguments in (["pack", runs, "-o", pack], ["history", runs, "-o", page], ["history", pack]):
    app(arguments, standalone_mode=False)
print("torch" in sys.modules)
"""
    places = [folder, tmp_path / "pack", tmp_path / "page.html"]
    answer = subprocess.run(
        [sys.executable, "-c", code, *map(str, places)], capture_output=True, text=True, check=True
    )
    assert answer.stdout.splitlines()[-1] == "False"
