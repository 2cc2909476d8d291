"""The command line: its words, its exit statuses, and what it leaves on disk."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from contextlib import chdir, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

import psutil
import pytest
import typer
from builders import block, cell, ended, measured_block, started
from patience import PATIENCE_S, is_gone, wait_until
from typer.testing import CliRunner

from gradbench import __version__, devices
from gradbench.cli import app
from gradbench.exit_status import ExitStatus
from gradbench.experiment.matrix import AXES
from gradbench.experiment.model_source import ModelSource
from gradbench.experiment.plan import PROTOCOL
from gradbench.records.measurements import Measurement
from gradbench.records.run import Run
from gradbench.store.jsonl import PART, SEALED, Store, load

TESTS = Path(__file__).parents[1]
TINY = ("--preset", "tiny", "--model", "mlp_tiny")
ONE_BLOCK = (*TINY, "--workload", "inference")
WHERE = ("--results", "T", "--reports", "T2")

without_cuda = pytest.mark.skipif("cuda" in devices.available(), reason="this machine has CUDA")


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gradbench", *map(str, arguments)]


def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def complaint(result) -> str:
    """Return the one line that a mistake of the user's costs."""
    assert result.exit_code == ExitStatus.USAGE, result.output or repr(result.exception)
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("gradbench: ")
    return line


def complaint_after_a_traceback(result) -> tuple[str, str]:
    """Return the user's own traceback, if there is one, and the line after it."""
    *lines, line = result.stderr.splitlines()
    assert line.startswith("gradbench: ")
    return "\n".join(lines), line


def part_of(folder: Path) -> Path:
    (path,) = folder.glob(f"*{PART}")
    return path


def outcome_lines(folder: Path) -> int:
    """Count the outcomes written so far, whole or not."""
    written = "".join(path.read_text("utf-8") for path in folder.glob(f"*{PART}"))
    return written.count('"kind":"measurement"') + written.count('"kind":"skipped"')


COMMANDS = typer.main.get_command(app).commands


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A user's empty directory, where imports they cause are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def gradbench(here):
    """The command line, called in this process from that directory."""
    runner = CliRunner(env={"COLUMNS": "200"})
    return lambda *arguments: runner.invoke(
        app, [str(argument) for argument in arguments], prog_name="gradbench"
    )


@pytest.fixture
def nothing_is_measured(monkeypatch):
    def measure(*_args, **_options):
        pytest.fail("measuring began")

    monkeypatch.setattr("gradbench.recording.Recording.__enter__", measure)
    monkeypatch.setattr("gradbench.runner.run", measure)


# What is asked for


