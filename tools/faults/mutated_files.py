"""Change runs at random under a seal that fits, bisections and TOML files; ask every reader.

python tools/faults/mutated_files.py -o tools/faults/figures/mutated_files.json

A run that is refused must be refused in one line, and by every command; one that is taken must not
break any. Whatever is asked, a traceback, a hang, and status 0 for a refused file are wrong. A
second call with the same file goes on where the first one stopped.
"""

import argparse
import copy
import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import made_up_bisections
import made_up_runs
from in_process import call, raw_controls, standing_in
from tally import Tally, save

from gradbench.errors import StoreError
from gradbench.store import bisections
from gradbench.store.jsonl import load

EVIL: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 0.5, -0.0, 10**18, 2**63, -(2**63), 10**400),
    *(float("nan"), float("inf"), float("-inf"), "", " ", "x", "\x1b[31m", "\ud800", "../../x"),
    *("a" * 2000, [], [[]], {}, [0], [1, "x"], {"": 1}, {"a": {"b": []}}, [None] * 12, "1e400"),
)
RAW = (b"9" * 5000, b"1e400", b"-1e400", b"[" * 5000 + b"]" * 5000, b"NaN", b"0x1", b"'x'", b"")
"""Text in place of a number, as a file may have it."""
TEXTS = ("\x1b]0;x\x07", "::error::x", "</script><script>alert(1)</script>", "\u202ex", "a\nb\x00")
"""Words that most fields of a bisection may hold, and that are to be shown as words."""

READERS: tuple[tuple[str, ...], ...] = (
    ("show", "run.jsonl"),
    ("gate", "--baseline", "good.jsonl", "run.jsonl"),
    ("gate", "--baseline", "run.jsonl", "good.jsonl", "--json"),
    ("history", "run.jsonl", "good.jsonl", "--json"),
    ("export", "markdown", "run.jsonl"),
)
MORE: tuple[tuple[str, ...], ...] = (
    ("show", "run.jsonl", "--verbose", "--scaling"),
    ("runs", "--results", "."),
    ("history", "."),
    ("merge", "run.jsonl", "good.jsonl", "--results", "merged"),
    ("gate", "--save-baseline", "saved.jsonl", "run.jsonl"),
    ("pack", "run.jsonl", "-o", "pack"),
    *(("export", name, "run.jsonl") for name in ("annotations", "junit", "bencher", "pyperf")),
    *(
        ("export", name, "run.jsonl", "-o", f"out-{name}")
        for name in ("asv", "otava", "github-action-benchmark")
    ),
)
PAGE = ("report", "run.jsonl", "good.jsonl", "-o", "page.html")

BISECTION = Path("results/bisections/changed.json")
GO_ON = ("compare", "--resume", "changed", "--model", made_up_bisections.MODEL, "--budget", "1e-9")
"""Nothing is begun within that budget: what is there is read and shown."""
OF_BISECTIONS: tuple[tuple[str, ...], ...] = (
    (*GO_ON, "--all"),
    (*GO_ON, "--json"),
    ("show", str(BISECTION)),
    ("history", str(BISECTION), "good.jsonl"),
    ("gate", "--baseline", str(BISECTION), "good.jsonl"),
)

TOML = """\
about = "a matrix"

[plan]
budget_s = 1.0
warmup_s = 0.1
seed = 3
min_rounds = 5

[[matrix]]
models = ["mlp_tiny"]
workloads = ["inference", "training"]
batch_sizes = [8, 32]

[[matrix]]
models = ["cnn_small", "mlp_d2_w8"]
grad_modes = ["no_grad", "inference_mode"]
dtypes = ["bfloat16"]
threads = [1]
"""
WORDS = (
    *("nan", "inf", "-inf", "-1", "0", "9" * 5000, "1e999", "true", "[]", "{}", '""', '" "'),
    *("[" * 3000, '"\\u001b[31m"', "1979-05-27", '["x"]', "[[matrix]]", "[plan]", "= =", '"""'),
    *("{a = {b = {}}}", "\x00", "\x1b", "\ufeff", "0x7fffffffffffffffffff", "'mlp_d9_w9'", "#"),
)


def mutated(rows: Sequence[dict[str, Any]], draw: random.Random) -> list[dict[str, Any] | bytes]:
    """Return rows of which one to three places are other than a run's."""
    changed: list[Any] = copy.deepcopy(list(rows))
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        number = draw.randrange(len(changed))
        if isinstance(changed[number], bytes):
            continue
        kind = draw.random()
        if kind < 0.04:
            del changed[number]
        elif kind < 0.08:
            changed.insert(draw.randrange(len(changed) + 1), copy.deepcopy(changed[number]))
        elif kind < 0.11:
            changed[number] = draw.choice((b"[]", b"null", b"{", b"\xff", b'"x"', b"{}"))
        elif kind < 0.17:
            changed[number] = in_raw(changed[number], draw)
        else:
            holder, key = place_in(changed[number], draw)
            if draw.random() < 0.15:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(draw.choice(EVIL))
        if not changed:
            break
    return [encoded(row) for row in changed]


def encoded(row: dict[str, Any] | bytes) -> bytes:
    return row if isinstance(row, bytes) else json.dumps(row, separators=(",", ":")).encode()


def in_raw(row: dict[str, Any], draw: random.Random) -> bytes:
    """Return a row's line with text in place of one of its values."""
    holder, key = place_in(row, draw)
    holder[key] = "@here@"
    return encoded(row).replace(b'"@here@"', draw.choice(RAW))


