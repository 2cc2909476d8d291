"""What making tokens takes: a setting's prefill, decode and generate side by side, by mode."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ..experiment.matrix import GRAD_MODES, OF_TOKENS, Cell
from ..records.allocations import makes_token
from ..records.measurements import Breakdown
from .run_view import TIME, View

FEWEST: Final = 3
"""Tokens but the last: the prompt's own keeps more, and two others say what one adds."""

BESIDE: Final = 2
"""Tokens by which a cache may be larger at a peak than a decode finds it: the one that is made."""


@dataclass(frozen=True, slots=True)
class Growth:
    """What each further token of a sequence adds to what is alive, and what is left behind."""

    token_bytes: float  # of everything
    cache_bytes: float  # of it, the cache's
    saved_bytes: float  # of it, what autograd saved for backward
    left_bytes: int  # when the sequence is over


@dataclass(frozen=True, slots=True)
class Making:
    """One setting under one mode: its cell of each workload that was set out."""

    mode: str
    cells: Mapping[str, Cell]
    cache_bytes: int | None  # that the last decode finds
    cache_at_peak_bytes: int | None  # where old keys and values lie beside new ones; else None
    growth: Growth | None


def settings(view: View) -> Iterator[tuple[str, list[Making]]]:
    """Yield the settings that make tokens, by name, each with its modes."""
    by_setting: dict[str, dict[str, dict[str, Cell]]] = {}
    for block, cells in view.blocks.items():
        if block.cell.workload in OF_TOKENS:
            modes = by_setting.setdefault(block.setting, {})
            for cell in cells:
                modes.setdefault(cell.grad_mode, {})[cell.workload] = cell
    for name, modes in by_setting.items():
        yield name, [_making(view, mode, modes[mode]) for mode in GRAD_MODES if mode in modes]


def _making(view: View, mode: str, cells: Mapping[str, Cell]) -> Making:
    breakdowns = {
        workload: view.run.breakdowns[cell]
        for workload, cell in cells.items()
        if cell in view.run.breakdowns
    }
    sequence = breakdowns.get("generate")
    cache_bytes = _found_by_decode(breakdowns)
    most = max((one.parts.get("cache", 0) for one in breakdowns.values()), default=0)
    grows = growth(sequence) if sequence is not None else None
    some = next(iter(cells.values()))
    token = (cache_bytes or 0) / (some.prompt + some.new_tokens - 1)
    token = max(token, grows.cache_bytes) if grows is not None else token
    return Making(
        mode=mode,
        cells=cells,
        cache_bytes=cache_bytes,
        cache_at_peak_bytes=most if cache_bytes and most > cache_bytes + BESIDE * token else None,
        growth=grows,
    )


def _found_by_decode(breakdowns: Mapping[str, Breakdown]) -> int | None:
    """Return the bytes of the cache that the last decode finds, by what was set out of it."""
    caches = {workload: one.timeline.get("cache") or (0,) for workload, one in breakdowns.items()}
    if "decode" in caches:
        return caches["decode"][0]
    if "generate" in caches:
        tokens = by_token(breakdowns["generate"])
        return tokens[-1].get("cache", 0) if tokens else None
    return max(caches["prefill"]) if "prefill" in caches else None


def by_token(breakdown: Breakdown) -> Sequence[Mapping[str, int]]:
    """Return what was alive after each token of a sequence but the last, by part."""
    ends = {
        phase: {part: sizes[place] for part, sizes in breakdown.timeline.items()}
        for place, phase in enumerate(breakdown.phases)
        if makes_token(phase)
    }
    return list(ends.values())[:-1]


def growth(breakdown: Breakdown) -> Growth | None:
    """Return what a token adds, from the second to the last but one; None of too few.

    A cache that slides lets go of the prompt once, and grows no more: then it is what tokens add
    after that.
    """
    tokens = by_token(breakdown)
    if len(tokens) < FEWEST:
        return None
    start = _after_a_fall(tokens)
    first, last, steps = tokens[start], tokens[-1], len(tokens) - 1 - start
    totals = [sum(sizes) for sizes in zip(*breakdown.timeline.values(), strict=True)]

    def rise(parts: Sequence[str]) -> float:
        return sum(last[part] - first[part] for part in parts) / steps

    return Growth(
        token_bytes=rise(list(breakdown.timeline)),
        cache_bytes=rise(["cache"]),
        saved_bytes=rise(["saved"]),
        left_bytes=totals[-1] - totals[0],
    )


def _after_a_fall(tokens: Sequence[Mapping[str, int]]) -> int:
    """Return the token from which on growth is steady: the second, or where bytes fell just once.

    At the last token it is too late to know what follows.
    """
    totals = [sum(parts.values()) for parts in tokens]
    falls = [n for n in range(2, len(totals)) if totals[n] < totals[n - 1]]
    return falls[0] if len(falls) == 1 and falls[0] < len(totals) - 1 else 1


def timed(view: View, making: Making, workload: str) -> Cell | None:
    """Return the cell of a workload, where its steps were timed."""
    cell = making.cells.get(workload)
    return cell if cell is not None and view.measurement(cell, TIME) is not None else None