def test_help_and_lists_load_neither_torch_nor_pandas(tmp_path):
    script = (
        "import sys\nfrom gradbench.cli import app\n"
        "for asked in ('--help', 'run --help', 'runs'):\n"
        "    app(asked.split(), standalone_mode=False)\n"
        "print('loaded', sorted({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_help_has_an_option_for_every_axis(gradbench):
    output = gradbench("run", "--help").stdout
    assert [axis for axis in AXES if f"--{axis.replace('_', '-')} " not in output] == []


def test_list_shows_every_cell_by_its_id_and_counts_them(gradbench):
    *cells, count = gradbench("list", *ONE_BLOCK).stdout.splitlines()
    assert cells == [str(member) for member in block()]
    assert count == "4 cells in 1 block, 0 skipped here"


@pytest.mark.parametrize(
    ("options", "setting", "why"),
    [
        pytest.param(["--device", "cuda"], "cuda-mlp_tiny-b8", "CUDA", marks=without_cuda),
        (
            ["--memory-format", "channels_last"],
            "cpu-mlp_tiny-b8-channels_last",
            "channels_last needs images (B, C, H, W): mlp_tiny takes 2-dimensional input",
        ),
        (["--threads", "4096"], "cpu-mlp_tiny-b8-t4096", "4,096 threads, but this process may use"),
    ],
)
def test_list_says_why_a_cell_would_be_skipped_here(options, setting, why, gradbench):
    *cells, count = gradbench("list", *ONE_BLOCK, *options).stdout.splitlines()
    assert count == "4 cells in 1 block, 4 skipped here"
    for line, member in zip(cells, block(), strict=True):
        name, reason = line.split("  skipped here: ")
        assert name == f"inference[{setting}-{member.grad_mode}]"
        assert why in reason


def test_options_narrow_to_values_the_preset_has_and_widen_by_values_it_lacks(gradbench):
    chosen = ("--grad-mode", "no_grad,global_on", "--batch-size", "8", "--batch-size", "2")
    *cells, _ = gradbench("list", *ONE_BLOCK, *chosen).stdout.splitlines()
    assert set(cells) == {
        str(cell(mode, batch_size=size)) for mode in ("no_grad", "global_on") for size in (8, 2)
    }


# Mistakes


@pytest.mark.parametrize(
    ("option", "typo", "meant"),
    [
        ("--preset", "tny", "tiny"),
        ("--model", "mlp_tny", "mlp_tiny"),
        ("--workload", "infer", "inference"),
        ("--grad-mode", "nograd", "no_grad"),
        ("--device", "cdua", "cuda"),
        ("--dtype", "float3", "float32"),
        ("--memory-format", "channel_last", "channels_last"),
        ("--compile", "defalt", "default"),
        ("--meter", "step_tme", "step_time"),
        ("--reference", "nograd", "no_grad"),
    ],
)
def test_a_typo_costs_one_line_and_exit_status_2(
    option, typo, meant, gradbench, here, nothing_is_measured
):
    line = complaint(gradbench("run", *TINY, option, typo))
    assert repr(typo) in line
    assert f"did you mean {meant!r}?" in line
    assert not (here / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--on", "rya"), "unknown cluster 'rya': did you mean 'ray'?"),
        (("compare", "--times", "sielnt"), "--times is one of silent, all, none"),
        (("compare", "--grad-mode", "nograd"), "did you mean 'no_grad'?"),
        (("compare", "--preset", "tny"), "did you mean 'tiny'?"),
        (("compare", "--batch-size", "0"), "batch-size must be a whole number"),
        (("run", "--on", "rya", "--tasks", "2"), "unknown cluster 'rya'"),
        (("gate", "--correction", "homl"), "--correction is holm or fdr, not 'homl'"),
        (("gate", "--alpha", "2"), "--alpha is a chance between 0 and 1"),
        (("compare", "--processes", "2"), "2 processes cannot outvote a disturbed one"),
        (("compare", "--threshold", "5"), "--threshold is a share"),
        (("compare", "--limit", "0"), "--limit is a number of seconds above 0"),
        (("run", "--budget", "0", "--tasks", "2"), "--budget must be above 0"),
        (("predict", "--confirm", "--limit", "0"), "--limit must be above 0"),
        (("advise", "--budget", "0"), "--budget must be above 0"),
        (("explain", "--budget", "-1"), "--budget must be above 0"),
        (("run", "--shard", "0/3", "--tasks", "2"), "shard '0/3' is not like 2/3"),
        (("run", "--deadline", "-3"), "--deadline is a number of seconds above 0"),
        (("compare", "--deadline", "nan", "--on", "ray"), "--deadline is a number of seconds"),
        (("compare", "--bisect", "main"), "is not GOOD..BAD"),
        (("compare", "--rules", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("gate", "--rules", "nowhere.toml"), "nowhere.toml: there is no such file"),
        (("compare", "--base-python", "no-such-python"), "is no program that can be run"),
    ],
)
def test_a_wrong_choice_is_named_before_what_is_missing(arguments, words, gradbench, here):
    assert words in complaint(gradbench(*arguments))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("compare", "--threshold", "3%"), "--threshold is a share without a unit, not '3%': "
         "write 0.03"),
        (("compare", "--budget", "5s"), "--budget is a number of seconds without a unit, not '5s': "
         "write 5"),
        (("run", "--limit", "2.5 sec"), "--limit is a number of seconds without a unit"),
        (("run", "--budget", "soon"), "--budget is a number, not 'soon'"),
        (("run", "--seed", "1.5"), "--seed is a whole number, not '1.5'"),
        (("compare", "--processes", "five"), "--processes is a whole number, not 'five'"),
        (("history", "--fail-on-worse", "x"), "--fail-on-worse is a whole number, not 'x'"),
        (("gate", "--alpha", "1%"), "--alpha is a share without a unit, not '1%': write 0.01"),
        (("predict", "--limit", "1m"), "--limit is a number, not '1m'"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_answered_with_the_one_that_is_wanted(arguments, words, gradbench):
    assert f"gradbench: {words}" in complaint(gradbench(*arguments))


@pytest.mark.parametrize("option", ["--batch-size", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_counts_are_whole_numbers_from_1_up(option, value, gradbench):
    line = complaint(gradbench("list", *TINY, option, value))
    assert f"{option[2:]} must be a whole number from 1 up, not {value!r}" in line


def test_a_name_that_resembles_none_is_answered_with_all_there_are(gradbench):
    line = complaint(gradbench("list", *TINY, "--dtype", "octonion"))
    assert "known: as_is, bfloat16, float16, float32" in line


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--budget", "0", "--budget must be above 0"),
        ("--limit", "0", "--limit must be above 0"),
        ("--limit", "nan", "--limit must be above 0"),
        ("--limit", "inf", "--limit must be at most 1e+07 s, not inf"),
        ("--budget", "1e300", "--budget must be at most 1e+07 s, not 1e+300"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_before_measuring(
    option, value, words, gradbench, nothing_is_measured
):
    assert words in complaint(gradbench("run", *TINY, option, value))


NETS = {
    "nets.py": "from torch import nn\ndef make():\n    return nn.Linear(8, 2)\nnumber = 3\n"
    "def count():\n    return 3\n",
    "needy.py": "import no_such_dependency\n",
    "unparsable.py": "def make(:\n",
    "raising.py": "raise ValueError('no weights')\n",
}


@pytest.fixture
def nets(here):
    for name, text in NETS.items():
        (here / name).write_text(text, "utf-8")


@pytest.mark.usefixtures("nets")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--model", "nets:make"], ["'nets:make'", "needs --input", "8,3,224,224"]),
        (["--input", "4,8"], ["--input goes with --model package.module:NAME or file.py:NAME"]),
        (
            ["--input", "4,8", "--model", "nets.Net"],
            ["'nets.Net' is neither: did you mean 'nets:Net'?"],
        ),
        (["--model", "mlp_tiny", "--input", "4,8"], ["--input goes with --model"]),
        (["--model", "nest:make", "--input", "4,8"], ["No module named 'nest'"]),
        (["--model", "needy:make", "--input", "4,8"], ["No module named 'no_such_dependency'"]),
        (
            ["--model", "nets:mak", "--input", "4,8"],
            ["attribute 'mak': did you mean 'make'"],
        ),
        (["--model", "nets.py:Tower", "--input", "4,8"], ["no attribute 'Tower': it has make"]),
        (["--model", "resnet50"], ["torchvision:NAME", "package.module:NAME or file.py:NAME"]),
        (["--model", "nets:number", "--input", "4,8"], ["'nets:number' is int, not a factory"]),
        (["--model", "nets:count"], ["'nets:count' returned int, not torch.nn.Module"]),
        (["--model", "nets:", "--input", "4,8"], ["write it as package.module:factory"]),
        (["--model", "nets.py", "--input", "4,8"], ["lacks the name", "nets.py:"]),
        (["--model", "nets:make", "--input", "4"], ["'4' needs a batch size and a shape"]),
        (["--model", "nets:make", "--input", "4x8"], ["whole number", "'4x8'"]),
        (["--model", "nets:make", "--input", "4,-8"], ["whole number", "'-8'"]),
        pytest.param(
            ["--model", "unparsable:make", "--input", "4,8"],
            ["'unparsable:make' cannot be imported", "SyntaxError"],
        ),
        pytest.param(
            ["--model", "raising:make", "--input", "4,8"],
            ["'raising:make' cannot be imported", "no weights"],
        ),
    ],
)
def test_a_model_of_ones_own_that_cannot_be_had_costs_one_line(options, words, gradbench):
    traceback, line = complaint_after_a_traceback(gradbench("list", "--preset", "tiny", *options))
    assert [word for word in words if word not in line] == []
    assert "gradbench/" not in traceback.replace(str(Path.cwd()), "")
    assert ("Traceback" in traceback or "File" in traceback) is options[1].startswith(
        ("needy", "unparsable", "raising")
    )


@pytest.mark.parametrize("asked", [["report"], ["history"]], ids=" ".join)
def test_a_page_is_not_written_under_the_name_of_another_kind_of_file(asked, gradbench, here):
    line = complaint(gradbench(*asked, "-o", "page.pdf"))
    assert line.endswith("a page is HTML: name it page.html")
    assert not (here / "page.pdf").exists()


def test_the_version_says_what_figures_depend_on(gradbench):
    result = gradbench("--version")
    assert (result.exit_code, result.stderr) == (0, "")
    versions = f"gradbench {__version__}, protocol {PROTOCOL}, torch {metadata.version('torch')}"
    assert result.stdout == f"{versions}\n"


@pytest.mark.parametrize("words", [["-h"], ["run", "-h"]], ids=" ".join)
def test_h_is_short_for_help(words, gradbench):
    assert gradbench(*words).stdout == gradbench(*words[:-1], "--help").stdout != ""


@pytest.mark.parametrize("text", ["", " ", ",", "mlp_tiny,", ",,1"])
@pytest.mark.parametrize("option", [axis.option for axis in AXES.values()])
@pytest.mark.parametrize("command", ["list", "run", "ci"])
@pytest.mark.usefixtures("nothing_is_measured")
def test_an_empty_value_does_not_stand_for_all_values(command, option, text, gradbench):
    line = complaint(gradbench(command, option, text))
    assert f"{option} {text!r} has an empty value: name one, or leave it out" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--meter", ""],
        ["run", "--shard", ""],
        ["run", "--resume", ""],
        ["history", ""],
        ["history", "--meter", ","],
        ["history", "--model", ""],
        ["history", "--workload", " "],
        ["history", "--renamed", ""],
        ["show", ""],
        ["report", " "],
        ["gate", "--baseline", "latest", ""],
        ["gate", "latest", "--baseline", ""],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("nothing_is_measured", "stored")
def test_an_empty_argument_is_refused(arguments, gradbench):
    assert repr(arguments[-1]) in complaint(gradbench(*arguments))


@pytest.mark.usefixtures("nothing_is_measured")
def test_an_argument_is_named_as_help_names_it(gradbench):
    assert complaint(gradbench("history", "")).startswith("gradbench: SOURCE... '' has")
    assert complaint(gradbench("merge", "--no")).startswith("gradbench: no such option")


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize("name", COMMANDS)
def test_no_option_or_argument_of_any_command_takes_an_empty_value(name, value):
    for parameter in COMMANDS[name].params:
        is_option = parameter.param_type_name == "option"
        if is_option and parameter.is_flag:
            continue
        words = [parameter.opts[-1], value] if is_option else [value]
        with pytest.raises(typer.BadParameter.__mro__[1], match=f"{value!r} has an empty value"):
            COMMANDS[name].make_context(name, words)


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ('models = [""]', "line 2, models: ", "must be a name, not ''"),
        ('models = ["mlp_tiny"]\nbatch_size = [2]', "line 3, batch_size: ", "'batch_sizes'"),
        ('models = ["mlp_tny"]', "line 2, models: ", "did you mean 'mlp_tiny'?"),
        ('models = ["mlp_tiny"]\ndevices = ["cdua"]', "line 3, devices: ", "'cuda'"),
        ('models = ["mlp_tiny"]\ngrad_modes = ["nograd"]', "line 3, grad_modes: ", "'no_grad'"),
        ('models = ["mlp_tiny"]\nthreads = [0]', "line 3, threads: ", "not 0"),
        ('models = "mlp_tiny"', "line 2, models: ", "takes a list of values"),
        ('models = ["mlp_tiny"]\n[plan]\nbudget = 3', "line 4, budget: ", "'budget_s'"),
        ('models = ["mlp_tiny"]\n[plan]\nbudget_s = -3', "line 4, budget_s: ", "above 0"),
        ('models = ["mlp_tiny"]\n[[matrix]]\nmodels = []', "line 4, models: ", "is empty"),
        ("models = ['mlp_tiny' 'mlp_deep']", "", "line 2"),
        ("batch_sizes = [2]", "", "names no models"),
        pytest.param(
            'models = [\n  "mlp_tiny",\n  "mlp_tny",\n]',
            "line 4, models: ",
            "did you mean 'mlp_tiny'?",
        ),
        ("models = [3]", "line 2, models: ", "3"),
    ],
)
def test_a_mistake_in_a_toml_file_names_file_line_and_key(text, where, words, gradbench, here):
    (here / "matrix.toml").write_text(f"[[matrix]]\n{text}\n", "utf-8")
    line = complaint(gradbench("list", "--config", "matrix.toml"))
    assert line.startswith(f"gradbench: matrix.toml{', ' if where else ': '}{where}")
    assert words in line


