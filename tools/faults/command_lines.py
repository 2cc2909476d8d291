"""Put together command lines at random; count those that end in anything but an answer or a line.

python tools/faults/command_lines.py -o tools/faults/figures/command_lines.json

Only commands that measure nothing are called, and options that measure are refused before they do.
Status 0 is wrong where an option or argument has a value that no command can take. A second call
with the same file goes on where the first one stopped.
"""

import argparse
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import made_up_runs
from in_process import call, raw_controls, standing_in
from tally import Tally, save

BAD = (
    *("", " ", ",", "a,", ",,", "9" * 5000, "-1", "0", "1e400", "nan", "\x1b[31m", "\udcff"),
    *("a" * 300, "x" * 5000, "../..", "/dev/null/x", "mlp_d99999999999999999999_w1", "::error::x"),
    *("=HYPERLINK(1)", "\u202eabc", "[red]", "{}", "%s", "no such", "\n", "--", "\x01"),
)
"""Values that no option below can take."""
OPTIONS = {
    "list": ("--model", "--workload", "--grad-mode", "--batch-size", "--device", "--dtype"),
    "show": ("--reference", "--results"),
    "report": ("--format", "--results"),
    "runs": ("--results",),
    "gate": ("--alpha", "--correction", "--rules", "--baseline"),
    "history": ("--workload", "--grad-mode", "--fail-on-worse", "--renamed", "--commit-url"),
    "export": ("--verdicts",),
    "merge": ("--allow",),
    "predict": ("--fit", "--model", "--batch-size", "--workload", "--reference"),
    "run": ("--model", "--workload", "--threads", "--meter", "--shard", "--preset", "--config"),
    "compare": ("--base-python", "--model", "--preset"),
    "ci": ("--fail-on", "--model", "--preset", "--workload"),
}
ARGUMENTS = {
    "show": ("good.jsonl",),
    "report": ("good.jsonl", "-o", "page.html"),
    "gate": ("good.jsonl", "--baseline", "before.jsonl"),
    "history": ("good.jsonl",),
    "export": ("markdown", "good.jsonl"),
    "merge": ("good.jsonl", "--results", "merged"),
    "compare": ("--base", "no-such-revision"),
    "ci": ("--preset", "no such", "-o", "job"),
    "predict": ("--preset", "no such"),
    "run": ("--preset", "no such"),
}
HARMLESS = {("runs", "--results"), ("show", "--results"), ("report", "--results")}
"""Folders that are not there: none is wrong to name where runs are listed, or a file is given."""


def drawn(draw: random.Random) -> tuple[list[str], bool]:
    """Return a command line, and whether it must be refused."""
    command = draw.choice([*OPTIONS])
    kind = draw.random()
    if kind < 0.05:
        return [draw.choice([value for value in BAD if not value.startswith("--")])], True
    if kind < 0.15:
        return [command, f"--{draw.choice(BAD)[:50] or 'x'}"], True
    option, value = draw.choice(OPTIONS[command]), draw.choice(BAD)
    words = [command, *ARGUMENTS.get(command, ())]
    if kind < 0.3 and command in ("show", "report", "gate", "export", "history", "merge"):
        place = 2 if command == "export" else 1
        words[place] = value
        return words, not value.startswith("-")
    if kind < 0.35:
        return [*words, option], True
    needs_refusal = (command, option) not in HARMLESS and (command, option, value) not in {
        ("history", "--renamed", "=HYPERLINK(1)")
    }
    return [*words, option, value], needs_refusal


def wrong_with(words: Sequence[str], *, refused: bool) -> str:
    """Return what is wrong with the answer to a command line, or nothing."""
    answer = call(words)
    if answer.wrong:
        return answer.wrong
    if raw_controls(answer.out + answer.err):
        return f"raw control character: {raw_controls(answer.out + answer.err)}"
    if refused and answer.status == 0:
        return "wrong exit 0"
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="at most, then go on later")
    parser.add_argument("-o", "--output", type=Path, required=True, help="goes on from there")
    given = parser.parse_args()
    output = given.output.resolve()
    tally = Tally.saved(output, "command lines")

    def keep() -> None:
        save(output, [tally])

    with tempfile.TemporaryDirectory(prefix="lines-") as top, standing_in(Path(top, "a", "b")):
        made_up_runs.seal(Path("good.jsonl"), made_up_runs.rows())
        made_up_runs.seal(Path("before.jsonl"), made_up_runs.rows(commit=2))
        for number in tally.numbers(given.count, seconds=given.seconds, keep=keep):
            words, refused = drawn(random.Random(f"{given.seed} {number}"))
            wrong = wrong_with(words, refused=refused)
            if wrong:
                shown = " ".join(word[:40] for word in words)
                tally.add(wrong.partition(":")[0], f"{shown!a}: {wrong}")
    keep()


if __name__ == "__main__":
    main()
