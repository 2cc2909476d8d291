"""A matplotlib figure as inline SVG: in the page's colours, its marks tied to their cells."""

from io import StringIO
from typing import Final
from xml.etree import ElementTree as ET

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from ..printable import printable
from .figures import PAGE

SVG: Final = "{http://www.w3.org/2000/svg}"
HREF: Final = "{http://www.w3.org/1999/xlink}href"
_COLOURS: Final = {
    colour: f"var(--{name})" if name != "ink" else "currentColor"
    for name, colour in PAGE.names().items()
}
# Characters that a name may have and XML may not (section 2.2 of its specification).
_NOT_XML: Final = dict.fromkeys(
    [*range(9), 11, 12, *range(14, 32), 0xFFFE, 0xFFFF], "\N{REPLACEMENT CHARACTER}"
)


def inline(figure: Figure, *, mark: str, label: str) -> Markup:
    """Return the figure, drawn in the theme `PAGE`, as an ``<svg>`` element.

    ``mark`` keeps its ids apart from other figures', ``label`` is its name for who cannot see it.
    What was tagged (`figures.style.tags`) becomes a group with the number of its cell and a title.
    """
    buffer = StringIO()
    with mpl.rc_context({"svg.hashsalt": mark, "svg.fonttype": "none", "text.parse_math": False}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    drawn = buffer.getvalue().translate(_NOT_XML)
    root = ET.fromstring(drawn)  # noqa: S314 # matplotlib's own; comments are left out
    for metadata in root.findall(f"{SVG}metadata"):
        root.remove(metadata)
    for element in root.iter():
        _adapt(element, mark)
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": printable(label)}
    return Markup(ET.tostring(root, encoding="unicode"))  # noqa: S704 # escaped by the line itself


def _adapt(element: ET.Element, mark: str) -> None:
    """Make an element one of HTML's, in the page's colours, with ids of this figure's own."""
    element.tag = element.tag.removeprefix(SVG)
    element.text, element.tail = (
        None if text is None or text.isspace() else printable(text)
        for text in (element.text, element.tail)
    )
    link = element.attrib.pop(HREF, "")
    element.attrib = {
        name: _value(name, " ".join(value.split()), mark) for name, value in element.attrib.items()
    }
    if link.startswith("#"):
        element.attrib = {"xlink:href": f"#{mark}-{link[1:]}", **element.attrib}
    elif link.startswith("cell:"):
        number, _, words = link.removeprefix("cell:").partition("|")
        element.tag, element.attrib = "g", {"class": "mark", "data-cell": number}
        title = ET.Element("title")
        title.text = printable(words)
        element.insert(0, title)


def _value(name: str, value: str, mark: str) -> str:
    if name == "id":
        return f"{mark}-{value}"
    if name == "style":
        return _style(value)
    return _COLOURS.get(value, value.replace("url(#", f"url(#{mark}-"))


def _style(text: str) -> str:
    """Return declarations in the page's colours, and without a font: the page has its own."""
    pairs = (declaration.strip().partition(": ") for declaration in text.split(";"))
    return "; ".join(
        f"{name}: {_COLOURS.get(value, value)}"
        for name, _, value in pairs
        if name and name != "font-family"
    )