def test_a_toml_file_that_is_not_there_is_named(gradbench):
    assert "nowhere.toml: there is no such file" in complaint(
        gradbench("list", "--config", "nowhere.toml")
    )


@pytest.mark.parametrize("option", ["--reports", "--results"])
def test_a_folder_that_cannot_be_written_is_found_before_measuring(
    option, gradbench, here, nothing_is_measured
):
    (here / "taken").write_text("a regular file", "utf-8")
    line = complaint(gradbench("run", *ONE_BLOCK, option, "taken"))
    assert "'taken'" in line
    assert option in line  # the option that mends it


@pytest.mark.parametrize(
    "arguments",
    [["show", "1999"], ["report", "1999"], ["run", "--resume", "1999"], ["show"]],
    ids=" ".join,
)
def test_a_run_that_is_not_there_costs_one_line(arguments, gradbench):
    assert "the latest there: none" in complaint(gradbench(*arguments))


# A store made by hand


@pytest.fixture
def stored(here) -> Store:
    """A store with one sealed run of one block."""
    store = Store(here / "results")
    outcomes = measured_block()
    first = started(block(), meters=("step_time", "peak_transient"))
    store.save([first, *outcomes, ended(timing=3.0, harness=1.0)])
    return store


def test_a_complete_run_is_not_resumed(gradbench, stored):
    line = complaint(gradbench("run", "--resume", "latest"))
    assert "is complete" in line


