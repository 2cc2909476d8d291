"""Whatever a run's file says, no command prints or writes a control character or a CI's command."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
from builders import (
    block,
    broken_down,
    counted,
    ended,
    environment,
    run_of,
    skipped,
    started,
    timed,
    write_run,
)
from rich.table import Table
from typer.testing import CliRunner

import gradbench.cli
from gradbench.cli import app
from gradbench.cli.screen import Screen, shown
from gradbench.printable import printable

TEXTS = (
    "\x1b]52;c;YQ==\x07\x9b31m",
    "x\r\n::error::owned\n##[error]owned",
    "\u202eabc\u200b\ud800\x00",
    "::error::" + "a" * 120 + "::error::b",
)
COMMANDS = (
    ["show", "run.jsonl", "--verbose"],
    ["runs", "--results", "."],
    ["gate", "--baseline", "base.jsonl", "run.jsonl", "--all"],
    ["history", "."],
    ["history", ".", "--json"],
    ["gate", "--baseline", "base.jsonl", "run.jsonl", "--json"],
    ["export", "bencher", "run.jsonl"],
    ["report", "run.jsonl", "--format", "md"],
    ["export", "markdown", "run.jsonl"],
    ["export", "junit", "run.jsonl"],
    ["export", "otava", "run.jsonl", "-o", "out"],
    ["export", "asv", "run.jsonl", "-o", "out"],
)


def hostile_run(text):
    members = block(model=text)
    return run_of(
        [
            started(
                members, meters=("step_time", "peak_transient", "peak_rss"), command=("a", text)
            ),
            environment(**{text: text, "host": text, "cpu": text, "git_commit": "0" * 40}),
            *(timed(c, [100 + n for n in range(9)], model_set=text) for c in members),
            *(counted(c, 64) for c in members),
            *(skipped(c, meter="peak_rss", cause="failed", reason=text) for c in members),
            broken_down(members[0], saved=8),
            ended(),
        ],
        name="run",
    )


@pytest.fixture(params=range(len(TEXTS)))
def here(request, tmp_path, monkeypatch):
    path = write_run(hostile_run(TEXTS[request.param]), tmp_path)
    shutil.copy(path, tmp_path / "base.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    return tmp_path


def assert_harmless(text, *, commands=False):
    assert printable(text.replace("\n", "|")) == text.replace("\n", "|")
    if not commands:
        assert not re.search(r"^\s*::|##\[", text, re.MULTILINE)


def test_nothing_of_a_run_s_text_acts(here):
    for command in COMMANDS:
        answer = CliRunner(env={"COLUMNS": "100"}).invoke(app, command)
        assert answer.exception is None or isinstance(answer.exception, SystemExit), command
        assert_harmless(answer.output)
    for path in (here / "out").rglob("*"):
        if path.is_file():
            assert_harmless(path.read_text("utf-8"), commands=True)  # a file is no log
    answer = CliRunner().invoke(app, ["export", "annotations", "run.jsonl"])
    assert answer.output.count("::error ") == 4
    assert all(line.startswith(("::error ", "::warning ")) for line in answer.output.splitlines())
    assert_harmless(answer.output, commands=True)


def test_only_the_screen_s_own_module_speaks_to_rich():
    """So that nothing is printed that does not go by way of it."""
    for path in Path(gradbench.cli.__file__).parent.glob("*.py"):
        names = {
            node.module
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        assert path.name == "screen.py" or not names & {"rich.console", "rich.markup"}, path.name


def test_a_screen_shows_what_others_forgot_to_make_printable(capsys):
    table = Table("a\x1b[2J")
    table.add_row("b\x07")
    screen = Screen(width=40)
    screen.print(table, "c\x9b", f"{shown('[red]::d')}", sep="\n")
    printed = capsys.readouterr().out
    assert_harmless(printed)
    assert "c\\x9b\n[red]::d" in printed


def test_colours_of_ours_reach_a_terminal():
    from io import StringIO

    stream = StringIO()
    Screen(file=stream, force_terminal=True, color_system="standard").print("[red]a[/red]\x1b[31m")
    assert stream.getvalue() == "\x1b[31ma\x1b[0m\\x1b[31m\n"


@pytest.mark.parametrize("size", ["", "0", "-1", "\xb2", "1.5", "99999", "9" * 5000, " 8 "])
def test_a_size_of_the_screen_that_none_has_is_as_none(size, monkeypatch):
    for name in ("COLUMNS", "LINES"):
        monkeypatch.setenv(name, size)
    screen = Screen()
    assert screen.columns(piped=77) == 77
    assert 0 < screen.width < 10_000
    monkeypatch.setenv("COLUMNS", "33")
    assert (screen.columns(piped=77), Screen().width) == (33, 33)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runn"], "gradbench: no such command 'runn'. Did you mean 'run'"),
        (["show", "--refrence", "x"], "gradbench: no such option: --refrence"),
        (
            ["run", "--model"],
            "gradbench: option '--model' requires an argument: see gradbench run --help",
        ),
        (
            ["advise", "mlp_tiny"],
            "gradbench: got unexpected extra argument(s) (mlp_tiny): a model goes with --model: "
            "see gradbench advise --help",
        ),
        (["export"], "gradbench: missing argument 'FORMAT': see gradbench export --help"),
        (["gate", "--alpha", "x\x1b"], "gradbench: --alpha is a number, not 'x\\x1b'"),
        (["show", "a" * 300], "gradbench: no run 'aaaa"),
        (["predict", "--fit", "0"], "gradbench: --fit"),
    ],
)
def test_a_mistake_in_a_command_line_is_one_line(arguments, line):
    answer = CliRunner(env={"COLUMNS": "60"}).invoke(app, arguments, prog_name="gradbench")
    assert answer.exit_code == 2
    assert answer.stdout == ""
    (said,) = answer.stderr.splitlines()
    assert said.startswith(line)
    assert_harmless(said)


def test_json_has_no_number_that_json_has_not(here):
    answer = CliRunner().invoke(app, ["history", ".", "--json"])
    json.loads(answer.stdout, parse_constant=pytest.fail)


def test_no_module_has_a_console_of_its_own_beside_the_screen():
    """In pytest and in Python's own prompt, too, text of others is shown by way of it."""
    package = Path(gradbench.__file__).parent
    with_console = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"rich\.console import .*\bConsole\b", path.read_text("utf-8"))
    }
    assert with_console == {"terminal/screen.py"}
