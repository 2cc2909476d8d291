"""What a run says of axes beside the grad mode, in sentences: checkpointing, autocast, compile."""

from ..experiment.matrix import Block
from ..records.run import Run
from . import checkpointing, compilations, format_units


def sentences(run: Run) -> list[str]:
    """Return a sentence a cell or block that has another value than the default."""
    return [*checkpointing.sentences(run), *casts(run), *compilations.sentences(run)]


def casts(run: Run) -> list[str]:
    """Return for each block under autocast how many copies the modes make, and their bytes."""
    by_block: dict[Block, list[str]] = {}
    for cell, breakdown in run.breakdowns.items():
        if cell.autocast != "off":
            nbytes = format_units.size(breakdown.parts.get("casts", 0))
            said = f"{cell.grad_mode} {breakdown.casts:,}, {nbytes}"
            by_block.setdefault(cell.block, []).append(said)
    return [
        f"casts of autocast in a step, and their bytes at the peak: {block}: {'; '.join(said)}"
        for block, said in by_block.items()
    ]