def test_show_takes_ratios_to_the_mode_that_is_asked_for(gradbench, stored):
    to_first, to_other = (
        gradbench("show", *options).stdout for options in ([], ["--reference", "inference_mode"])
    )
    assert "ratio to global_on" in to_first
    assert "0.500" in to_first  # inference_mode: half of 2000 ns
    assert "ratio to inference_mode" in to_other
    assert "2.000" in to_other


def test_a_broken_seal_is_reported_by_runs_and_the_rest_still_listed(gradbench, stored):
    (intact,) = stored.folder.glob(f"*{SEALED}")
    broken = intact.with_name(f"20200101T000000Z-dead{SEALED}")
    broken.write_bytes(intact.read_bytes().replace(b"global_off", b"global_of_"))
    result = gradbench("runs")
    assert result.exit_code == 0
    assert result.stdout.split()[0] == intact.name.removesuffix(SEALED)
    assert broken.name in result.stderr
    assert "quarantine" in result.stderr


def test_a_run_that_is_still_going_is_not_called_cut_short(gradbench, here):
    with Store(here / "results").create() as writer:
        writer.write(started(block()))
        output = gradbench("runs").stdout
    assert output.startswith(writer.name)
    assert "cut short" not in output


def test_a_run_that_is_sealed_while_it_is_listed_is_complete(gradbench, here, monkeypatch):
    load_files = Store.load_files
    with Store(here / "results").create() as writer:
        writer.write(started(block()))

        def sealed_behind_it(store):
            found = load_files(store)
            writer.seal()
            return found

        monkeypatch.setattr(Store, "load_files", sealed_behind_it)
        result = gradbench("runs")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.split() == [writer.name, "0", "of", "1", "block", "complete"]


