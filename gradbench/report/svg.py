"""A matplotlib figure as inline SVG: in the page's colours, its marks tied to their cells."""

import re
from io import StringIO
from typing import Final

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from .figures import PAGE

_LINK: Final = re.compile(r'<a xlink:href="cell:(\d+)\|([^"]*)"[^>]*>(.*?)</a>', re.DOTALL)
_COLOURS: Final = {
    colour: f"var(--{name})" if name != "ink" else "currentColor"
    for name, colour in PAGE.names().items()
}
_COLOUR: Final = re.compile("|".join(map(re.escape, _COLOURS)))


def inline(figure: Figure, *, mark: str, label: str) -> Markup:
    """Return the figure, drawn in the theme `PAGE`, as an ``<svg>`` element.

    ``mark`` keeps its ids apart from other figures', ``label`` is its name for who cannot see it.
    What was tagged (`figures.style.tags`) becomes a group with the number of its cell and a title.
    """
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": mark, "svg.fonttype": "none", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    drawn = buffer.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r"<!--.*?-->\s*", "", drawn, flags=re.DOTALL)  # the text that follows, again
    title = Markup('<svg viewBox="{}" role="img" aria-label="{}">')
    viewbox = re.search(r'viewBox="([^"]*)"', drawn)
    assert viewbox is not None
    drawn = str(title.format(viewbox[1], label)) + drawn[drawn.index(">") + 1 :]
    drawn = re.sub(r"font-family: [^;]*; ?", "", drawn)  # the page has its own
    drawn = _COLOUR.sub(lambda match: _COLOURS[match[0]], drawn)
    drawn = _LINK.sub(r'<g class="mark" data-cell="\1"><title>\2</title>\3</g>', drawn)
    drawn = re.sub(r'(<[a-zA-Z][^<>]*?\s)id="', rf'\g<1>id="{mark}-', drawn)
    drawn = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{mark}-", drawn)
    drawn = re.sub(r">\s+<", "><", drawn)
    drawn = re.sub(r"\s{2,}", " ", drawn)
    return Markup(drawn)  # noqa: S704 # matplotlib escapes the text that it draws
