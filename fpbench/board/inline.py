"""A figure inside the page: only shapes and words of the SVG are let through, in the page's own colours."""

import re
from xml.etree import ElementTree

ELEMENTS = {"svg", "g", "defs", "clipPath", "path", "rect", "use", "text", "tspan"}
ATTRIBUTES = {"d", "x", "y", "width", "height", "transform", "viewBox", "style", "clip-path"}
# Ink follows the page's, paper is the page's.
COLOURS = {"fill: #ffffff": "fill: none", "#000000": "currentColor", "#cccccc": "var(--line)"}


def inlined(svg: bytes, prefix: str, alternative: str) -> str:
    """An ``svg`` element for the page, whose ids are its own.

    Args:
        svg: the file that matplotlib wrote.
        prefix: of its ids, unique in the page.
        alternative: what it shows, in words.
    """
    root = ElementTree.fromstring(svg)
    used = set(re.findall(r"(?:url\(#|href=\"#)([\w.-]+)", svg.decode()))
    found = _allowed(root, prefix, used)
    if found is None:
        raise ValueError("expected an svg element")
    for name in ("width", "height"):
        found.attrib.pop(name, None)
    found.attrib |= {"role": "img", "aria-label": alternative}
    return ElementTree.tostring(found, encoding="unicode", short_empty_elements=False)


def _allowed(element: ElementTree.Element, prefix: str, used: set[str]) -> ElementTree.Element | None:
    """A copy with what is allowed; ``None`` if the element itself is not."""
    name = element.tag.rpartition("}")[2]
    if name not in ELEMENTS:
        return None
    kept = {}
    for attribute, value in element.attrib.items():
        attribute = attribute.rpartition("}")[2]
        if attribute == "id" and value in used:
            kept["id"] = f"{prefix}-{value}"
        elif attribute == "href" and value.startswith("#"):
            kept["href"] = f"#{prefix}-{value[1:]}"
        elif attribute in ATTRIBUTES:
            kept[attribute] = _ours(value, prefix)
    copy = ElementTree.Element(name, kept)
    copy.text = element.text if name in ("text", "tspan") else None
    for child in element:
        if (part := _allowed(child, prefix, used)) is not None:
            copy.append(part)
    return copy


def _ours(value: str, prefix: str) -> str:
    """A style or a shape in the page's colours and typeface, with the page's ids."""
    for theirs, ours in COLOURS.items():
        value = value.replace(theirs, ours)
    value = re.sub(r"font-family:[^;]*;?", "", value).replace("url(#", f"url(#{prefix}-")
    return " ".join(value.split())