def test_what_runs_proposes_can_be_pasted(gradbench, here):
    with Store(here / "elsewhere").create() as writer:
        writer.write(started(block()))
    output = gradbench("runs", "--results", "elsewhere").stdout
    assert f"gradbench run --resume {writer.name} --results elsewhere" in output


def test_runs_says_that_there_are_none(gradbench):
    result = gradbench("runs", "--results", "nowhere")
    assert "nowhere" in result.output


@pytest.mark.parametrize(
    "options", [["--preset", "full"], ["--budget", "9"], ["--seed", "1"], ["--meter", "peak_rss"]]
)
@pytest.mark.usefixtures("nothing_is_measured")
def test_what_a_resumed_run_would_not_heed_is_refused(options, gradbench, here):
    with Store(here / "results").create() as writer:
        writer.write(started(block()))
    assert options[0] in complaint(gradbench("run", "--resume", "latest", *options))


@pytest.fixture
def cut_short(here):
    """A run of a model that is not built in, whose import would leave a file behind."""
    text = "from pathlib import Path\nPath('executed').touch()\n" + NETS["nets.py"]
    (here / "theirs.py").write_text(text, "utf-8")
    source = ModelSource(build="theirs:make", input=("B,8",))
    header = started([replace(c, model="theirs.make") for c in block()])
    with Store(here / "results").create() as writer:
        writer.write(replace(header, sources={"theirs.make": source}))
    yield
    sys.modules.pop("theirs", None)


