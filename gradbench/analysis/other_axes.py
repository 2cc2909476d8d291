"""What a run says of axes beside the grad mode, in sentences: checkpointing, autocast, compile."""

from ..experiment.matrix import Block
from ..plurals import counted
from . import checkpointing, compilations, format_units
from .run_view import View


def sentences(view: View) -> list[str]:
    """Return a sentence a cell or block that has another value than the default."""
    return [*checkpointing.sentences(view), *casts(view), *compilations.sentences(view)]


def casts(view: View) -> list[str]:
    """Return for each block under autocast how many copies the modes make, and their bytes."""
    by_block: dict[Block, list[str]] = {}
    for cell, breakdown in view.run.breakdowns.items():
        if cell.autocast != "off":
            most = format_units.size(max(breakdown.timeline.get("casts") or (0,)))
            at_peak = format_units.size(breakdown.parts.get("casts", 0))
            figures = f"{cell.grad_mode} {counted(breakdown.casts, 'cast')}, {most} ({at_peak})"
            by_block.setdefault(cell.block, []).append(figures)
    return [
        f"autocast: casts in a step, their bytes at once at most (at the peak): {block}: "
        f"{'; '.join(figures)}"
        for block, figures in by_block.items()
    ]
