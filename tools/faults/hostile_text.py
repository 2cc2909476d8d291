"""Put hostile texts wherever a run holds words; count what acts on a terminal, a CI log, a page.

python tools/faults/hostile_text.py -o tools/faults/figures/hostile_text.json

Each text is a model's name, facts, reasons, notes, names of a module and a file, in two runs. Every
command that shows or writes runs is asked, and what shows a study, a notebook and a CI job; every
byte that these print or write is looked at. The pages are opened in Chromium, where one is
installed, and their figures downloaded. A second call with the same file goes on where the first
one stopped.
"""

import argparse
import csv
import io
import json
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_studies
import made_up_runs
from in_process import Answer, call, raw_controls, standing_in, today, workflow_commands

from gradbench.errors import StoreError
from gradbench.store.jsonl import load

ESC, BEL, CSI = "\x1b", "\x07", "\x9b"
TEXTS = (
    f"{ESC}[31mred{ESC}[0m",
    f"{ESC}[2J{ESC}[H",
    f"{ESC}]52;c;aGVsbG8={BEL}",
    f"{ESC}]0;title{BEL}",
    f"{ESC}]8;;http://x.invalid{ESC}\\link{ESC}]8;;{ESC}\\",
    f"{ESC}P+q544e{ESC}\\",
    f"{ESC}[6n",
    f"{ESC}[?1049h",
    f"{ESC}c",
    f"{CSI}31mred",
    "\x9d52;c;aGVsbG8=\x9c",
    "bell\x07",
    "back\x08\x08\x08space",
    "\x7fdelete",
    "nul\x00byte",
    "carriage\rreturn",
    "line\nfeed",
    "line\r\nfeed",
    "vertical\vtab",
    "form\ffeed",
    "next\x85line",
    "line\u2028separator",
    "paragraph\u2029separator",
    "tab\tstop",
    "::error::owned",
    "  ::error file=a.py,line=1::owned",
    "x\n::error::owned",
    "x\r\n::set-output name=a::b",
    "::add-mask::a",
    "::stop-commands::token",
    "::group::x\n::endgroup::",
    "##[error]owned",
    "##vso[task.setvariable variable=a]b",
    "##teamcity[buildStatus status='FAILURE']",
    f"section_start:1:x\r{ESC}[0Kowned",
    "right\u202eto left",
    "\u2066isolate\u2069",
    "mark\u200f\u061c",
    "zero\u200bwidth\u200dno\ufeffspace",
    "tag\U000e0041",
    "soft\xadhyphen",
    "lone\ud800surrogate",
    "\udcff\udc80 no UTF-8",
    "noncharacter\ufffe\uffff",
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    '"><svg onload="document.title=\'owned\'">',
    "javascript:document.title='owned'",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "&lt;b&gt;&#x1b;",
    '=HYPERLINK("http://x.invalid","a")',
    "+1+1",
    "-2+3",
    "@SUM(1)",
    " =1+1",
    "[red]markup[/red][link=http://x.invalid]a[/link]",
    ":warning::bomb:",
    "| a | b |\n|---|---|\n# heading `code` [a](http://x.invalid)",
    "../../../../owned",
    "/owned/../..",
    "..",
    "$(touch owned)`touch owned`;touch owned",
    "$x_{y}$ \\frac{1}{2}",
    "%s%n{0}{x!r}",
    "a" * 900,
)


def commands(first: str, second: str) -> Iterator[list[str]]:
    """Yield every way to show or write a run."""
    yield ["show", first]
    yield ["show", first, "--verbose", "--scaling"]
    yield ["runs", "--results", "results"]
    yield ["report", first, second, "-o", "out/pair.html"]
    yield ["report", first, "--format", "md"]
    yield ["gate", "--baseline", first, second, "--all"]
    yield ["gate", "--baseline", first, second, "--json"]
    yield ["gate", "--baseline", "nothing-*", second]
    yield ["history", "results", "--all", "-o", "out/history.html"]
    yield ["history", "results", "--json"]
    yield ["merge", first, second, "--results", "out/merged"]
    yield ["pack", "results", "-o", "out/pack"]
    yield ["history", "out/pack"]
    for name in ("markdown", "annotations", "junit", "bencher", "pyperf"):
        yield ["export", name, first]
        yield ["export", name, first, "-o", f"out/{name}"]
    for name in ("github-action-benchmark", "asv", "otava"):
        yield ["export", name, first, "-o", f"out/{name}"]