@pytest.mark.usefixtures("cut_short", "nothing_is_measured")
def test_going_on_runs_no_code_that_only_the_file_names(gradbench, here):
    line = complaint(gradbench("run", "--resume", "latest"))
    assert "runs code that the run's file names, theirs:make: " in line
    assert "add --model theirs.make" in line
    assert complaint(gradbench("run", "--resume", "latest", "--model", "mlp_tiny")) == line
    assert not (here / "executed").exists()
    assert "--model theirs.make" in gradbench("runs").stdout


@pytest.mark.usefixtures("cut_short")
def test_a_model_of_ones_own_is_gone_on_with_when_it_is_named_again(gradbench, here, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = []
    monkeypatch.setattr("gradbench.recording.Recording", lambda *_, **given: made.append(given))
    for name in ("theirs.make", "theirs:make"):
        gradbench("run", "--resume", "latest", "--model", name)
        assert (here / "executed").exists()
    assert ["theirs.make" in given["models"] for given in made] == [True, True]


# A real run


@dataclass
class Called:
    """A command as it went, and the folder it was called in."""

    done: subprocess.CompletedProcess[str]
    folder: Path

    def run(self) -> Run:
        (path,) = (self.folder / "T").iterdir()
        return load(path)


def call_here(*arguments: object, cwd: Path) -> Called:
    """Call the command in this process."""
    words = [str(argument) for argument in arguments]
    with chdir(cwd):
        result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words, prog_name="gradbench")
    done = subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
    return Called(done, cwd)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, shared_fork_servers) -> Called:
    """One tiny run, in this process."""
    folder = tmp_path_factory.mktemp("measured")
    return call_here("run", *ONE_BLOCK, "--budget", 0.05, *WHERE, "--no-semantics", cwd=folder)


def test_a_run_leaves_one_sealed_file_and_one_page(measured):
    assert measured.done.returncode == 0, measured.done.stderr
    (records,) = (measured.folder / "T").iterdir()
    (page,) = (measured.folder / "T2").iterdir()
    assert records.name.endswith(SEALED)
    assert page.name == records.name.replace(SEALED, ".html")
    assert page.read_text("utf-8").lower().startswith("<!doctype html>")


def test_a_run_has_one_outcome_for_each_cell_and_meter(measured):
    run = measured.run()
    assert run.sealed
    assert run.header.cells == tuple(block())
    assert run.unfinished() == []
    pairs = Counter((outcome.cell, outcome.meter) for outcome in run.outcomes)
    assert set(pairs.values()) == {1}


def test_a_run_prints_a_table_where_things_are_and_what_the_harness_took(measured):
    run, output = measured.run(), measured.done.stdout.splitlines()
    rows = [line.split() for line in output]
    for mode in ("global_on", "global_off", "no_grad", "inference_mode"):
        (row,) = (row for row in rows if row[:1] == [mode])
        assert len(row) > 5
    assert f"records  {Path('T', run.name)}.jsonl" in output
    assert f"page     {Path('T2', run.name)}.html" in output
    spent = " ".join(measured.done.stdout.split()).rpartition(" s: ")[2]  # a line or two
    assert "timing" in spent
    assert "gradbench's own overhead" in spent


def test_where_nobody_looks_progress_is_a_plain_line_for_each_block(measured):
    assert measured.done.stderr.splitlines() == ["[1/1] inference[cpu-mlp_tiny-b8]"]


def test_the_plan_of_the_options_is_the_plan_in_the_records(measured):
    assert measured.run().header.plan["budget_s"] == 0.05


def test_show_prints_what_the_run_printed(measured, gradbench):
    again = gradbench("show", "latest", "--results", measured.folder / "T")
    printed = measured.done.stdout.partition("\nrecords  ")[0]
    printed = printed.replace("gradbench show --verbose --results T", "--verbose")  # more notes
    assert again.exit_code == 0
    assert again.stdout.rstrip() == printed.rstrip()


