"""The commands for CI: what they print, write and refuse, and what they load."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from builders import cell, environment, measured_block, refused_block, run_of, started
from scripted_bench import scripted_bench
from typer.testing import CliRunner

from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.exports.formats import FORMATS
from gradbench.exports.source_locations import SourceLocation, locator
from gradbench.records.measurements import Started
from gradbench.store.jsonl import Store, load

COMMIT = "0123456789" * 4


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's empty directory, outside of any CI."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    return tmp_path


@pytest.fixture
def gradbench(here):
    """The command line, called in this process from that directory."""
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(app, list(arguments), prog_name="gradbench")


def complaint(result) -> str:
    """Return the one line that a mistake of the user's costs."""
    assert result.exit_code == ExitStatus.USAGE, result.output or repr(result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def save(folder, *, shard="", **axes):
    """Save a run of one block into a folder and return it."""
    outcomes = [*measured_block(**axes), *refused_block(**axes)]
    opening = started(
        dict.fromkeys(o.cell for o in outcomes), meters=("step_time", "peak_transient"), shard=shard
    )
    return Store(folder).save([opening, environment(git_commit=COMMIT), *outcomes])


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_exported_to_a_file_or_a_folder(name, gradbench, here):
    save("results")
    result = gradbench("export", name, "latest", "-o", "out")
    assert result.exit_code == 0, result.output
    assert (here / "out").is_dir() == FORMATS[name].folder
    assert result.stdout.startswith("out")


@pytest.mark.parametrize("name", [name for name in FORMATS if not FORMATS[name].folder])
def test_without_o_one_file_is_printed(name, gradbench, here):
    run = save("results")
    result = gradbench("export", name)
    assert result.exit_code == 0
    expected = FORMATS[name].make([run]).files
    if not FORMATS[name].located:
        assert result.stdout == "".join(expected.values())


def test_help_names_every_format(gradbench):
    output = " ".join(gradbench("export", "--help").stdout.split())
    assert [name for name in FORMATS if name not in output] == []


def test_several_files_need_a_folder(gradbench, here):
    save("results")
    assert "say where with -o FOLDER" in complaint(gradbench("export", "asv"))


def test_what_a_format_has_no_place_for_is_counted_on_stderr(gradbench, here):
    save("results")
    result = gradbench("export", "bencher")
    json.loads(result.stdout)
    assert "no place in bencher for 8 outcomes, such as training[" in result.stderr
    assert gradbench("export", "markdown").stderr == ""


def test_a_typo_in_the_format_costs_a_line(gradbench, here):
    assert "did you mean 'junit'?" in complaint(gradbench("export", "junt"))
    assert "did you mean 'html'?" in complaint(gradbench("report", "--format", "htm"))


def test_verdicts_alone_are_annotated_where_the_benchmarks_are(gradbench, here):
    (here / "benchmarks").mkdir()
    suite = '@pytest.mark.gradbench("inference")\ndef test_it(): ...\n'
    (here / "benchmarks" / "test_it.py").write_text(suite, "utf-8")
    row = {
        "cell": cell("no_grad").axes(),
        "meter": "peak_transient",
        "verdict": "worse",
        "change": None,
        "baseline": 0.0,
        "candidate": 1.0,
        "unit": "bytes",
        "reason": "one byte more",
    }
    (here / "gate.json").write_text(json.dumps({"verdicts": [row]}), "utf-8")
    result = gradbench("export", "annotations", "--verdicts", "gate.json")
    assert result.stdout == (
        "::error file=benchmarks/test_it.py,line=2,"
        "title=inference[cpu-mlp_tiny-b8-no_grad] peak_transient worse::"
        "0 B → 1 B: one byte more\n"
    )
    summary = gradbench("export", "markdown", "--verdicts", "gate.json")
    assert summary.stdout.startswith("## gradbench: 1 worse\n")


def test_annotations_count_files_from_github_s_workspace(gradbench, here, monkeypatch):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(here.parent))
    run = save("results")
    broken = run_of([replace(run.header, places={str(cell()): "t.py:3"}), *run.records[1:]])
    found = locator([broken], here, repository=here.parent)(cell())
    assert found == SourceLocation(f"{here.name}/t.py", 3)


