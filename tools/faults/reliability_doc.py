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
        name: "\n".join(write(json.loads((FIGURES / f"{name}.json").read_text("utf-8"))))
        for name, write in SECTIONS.items()
    }
    sys.stdout.write(TEXT.read_text("utf-8").format(**sections))


def kills(found: Any) -> Iterator[str]:
    low, high = found["loads"]
    yield f"{found['date']}, {found['cores']} cores, other work on them: load {low} to {high}."
    yield ""
    yield "| killed | times | lost | doubled | lived on for 2 s | slowest end | left | hangs |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in found["counts"]:
        yield (
            f"| {row['victim']} | {row['kills']} | {row['lost']} | {row['doubled']} "
            f"| {row['left_after_2_s']} | {row['slowest_s']:.2f} s | {row['files_left']} "
            f"| {row['hangs']} |"
        )


def interrupts(found: Any) -> Iterator[str]:
    low, high = found["loads"]
    yield f"{found['date']}, load {low} to {high}."
    yield ""
    yield "| command | times | tracebacks | of these Python's own | processes left | files left |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for name, row in found["counts"].items():
        keys = ("interrupted", "tracebacks", "of Python's start", "processes left", "files left")
        yield f"| {name} | " + " | ".join(str(row[key]) for key in keys) + " |"


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


SECTIONS: dict[str, Callable[[Any], Iterator[str]]] = {
    "kills": kills,
    "interrupts": interrupts,
    "misbehaving": misbehaving,
}
"""The part of the text that a file of figures fills -> how."""


if __name__ == "__main__":
    main()