@pytest.mark.parametrize("beginning", [8, None], ids=["its beginning", "its name"])
def test_a_run_is_found_by(beginning, measured, gradbench):
    name = measured.run().name
    output = gradbench("show", name[:beginning], "--results", measured.folder / "T").stdout
    assert output.startswith(f"run {name}\n")


def test_show_of_an_unknown_run_names_the_runs_there_are(measured, gradbench):
    line = complaint(gradbench("show", "1999", "--results", measured.folder / "T"))
    assert "'1999'" in line
    assert measured.run().name in line


def test_report_writes_one_page_that_needs_nothing_else(measured, gradbench, here):
    result = gradbench(
        "report", "latest", "-o", "deep/page.html", "--results", measured.folder / "T"
    )
    assert result.exit_code == 0
    assert result.stdout.strip() == "deep/page.html"
    html = (here / "deep/page.html").read_text("utf-8")
    assert measured.run().name in html
    assert "<script src=" not in html
    assert "<link" not in html
    assert 'src="http' not in html


def test_runs_lists_a_complete_run(measured, gradbench):
    output = gradbench("runs", "--results", measured.folder / "T").stdout
    assert output == f"{measured.run().name}  1 of 1 block  complete\n"


def test_env_as_json_is_json_and_agrees_with_the_run(measured, gradbench):
    facts = json.loads(gradbench("env", "--json").stdout)
    recorded = measured.run().environment.facts
    for fact in ("protocol", "gradbench", "torch", "python", "host"):
        assert facts[fact] == recorded[fact]


def test_env_in_words_has_a_line_for_each_fact(gradbench):
    words = [line.split()[0] for line in gradbench("env").stdout.splitlines()]
    assert words == list(json.loads(gradbench("env", "--json").stdout))


@pytest.mark.slow
def test_a_model_of_ones_own_is_measured_from_where_the_user_stands(tmp_path):
    (tmp_path / "mynet.py").write_text(NETS["nets.py"], "utf-8")
    done = call(
        *("run", "--preset", "tiny", "--workload", "inference", "--budget", 0.05),
        *("--model", "mynet:make", "--input", "4,8"),
        *("--meter", "peak_transient", "--results", "T", "--no-semantics"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    run = Called(done, tmp_path).run()
    assert run.header.sources == {"mynet.make": ModelSource(build="mynet:make", input=("B,8",))}
    assert {outcome.cell.batch_size for outcome in run.outcomes} == {4}
    output_bytes = 4 * 2 * 4
    assert [o.values for o in run.outcomes if isinstance(o, Measurement)] == [(output_bytes,)] * 4


# A run that is stopped by Ctrl-C, goes on, is killed, goes on, and comes to its end


WAITING = ("--model", "zoo.modules:Waiting")
SIZES = (1, 2, 3, 4)
SEVERAL_BLOCKS = (
    *(*WAITING, "--input", "1,16", "--batch-size", ",".join(map(str, SIZES))),
    *("--preset", "tiny", "--workload", "inference", "--budget", 0.05),
    *("--meter", "step_time,latency"),  # of one pass
)
OUTCOMES_OF_A_BLOCK = 4 * 2


@dataclass
class Stopped:
    """A run cut short: what it said, what it left, and the processes that it had."""

    status: int
    said: str
    run: Run
    listed: str  # by `gradbench runs`
    folder: Path
    processes: tuple[psutil.Process, ...]

    @property
    def kept(self) -> int:
        """Blocks."""
        return 4 - len(self.run.unfinished())


def stop(*arguments: object, folder: Path, blocks: int, by: signal.Signals) -> Stopped:
    """Start a run, send it a signal when it has written so many blocks and measures the next.

    Which does not end: its model waits.
    """
    (gate := folder / "gate").mkdir(exist_ok=True)
    for size in SIZES[:blocks]:
        (gate / str(size)).touch()
    found = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))
    with subprocess.Popen(
        command(*arguments, *WHERE, "--no-semantics"),
        cwd=folder,
        env={**os.environ, "TEST_GATE": str(gate), "PYTHONPATH": found},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A suite that was started in the background hands on an ignored SIGINT.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 # no threads
    ) as process:
        main = psutil.Process(process.pid)

        def measures() -> bool:
            assert process.poll() is None, "it ended before it was stopped"
            with suppress(psutil.NoSuchProcess):  # a child that ended while it was looked at
                parents = {child.ppid() for child in main.children(recursive=True)}
                measuring = len(parents) >= 3  # its own, a supervisor's, and a loaded parent's
                return measuring and outcome_lines(folder / "T") == blocks * OUTCOMES_OF_A_BLOCK
            return False

        try:
            wait_until(measures)
            processes = tuple(main.children(recursive=True))
            os.kill(process.pid, by)
            said, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    listed = call_here("runs", "--results", "T", cwd=folder).done.stdout
    run = load(part_of(folder / "T"))
    return Stopped(process.returncode, said, run, listed, folder, processes)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    return stop("run", *SEVERAL_BLOCKS, folder=folder, blocks=1, by=signal.SIGINT)