def judged_exports() -> Iterator[list[str]]:
    """Yield the exports of verdicts, which ``gate --json`` has written."""
    for name in ("markdown", "annotations", "junit"):
        yield ["export", name, "--verdicts", "out/gate.json"]


def attack(text: str, folder: Path, *, with_figures: bool) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with one text, as a kind and words."""
    results = folder / "results"
    results.mkdir()
    names = [f"2026010{number}T000000.000000Z-000{number}" for number in (1, 2)]
    if text and "/" not in text and "\0" not in text and len(text.encode("utf-8", "replace")) < 200:
        names[0] = text  # a file's name is foreign too
    files = []
    for number, name in enumerate(names):
        rows = made_up_runs.rows(text=text, factor=1 + number, commit=1 + number)
        try:
            files.append(made_up_runs.seal(results / f"{name}.jsonl", rows))
        except UnicodeEncodeError:  # a name that no file can have
            files.append(made_up_runs.seal(results / f"plain{number}.jsonl", rows))
    (folder / "out").mkdir()
    arguments = [f"results/{path.name}" for path in files]
    figures = [["report", arguments[0], "-o", "out/page.html", "--figures", "out/figures"]]
    for command in [*commands(*arguments), *(figures if with_figures else [])]:
        answer = call(command)
        yield from judge(answer)
        if "--json" in command and command[0] == "gate":
            (folder / "out/gate.json").write_text(answer.out, "utf-8")
    for command in judged_exports():
        yield from judge(call(command))
    yield from judge_studies(arguments, text, folder)
    yield from judge_files(folder)


def judge(answer: Answer) -> Iterator[tuple[str, str]]:
    words = " ".join(answer.arguments[:2])
    if answer.wrong:
        yield answer.wrong.partition(":")[0], f"{words}: {answer.wrong}"
    if controls := raw_controls(answer.out + answer.err):
        yield "raw control character", f"{words}: {controls!r}"
    if answer.arguments[:2] == ("export", "annotations"):
        commands_ = [one for one in workflow_commands(answer.out) if not annotation(one)]
    else:
        commands_ = workflow_commands(answer.out)
    if commands_ + workflow_commands(answer.err):
        yield "workflow command", f"{words}: {commands_[:1]}"


def judge_studies(names: list[str], text: str, folder: Path) -> Iterator[tuple[str, str]]:
    """Look at what is shown of a study, in notebooks, and by a CI job."""
    try:
        runs = [load(Path(name)) for name in names]
    except StoreError:  # such a run has been refused by every command
        return
    for name, words in hostile_studies.printed(runs[0], text):
        if controls := raw_controls(words):
            yield "raw control character", f"{name}: {controls!r}"
        if not name.startswith("repr") and (commands_ := workflow_commands(words)):
            yield "workflow command", f"{name}: {commands_[:1]}"
    hostile_studies.write_pages(runs, text, folder / "out")
    verdicts = (folder / "out/gate.json").read_text("utf-8")
    hostile_studies.write_job(runs[1], verdicts, folder / "out/job")
    yield from judge_annotations(folder / "out/job/annotations.txt")


def judge_annotations(path: Path) -> Iterator[tuple[str, str]]:
    """Look for commands other than annotations in the file that a job prints into a log."""
    found = workflow_commands(path.read_text("utf-8"))
    if others := [one for one in found if not annotation(one)]:
        yield "workflow command", f"annotations of a job: {others[:1]}"


def annotation(line: str) -> bool:
    """Return whether a line is an annotation of ours: one command, at the line's beginning."""
    return line.startswith(("::error ", "::warning ", "::notice ")) and "##[" not in line[:3]


