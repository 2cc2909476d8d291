"""Write docs/reliability.md from the figures that the scripts beside it have saved.

python tools/faults/reliability_doc.py > docs/reliability.md
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FIGURES = HERE / "figures"
TEXT = HERE / "reliability_doc.md"


def main() -> None:
    sections = {
        name: "\n".join(write(json.loads(path.read_text("utf-8"))))
        if (path := FIGURES / f"{name}.json").exists()
        else "No such figures have been saved yet."
        for name, write in SECTIONS.items()
    }
    sys.stdout.write(TEXT.read_text("utf-8").format(**sections))


def kills(found: Any) -> Iterator[str]:
    low, high = found["loads"]
    yield f"{found['date']}, {found['cores']} cores, load {low} to {high}."
    yield ""
    yield (
        "| killed | times | lost | doubled | lived on for 2 s | slowest end | left | hangs "
        "| ended early |"
    )
    yield "| --- |" + " ---: |" * 8
    for row in found["counts"]:
        yield (
            f"| {row['victim']} | {row['kills']} | {row['lost']} | {row['doubled']} "
            f"| {row['left_after_2_s']} | {row['slowest_s']:.2f} s | {row['files_left']} "
            f"| {row['hangs']} | {row['ended_early']} |"
        )


def interrupts(found: Any) -> Iterator[str]:
    low, high = found["loads"]
    yield f"{found['date']}, load {low} to {high}."
    yield ""
    yield (
        "| command | times | tracebacks | of these Python's own | other statuses | hangs "
        "| processes left | files left |"
    )
    yield "| --- |" + " ---: |" * 7
    keys = (
        *("interrupted", "tracebacks", "of Python's start", "other statuses", "hangs"),
        *("processes left", "files left"),
    )
    for name, row in found["counts"].items():
        yield f"| {name} | " + " | ".join(str(row.get(key, 0)) for key in keys) + " |"


def misbehaving(found: Any) -> Iterator[str]:
    most_s = found["limit_s"] * found["processes"]
    good = "has its numbers" if found["good_has_numbers"] else "has NO numbers"
    yield (
        f"{found['date']}, load {found['load']}: {found['models']} models in a run of "
        f"{found['processes']} processes with a limit of {found['limit_s']:g} s. It took "
        f"{found['took_s']:.0f} s, where the limits add up to {most_s:.0f} s. "
        f"{len(found['missing'])} outcomes are missing, {len(found['doubled'])} are there twice, "
        f"{len(found['reasons_of_several_lines'])} reasons have several lines, "
        f"{len(found['processes_left'])} processes were left; the good model {good}."
    )
    yield ""
    yield "| model | its reason, or reasons |"
    yield "| --- | --- |"
    for model in sorted({key.rpartition(" ")[0] for key in found["reasons"]}):
        words = [text for key, text in found["reasons"].items() if key.startswith(f"{model} ")]
        shown = "; ".join(dict.fromkeys(words)).replace("|", "\\|")
        yield f"| {model} | {shown} |"


def misbehaving_versions(found: Any) -> Iterator[str]:
    good = "has its numbers" if found["good_has_numbers"] else "has NO numbers"
    status = "an answer" if found["answered"] else "NO answer"
    yield (
        f"{found['date']}, load {found['load']}: {found['models']} models in one comparison "
        f"with a limit of {found['limit_s']:g} s. It took {found['took_s']:.0f} s and ended with "
        f"{status}, status {found['status']}; {found['traceback']:d} tracebacks. "
        f"{len(found['missing'])} models are without an outcome, "
        f"{len(found['reasons_of_several_lines'])} reasons have several lines, "
        f"{len(found['files_left'])} files were left, every process was gone "
        f"{found['gone_after_s']:.2f} s after the end; the good model {good}."
    )
    yield ""
    yield "| model | verdict | its reason |"
    yield "| --- | --- | --- |"
    for model, reason in sorted(found["reasons"].items()):
        shown = reason.removeprefix("the candidate cannot step it: ").replace("|", "\\|")
        yield f"| {model} | {found['verdicts'][model]} | {shown} |"


def hostile_text(found: Any) -> Iterator[str]:
    yield (
        f"{found['date']}: {found['texts']} texts, {found['commands']:,} commands, "
        f"{found['pages opened in Chromium']} pages opened in Chromium: "
        f"{found['raw control character']} raw control characters in what was printed or written, "
        f"{found['workflow command']} workflow commands, {found['executed in a page']} texts "
        f"executed in a page, {found['path escaped']} paths escaped, "
        f"{found['formulas']} formulas in {found['downloads']} downloads, "
        f"{found['traceback']} tracebacks, {found['hang']} hangs."
    )


def mutated_files(found: Any) -> Iterator[str]:
    keys = ("tried", "refused", "taken", "traceback", "hang", "wrong exit 0")
    yield f"{found['date']}:"
    yield ""
    yield f"| changed | {' | '.join(keys)} | raw control character |"
    yield f"| --- |{' ---: |' * (len(keys) + 1)}"
    for name in ("runs", "bisections", "TOML files"):
        row = found[name]
        cells = (*keys, "raw control character")
        yield f"| {name} | " + " | ".join(f"{row[key]:,}" for key in cells) + " |"


def command_lines(found: Any) -> Iterator[str]:
    row = found["command lines"]
    yield (
        f"{found['date']}: {row['tried']:,} command lines, {row['traceback']} tracebacks, "
        f"{row['hang']} hangs, {row['wrong exit 0']} with status 0 that had to be refused, "
        f"{row['raw control character']} raw control characters."
    )


SECTIONS: dict[str, Callable[[Any], Iterator[str]]] = {
    "kills": kills,
    "interrupts": interrupts,
    "misbehaving": misbehaving,
    "misbehaving_versions": misbehaving_versions,
    "hostile_text": hostile_text,
    "mutated_files": mutated_files,
    "command_lines": command_lines,
}
"""The part of the text that a file of figures fills -> how."""


if __name__ == "__main__":
    main()
