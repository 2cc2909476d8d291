"""Write the results of docs/selfcheck.md from a saved self-check; what stands above them stays.

gradbench selfcheck --thorough && python tools/selfcheck_doc.py results/selfcheck.json [NOTE ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gradbench.records import selfcheck
from gradbench.records.selfcheck import SelfCheck

PAGE: Final = Path(__file__).parents[1] / "docs" / "selfcheck.md"
HEADING: Final = "## Results\n"
RESULTS: Final = """
Printed by `gradbench selfcheck --thorough`, written here by `tools/selfcheck_doc.py`:
{where}.{note}

| figure | value | target | | detail |
| --- | ---: | --- | --- | --- |
{rows}

A figure without a target is shown for comparison. A missed target is called missed.
"""


def with_results(page: str, saved: SelfCheck, notes: Sequence[str] = ()) -> str:
    """Return the page with the results of a self-check in the place of those that it has.

    Each of the ``notes`` is a paragraph beneath the machine.
    """
    above, heading, _ = page.partition(HEADING)
    if not heading:
        raise ValueError(f"the page has no heading {HEADING.strip()!r}")
    checks, facts = saved
    where = (
        f"{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, "
        f"Python {facts['python']}, load {facts['load_before']} before and {facts['load_after']} "
        f"after, {facts['when']}"
    )
    rows = "\n".join(
        f"| {check.name} | {check.words} | {check.target} | {check.verdict} | {check.detail} |"
        for check in checks
    )
    note = "".join(f"\n\n{words}" for words in notes)
    return above + heading + RESULTS.format(where=where, rows=rows, note=note)


def main() -> None:
    saved = selfcheck.load(Path(sys.argv[1]))
    if saved is None:
        sys.exit(f"{sys.argv[1]!r} is no self-check: run gradbench selfcheck first")
    PAGE.write_text(with_results(PAGE.read_text("utf-8"), saved, sys.argv[2:]), "utf-8")


if __name__ == "__main__":
    main()