def test_report_prints_markdown_or_writes_it(gradbench, here):
    run = save("results")
    printed = gradbench("report", "--format", "md").stdout
    assert printed.startswith(f"## Run {run.name}")
    assert gradbench("report", "--format", "md", "-o", "s/r.md").stdout == "s/r.md\n"
    assert (here / "s" / "r.md").read_text("utf-8") == printed


def test_merge_saves_the_joined_run_and_says_where(gradbench, here):
    parts = [save(f"part{n}", shard=f"{n}/2", batch_size=n) for n in (1, 2)]
    result = gradbench("merge", *(f"part{n}/{run.name}.jsonl" for n, run in enumerate(parts, 1)))
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    joined = load(here / result.stdout.split()[1])
    assert {c.batch_size for c in joined.header.cells} == {1, 2}
    assert sorted(map(str, joined.outcomes)) == sorted(
        str(o) for run in parts for o in run.outcomes
    )


def test_merge_refuses_and_remarks_in_a_line(gradbench, here):
    first = save("results", shard="1/3", batch_size=1)
    result = gradbench("merge", first.name)
    assert result.exit_code == 0
    assert "shard 2/3, 3/3 is not here" in result.stderr
    again = save("results", shard="2/3", batch_size=1)
    assert "is in both" in complaint(gradbench("merge", first.name, again.name))
    other = Store("results").save(
        [
            replace(r, protocol=9, shard="2/3") if isinstance(r, Started) else r
            for r in first.records
        ]
    )
    assert "protocol" in complaint(gradbench("merge", first.name, other.name))


def test_a_run_given_twice_is_taken_once(gradbench, here):
    run = save("results")
    assert gradbench("export", "bencher", run.name, "latest").exit_code == 0


@pytest.mark.parametrize("shard", ["0/2", "3/2", "x"])
def test_a_wrong_shard_costs_a_line_before_anything_is_measured(shard, gradbench, here):
    result = gradbench("run", "--preset", "tiny", "--shard", shard)
    assert "is not like 2/3" in complaint(result)
    assert "take 6 at most" in complaint(gradbench("run", "--preset", "tiny", "--shard", "1/7"))
    assert not (here / "results").exists()


def test_resuming_keeps_the_shard_it_began_with(gradbench, here):
    assert "leave out --shard" in complaint(gradbench("run", "--resume", "x", "--shard", "1/2"))


def test_run_writes_down_its_shard_and_where_a_config_names_each_cell(gradbench, here, monkeypatch):
    bench = scripted_bench(monkeypatch)
    config = '[[matrix]]\nmodels = ["mlp_tiny"]\nbatch_sizes = [1, 2, 3]\n'
    (here / "bench.toml").write_text(config, "utf-8")
    options = ("--config", "bench.toml", "--shard", "2/2", "--meter", "step_time", "--no-semantics")
    assert gradbench("run", *options).exit_code == 0
    assert {c.batch_size for cells in bench.asked for c in cells} == {2}
    run = load(Store("results").find("latest"))
    assert run.header.shard == "2/2"
    assert set(run.header.places.values()) == {"bench.toml:2"}


def test_exporting_and_merging_never_load_torch(here):
    run = save("results")
    commands = [
        ["export", "markdown"],
        ["export", "asv", "-o", "asv"],
        ["export", "otava", "-o", "otava"],
        ["merge", run.name],
        ["report", "--format", "md"],
    ]
    script = (
        "import sys\nfrom gradbench.cli import app\n"
        f"for command in {commands!r}:\n    app(command, standalone_mode=False)\n"
        "print('loaded', sorted({'torch', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=here, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"
