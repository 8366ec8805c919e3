"""Matplotlib figures as SVG elements that stand in an HTML page and take its colours and fonts."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SVG = "{http://www.w3.org/2000/svg}"
_LEFT_OUT = ("metadata", "style")
_COLORS = {"#000000": "var(--ink)", "#444444": "var(--ink)", "#dddddd": "var(--grid)"}
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def inline_svg(figure: Figure, name: str, description: str) -> str:
    """Return a figure as an ``<svg>`` element, the same bytes for the same figure.

    Black and grey lines and all text get the page's colours, so that they are readable on light
    and dark; texts stay texts, in the page's font.

    Args:
        figure: what to draw.
        name: begins the ids inside, so that they are unique in a page: letters, digits, ``-``.
        description: what it shows, for screen readers.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(_NOT_XML.sub("\ufffd", buffer.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in _LEFT_OUT or not isinstance(child.tag, str):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {
            key.rpartition("}")[2]: _value(key, value, name)
            for key, value in element.attrib.items()
        }
    _, _, width, _ = root.attrib["viewBox"].split()
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "role": "img",
        "aria-label": description,
        "style": f"max-width: {float(width):.0f}pt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _value(key: str, value: str, name: str) -> str:
    key = key.rpartition("}")[2]
    if key == "id":
        return f"{name}-{value}"
    if key == "href":
        return value.replace("#", f"#{name}-", 1) if value.startswith("#") else value
    value = value.replace("url(#", f"url(#{name}-")
    if key == "style":
        value = re.sub(r"font: ([^;']*?)([\d.]+px) [^;]*", r"font-size: \2", value)
        value = re.sub(r"font-family: [^;]*;?", "", value)
    for color, variable in _COLORS.items():
        value = value.replace(color, variable)
    return value
