"""Write docs/selfcheck.md from a saved self-check.

gradbench selfcheck --thorough && python tools/selfcheck_doc.py results/selfcheck.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from gradbench.records import selfcheck
from gradbench.records.selfcheck import SelfCheck

TEXT = """\
# Validating the measurement: the self-check

`gradbench selfcheck` checks the measurement against known answers, by A/A tests and injected
slowdowns, on the machine it runs on:

- **Equal arms** must come out equal. A step is compared with itself, many times; a 95% interval
  should exclude 1 in about 5% of the trials, not more.
- **Injected slowdowns** must be detected. An empty loop of known cost follows the step on one side.
- **Memory** must match arithmetic, to the byte.
- The timing loop's own cost, what interleaving does to a ratio against long separate blocks, what
  `torch.utils.benchmark.Timer` says of the same step, and how far identical processes differ, with
  malloc pinned and not.
- The same tests, with Timer and with pytest-benchmark as they are used: two runs, one after the
  other.

It takes under two minutes; the trials of `--thorough` alone time for ten minutes. It runs nightly
(`.github/workflows/nightly.yml`). The results go to `results/selfcheck.json` and onto every page.
Exit status: 1 where memory differs from arithmetic, which no machine excuses. A missed target of
times says how well this machine measures at this moment, and may be met in the next hour: it is
called missed, and the status is 0, or 1 with `--strict`.
Of a GPU `gradbench selfcheck --device cuda` asks other questions:
[selfcheck-cuda.md](selfcheck-cuda.md).

## Results

Printed by `gradbench selfcheck --thorough`, written here by `tools/selfcheck_doc.py`:
{where}.{note}

| figure | value | target | | detail |
| --- | ---: | --- | --- | --- |
{rows}

A figure without a target is shown for comparison. A missed target is called missed.
"""


def page(saved: SelfCheck, notes: Sequence[str] = ()) -> str:
    """Return the page."""
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
    return TEXT.format(where=where, rows=rows, note=note)


def main() -> None:
    saved = selfcheck.load(Path(sys.argv[1]))
    if saved is None:
        sys.exit(f"{sys.argv[1]!r} is no self-check: run gradbench selfcheck first")
    Path("docs/selfcheck.md").write_text(page(saved, sys.argv[2:]), "utf-8")


if __name__ == "__main__":
    main()
