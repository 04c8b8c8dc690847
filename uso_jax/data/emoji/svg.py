# SPDX-FileCopyrightText: uso_jax authors
# SPDX-License-Identifier: Apache-2.0
"""The drawings of icons: SVG that was parsed, checked against a list, and written anew.

The list holds what the published sets use. Nothing in it reads a file or an address, runs, or refers outside the icon.
"""

import re
from typing import Any
from xml.etree import ElementTree

from uso_jax.common.errors import InputError

MAX_BODY = 1 << 20  # characters; the largest published icon has 406,000
MAX_DEPTH = 32  # published icons have 5
_MAX_UNITS = 1e5  # of a side
_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

_DRAWING = """
g defs symbol use path rect circle ellipse line polyline polygon linearGradient radialGradient stop clipPath mask
filter feBlend feColorMatrix feComposite feFlood feGaussianBlur feMerge feMergeNode feOffset
"""
_DESCRIPTION = """
id class d points x y x1 x2 y1 y2 cx cy r rx ry fx fy fr dx dy width height viewBox transform offset href
preserveAspectRatio gradientUnits gradientTransform spreadMethod clipPathUnits maskUnits maskContentUnits
filterUnits primitiveUnits in in2 result mode operator values type stdDeviation k1 k2 k3 k4 mask-type
flood-color flood-opacity color-interpolation-filters stop-color stop-opacity color fill fill-opacity fill-rule
clip-rule clip-path mask filter opacity paint-order stroke stroke-width stroke-opacity stroke-linecap
stroke-linejoin stroke-miterlimit stroke-dasharray stroke-dashoffset style
"""
_ELEMENTS, _ATTRIBUTES = frozenset(_DRAWING.split()), frozenset(_DESCRIPTION.split())
_URL = re.compile(r"url\s*\(", re.IGNORECASE)
_INSIDE = re.compile(r"url\(#[^()\"']*\)")  # a reference to another part of the icon
_STYLE = re.compile(r"mask-type:\s*(alpha|luminance);?")


def document(body: str, view: tuple[Any, Any, Any, Any], size: int) -> str:
    """Return an SVG document of `size` x `size` pixels that shows an icon.

    Args:
      body: what the icon's svg element contains.
      view: left, top, width and height of the icon.
      size: of the image, in pixels.

    Raises:
      InputError: the body is not XML, or holds something that is not on the list; the message begins with a verb.
    """
    # The parser of defusedxml refuses entities and document types.
    from defusedxml import DefusedXmlException
    from defusedxml import ElementTree as Defused

    numbers = all(type(side) in (int, float) and abs(side) <= _MAX_UNITS for side in view)
    if not numbers or min(view[2:]) <= 0:
        raise InputError(f"has the size {view}, which is not one")
    if len(body) > MAX_BODY:
        raise InputError(f"has {len(body)} characters; the limit is {MAX_BODY}")
    # resvg accepts the prefix of links without a declaration in the body, as published icons are written.
    outer = f'<svg xmlns="{_SVG[1:-1]}" xmlns:xlink="{_XLINK[1:-1]}">{body}</svg>'
    try:
        root = Defused.fromstring(outer)
    except (ElementTree.ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"cannot be rendered ({error})") from error
    root.attrib |= {"width": str(size), "height": str(size), "viewBox": " ".join(map(str, view))}
    root.tag, level = f"{_SVG}svg", [root]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in parent]
        for element in level:
            _check(element)
    if level:
        raise InputError(f"is nested more than {MAX_DEPTH} levels deep")
    ElementTree.register_namespace("", _SVG[1:-1])
    return ElementTree.tostring(root, encoding="unicode")


def _check(element: ElementTree.Element) -> None:
    """Raise an InputError if an element or an attribute is not on the list. Text is removed: it shows nothing."""
    name = element.tag.removeprefix(_SVG) if isinstance(element.tag, str) else "!"
    if name not in _ELEMENTS:
        raise InputError(f"holds <{name[:40]}>: external content, text and scripts are not allowed")
    element.text = element.tail = None
    found = {key.removeprefix(_XLINK): value for key, value in element.attrib.items()}
    for key, value in found.items():
        allowed = key in _ATTRIBUTES and not _URL.search(_INSIDE.sub("", value)) and "\\" not in value
        if key == "href":
            allowed = value.startswith("#")
        if key == "style":
            allowed = bool(_STYLE.fullmatch(value))
        if not allowed:
            raise InputError(f"holds {key[:40]}={value[:40]!r}: external content and scripts are not allowed")
    element.attrib.clear()
    element.attrib.update(found)