def place_in(row: dict[str, Any], draw: random.Random) -> tuple[Any, Any]:
    """Return a list or object in a row, and an index or key of it, each place as likely."""
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        keys = value if isinstance(value, dict) else range(len(value))
        for key in list(keys):
            places.append((value, key))
            if isinstance(value[key], dict | list):
                walk(value[key])

    walk(row)
    return draw.choice(places)


def attack_run(draw: random.Random, *, page: bool) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with one changed run."""
    path = made_up_runs.seal(Path("run.jsonl"), mutated(made_up_runs.rows(), draw))
    refused = ""
    try:
        load(path)
    except StoreError as error:
        refused = str(error)
    if "\n" in refused:
        yield "refused in several lines", refused[:200]
    yield "refused" if refused else "taken", ""
    taken = (*READERS, *MORE, *([PAGE] if page else []))
    yield from asked([draw.choice(READERS[:3])] if refused else taken, refused)


def asked(commands: Iterable[Sequence[str]], refused: str) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with commands that read a file, which may have been refused."""
    for arguments in commands:
        answer = call(arguments)
        words = f"{' '.join(arguments)}: {answer.wrong} {refused[:120]}"
        if answer.wrong:
            yield answer.wrong.partition(":")[0], words
        elif refused and answer.status == 0:
            yield "wrong exit 0", words
        elif raw_controls(answer.out + answer.err):
            yield "raw control character", words


def attack_bisection(row: dict[str, Any], draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with one changed bisection."""
    BISECTION.write_bytes(changed_object(row, draw))
    refused = ""
    try:
        bisections.load(BISECTION)
    except StoreError as error:
        refused = str(error)
    if "\n" in refused:
        yield "refused in several lines", refused[:200]
    yield "refused" if refused else "taken", ""
    yield from asked([draw.choice(OF_BISECTIONS)] if refused else OF_BISECTIONS, refused)
    for page in Path("reports").glob("*.html"):
        if found := raw_controls(page.read_text("utf-8", errors="replace")):
            yield "raw control character", f"{page}: {found}"
        page.unlink()


def changed_object(row: dict[str, Any], draw: random.Random) -> bytes:
    """Return a JSON file of which one to three places are other than they were."""
    changed = copy.deepcopy(row)
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        holder, key = place_in(changed, draw)
        if draw.random() < 0.15:
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw.choice((*EVIL, *TEXTS)))
    return in_raw(changed, draw) if draw.random() < 0.05 else encoded(changed)


def attack_toml(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Yield what went wrong with one changed TOML file."""
    text = TOML
    for _ in range(draw.choice((1, 1, 2, 3))):
        kind, at = draw.random(), draw.randrange(len(text))
        if kind < 0.3:
            text = text[:at] + text[at + draw.randrange(1, 6) :]
        elif kind < 0.5:
            text = text[:at] + draw.choice(WORDS) + text[at:]
        else:
            lines = text.split("\n")
            number = draw.randrange(len(lines))
            name, sign, _ = lines[number].partition("=")
            lines[number] = f"{name}= {draw.choice(WORDS)}" if sign else draw.choice(WORDS)
            text = "\n".join(lines)
    Path("bench.toml").write_text(text, "utf-8")
    answer = call(("list", "--config", "bench.toml"))
    if answer.wrong:
        yield answer.wrong.partition(":")[0], f"{answer.wrong} of {text[:300]!r}"
    if raw_controls(answer.out + answer.err):
        yield "raw control character", repr(text[:300])
    yield "refused" if answer.status else "taken", ""


def has_page(number: int, every: int) -> bool:
    return every > 0 and number % every == 0


def repeated(
    tally: Tally,
    attack: Callable[[int], Iterator[tuple[str, str]]],
    count: int,
    *,
    seconds: float,
    keep: Callable[[], object],
) -> None:
    for number in tally.numbers(count, seconds=seconds, keep=keep):
        for kind, words in attack(number):
            tally.add(kind, f"#{number} {words}" if words else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--bisections", type=int, default=1000)
    parser.add_argument("--toml", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=3600, help="for each kind, at most")
    parser.add_argument("--pages", type=int, default=20, help="of one in so many runs; 0: of none")
    parser.add_argument("-o", "--output", type=Path, required=True, help="goes on from there")
    given = parser.parse_args()
    output = given.output.resolve()
    names = ("runs", "bisections", "TOML files")
    runs, of_bisections, toml = (Tally.saved(output, name) for name in names)

    def keep() -> None:
        save(output, [runs, of_bisections, toml])

    def draw(kind: str, number: int) -> random.Random:
        return random.Random(f"{given.seed} {kind} {number}")

    with tempfile.TemporaryDirectory(prefix="mutated-") as folder, standing_in(Path(folder)):
        made_up_runs.seal(Path("good.jsonl"), made_up_runs.rows(factor=1.1, commit=2))
        repeated(
            runs,
            lambda number: attack_run(draw("run", number), page=has_page(number, given.pages)),
            given.runs,
            seconds=given.seconds,
            keep=keep,
        )
        BISECTION.parent.mkdir(parents=True)
        made_up_bisections.make_repository(Path())
        row = made_up_bisections.row_of(Path())
        repeated(
            of_bisections,
            lambda number: attack_bisection(row, draw("bisection", number)),
            given.bisections,
            seconds=given.seconds,
            keep=keep,
        )
        repeated(
            toml,
            lambda number: attack_toml(draw("TOML", number)),
            given.toml,
            seconds=given.seconds,
            keep=keep,
        )
    keep()


if __name__ == "__main__":
    main()