def judge_files(folder: Path) -> Iterator[tuple[str, str]]:
    written = {path for path in folder.rglob("*") if path.is_file()}
    inside = (folder / "out", folder / "results", folder / "caches")
    for path in written:
        if not any(path.is_relative_to(one) for one in inside):
            yield "path escaped", str(path)
        if path.suffix in (".png", ".parquet", ".jsonl", ".index"):
            continue
        content = path.read_text("utf-8", errors="replace")
        if path.is_relative_to(folder / "out") and (controls := raw_controls(content)):
            yield "raw control character", f"{path.name}: {controls!r}"
        if path.suffix == ".csv" and (found := formulas(content)):
            yield "formulas", f"{path.name}: {found[:1]}"
    if (folder.parent / "owned").exists():
        yield "path escaped", "owned"


def browsed(pages: Path) -> Counter[str]:
    """Return what came of opening every page in Chromium and downloading its figures.

    How many were opened, in how many a text was executed, how many downloads were looked at, and
    how many of their fields a spreadsheet would run.
    """
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import Dialog, sync_playwright
    except ImportError:
        return Counter()
    if chromium is None:
        return Counter()
    found = Counter[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        dialogs: list[str] = []

        def note(dialog: Dialog) -> None:
            dialogs.append(dialog.message)
            dialog.dismiss()

        page.on("dialog", note)
        for path in sorted(pages.glob("*.html")):
            page.goto(path.as_uri())
            for button in page.query_selector_all("[data-download=csv]"):
                with page.expect_download() as download:
                    button.evaluate("button => button.click()")
                found["downloads"] += 1
                found["formulas"] += len(formulas(Path(download.value.path()).read_text("utf-8")))
            found["pages opened in Chromium"] += 1
            found["executed in a page"] += page.title() == "owned" or bool(dialogs)
        browser.close()
    return found


def formulas(text: str) -> list[str]:
    """Return the fields of a CSV file that a spreadsheet would run."""
    fields = (field for row in csv.reader(io.StringIO(text)) for field in row)
    return [one for one in fields if one.lstrip().startswith(tuple("=+-@")) and not is_number(one)]


def is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


COUNTED = (
    *("texts", "commands", "pages opened in Chromium", "executed in a page", "downloads"),
    *("formulas", "raw control character", "workflow command", "path escaped", "traceback", "hang"),
)
EXAMPLES = 20
"""Of each kind of problem that are kept in words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600.0, help="after which none is begun")
    parser.add_argument("-o", "--output", type=Path, required=True, help="goes on from there")
    given = parser.parse_args()
    output, began = given.output.resolve(), time.monotonic()
    found = json.loads(output.read_text("utf-8")) if output.exists() else {}
    found = {**dict.fromkeys(COUNTED, 0), "problems": {}, **found}
    for number in range(found["texts"], len(TEXTS)):
        if time.monotonic() - began > given.seconds:
            break
        print(f"{number + 1}/{len(TEXTS)} {TEXTS[number][:40]!a}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix="hostile-") as top:
            folder = Path(top) / str(number)
            folder.mkdir()
            with standing_in(folder):
                add(found, attack(TEXTS[number], folder, with_figures=number % 8 == 0), number)
            for what, count in browsed(folder / "out").items():
                found[what] += count
        found["texts"] += 1
        found["commands"] += len([*commands("", ""), *judged_exports()])
        output.write_text(json.dumps({"date": today(), **found}, indent=1) + "\n", "utf-8")


def add(found: dict[str, Any], problems: Iterator[tuple[str, str]], number: int) -> None:
    """Count what went wrong with a text, and keep some of it in words."""
    for kind, words in problems:
        found[kind] = found.get(kind, 0) + 1
        examples = found["problems"].setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{TEXTS[number][:40]!r}: {words}")


if __name__ == "__main__":
    main()
