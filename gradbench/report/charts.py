"""The page's charts: which figures, under which headings, and how to read each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from ..analysis.run_view import View
from .figures import PAGE, forest, modules, peak_parts, scaling, timeline, tokens, tradeoff
from .svg import inline


@dataclass(frozen=True, slots=True)
class Chart:
    """One figure; ``reference`` is the mode for which it is shown, or "" for every one."""

    svg: Markup
    reference: str = ""


@dataclass(frozen=True, slots=True)
class Plate:
    """A heading, what stands under it, and how to read it."""

    name: str
    title: str
    reading: str
    charts: Sequence[Chart]


READING: Final = {
    "forest": (
        "Time and memory against a reference",
        "Each mark is the median of paired rounds over the reference's, its bar the 95% interval; "
        "the shaded band is what the block's own A/A control does not rule out, and a hollow "
        "mark is no difference beyond it. Memory is counted, repeats to the byte, and so has no "
        "interval.",
    ),
    "peak_parts": (
        "What the peak is made of",
        "Each bar is one mode's peak at its highest moment, split by what the bytes are for and "
        "scaled to the largest peak of its block; totals stand at the right. An outline is what "
        "the allocator had reserved, a tick what a run on fake tensors predicts. Workspaces that "
        "libraries keep are in no bar: they are the same in every mode, and named at the right.",
    ),
    "timeline": (
        "Memory through one step",
        "Left to right is one step, phase by phase; the height is every byte alive at that moment, "
        "by what it is for, without workspaces that libraries keep. Where the modes differ is what "
        "autograd keeps until backward.",
    ),
    "modules": (
        "Who saves most",
        "The modules whose operations saved most bytes for backward, largest first. Only a mode "
        "that records a graph saves anything: the other modes do not keep these bytes.",
    ),
    "scaling": (
        "Scaling",
        "Above, samples per second, below, peak memory, both over batch size, a size in the "
        "model's name, or a number of tokens, on log axes. Lines "
        "that meet at the right say that a mode's fixed cost is lost in the arithmetic; a cross at "
        "the foot is a batch that ran out of memory.",
    ),
    "tradeoff": (
        "Time against memory",
        "Each panel is a block, both axes over global_on's, where the lines cross: left is faster, "
        "down is smaller. Marks inside one another are modes that cost the same. A filled mark is "
        "the same cell checkpointed: what backward computes again is not kept, which saves memory "
        "and takes time. It is the quotient of two medians, for the two were not interleaved.",
    ),
    "tokens": (
        "Memory over tokens",
        "Left to right is one sequence, the height what is alive beyond what was there before it: "
        "after each token, and at the right end when all is over. A cache of keys and values grows "
        "with the tokens, or is taken at once; where autograd records, the graph of each token "
        "stays as well. Both end with the sequence: what is left at the right end is a leak.",
    ),
}


def plates(view: View, references: Sequence[str], *, mark: str) -> list[Plate]:
    """Return the charts that a run has something to draw for."""
    drawn = {
        "forest": [
            Chart(
                inline(
                    figure, mark=f"{mark}-forest-{name}", label=f"{READING['forest'][0]} {name}"
                ),
                name,
            )
            for name in references
            if (figure := forest(view, reference=name, theme=PAGE)) is not None
        ]
    }
    for name, draw in (
        ("peak_parts", peak_parts),
        ("timeline", timeline),
        ("modules", modules),
        ("scaling", scaling),
        ("tradeoff", tradeoff),
        ("tokens", tokens),
    ):
        figure = draw(view, theme=PAGE)
        if figure is not None:
            drawn[name] = [Chart(inline(figure, mark=f"{mark}-{name}", label=READING[name][0]))]
    return [Plate(name, *READING[name], charts) for name, charts in drawn.items() if charts]