@pytest.fixture(scope="module")
def killed(interrupted) -> Stopped:
    again = ("run", "--resume", "latest", *WAITING)
    return stop(*again, folder=interrupted.folder, blocks=2, by=signal.SIGKILL)


@pytest.fixture(scope="module")
def resumed(killed, shared_fork_servers) -> Called:
    """The rest, measured in this process: it was the others' to be stopped."""
    again = ("run", "--resume", "latest", *WAITING)
    return call_here(*again, *WHERE, "--no-semantics", cwd=killed.folder)


def test_ctrl_c_keeps_finished_blocks_and_says_how_to_go_on(interrupted):
    assert interrupted.status == ExitStatus.INTERRUPTED
    assert interrupted.kept == 1
    assert "stopped: 1 of 4 blocks are kept" in interrupted.said
    go_on = f"gradbench run --resume {interrupted.run.name} --model modules.Waiting --results T"
    assert go_on in interrupted.said
    assert "Traceback" not in interrupted.said


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_measuring_processes_vanish_with_a_run_that_is(how, request):
    stopped = request.getfixturevalue(how)
    assert len(stopped.processes) > 1  # a loaded parent and what it forked
    wait_until(lambda: all(map(is_gone, stopped.processes)))


@pytest.mark.parametrize("how", ["interrupted", "killed"])
def test_runs_calls_a_run_cut_short_that_was(how, request):
    stopped = request.getfixturevalue(how)
    name, kept = stopped.run.name, stopped.kept
    assert stopped.listed.startswith(f"{name}  {kept} of 4 blocks  cut short: ")
    assert f"gradbench run --resume {name}" in stopped.listed


def test_what_was_kept_survives_a_kill(interrupted, killed):
    assert killed.status == -signal.SIGKILL
    assert killed.run.name == interrupted.run.name
    assert killed.kept == 2
    before, after = (
        {(o.cell, o.meter): o for o in stopped.run.outcomes} for stopped in (interrupted, killed)
    )
    done = interrupted.run.done
    assert len(done) >= OUTCOMES_OF_A_BLOCK
    assert {pair: before[pair] for pair in done} == {pair: after.get(pair) for pair in done}


def test_resuming_completes_a_killed_run_with_one_outcome_each(resumed):
    assert resumed.done.returncode == 0, resumed.done.stderr
    run = resumed.run()
    assert run.sealed
    pairs = Counter((outcome.cell, outcome.meter) for outcome in run.outcomes)
    meters = ("step_time", "latency")
    assert set(pairs) == {(member, meter) for member in run.header.cells for meter in meters}
    assert set(pairs.values()) == {1}


def test_resuming_measures_nothing_again_that_was_kept(killed, resumed):
    kept, now = killed.run, resumed.run()
    for outcome in kept.outcomes:
        if (outcome.cell, outcome.meter) in kept.done:
            assert outcome in now.outcomes
    again = [line for line in resumed.done.stderr.splitlines() if line.startswith("[")]
    assert [line.partition("] ")[2] for line in again] == [str(b) for b in kept.unfinished()]


def test_a_run_that_was_resumed_and_completed_is_not_resumed_again(resumed, gradbench):
    again = ("run", "--resume", "latest", *WAITING)
    line = complaint(gradbench(*again, "--results", resumed.folder / "T"))
    assert "is complete" in line
