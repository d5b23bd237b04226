"""`[rank 2]`: says whose an output is, before a line and inside a display. Pure."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ddp_magic.display.rank_names import rank_names

# The basic colors that are readable on white and on black, without the red of errors. A label
# names its rank too: two ranks may have the same color.
_ANSI = (36, 32, 35, 33, 34)
_CSS = ("#258f8f", "#2e8b3d", "#a64ca6", "#a87b00", "#4078c0")
_LABEL = re.compile(r"^\[rank (\d+)\]", re.MULTILINE)
_COLORS = re.compile(r"\x1b\[([\d;]{0,100})m")
_ESCAPES = re.compile(r"\x1b\[[0-9;:?]{0,100}[A-Za-z]")

# As JupyterLab shows text; elsewhere the size is that of the page.
FONT = "font-family:monospace;font-size:var(--jp-code-font-size)"

IMAGES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/webp": ".webp",
    "image/svg+xml": ".svg",
}
_NAMESPACES = {"xmlns": "http://www.w3.org/2000/svg", "xmlns:xlink": "http://www.w3.org/1999/xlink"}
# What a front end shows instead of an image, if it is there.
_BEFORE_IMAGES = {"text/html", "text/markdown", "text/latex"}
_WITH_PLACE = {*IMAGES, *_BEFORE_IMAGES, "text/plain"}


def label(ranks: Iterable[int]) -> str:
    """Return the label of an output of these ranks: `[rank 2]`, `[ranks 0-3]`."""
    return f"[{rank_names(ranks)}]"


def colored(text: str) -> str:
    """Return text with the labels of single ranks in their colors.

    Args:
        text: Lines that begin with their labels.
    """
    if "\x1b[" in text:
        *lines, rest = text.split("\n")
        text = "\n".join([*map(_closed, lines), rest])
    return _LABEL.sub(lambda found: f"\x1b[{_of(found[1], _ANSI)}m{found[0]}\x1b[0m", text)


def _closed(line: str) -> str:
    """Return a line that leaves no color on: the next one may be another rank's."""
    colors = _COLORS.findall(line)
    return line if not colors or colors[-1].strip("0;") == "" else f"{line}\x1b[0m"


def without_escapes(text: str) -> str:
    """Return text without escape sequences."""
    return _ESCAPES.sub("", text)


def as_html(text: str) -> str:
    """Return text as HTML, with the labels in their colors, without escape sequences."""
    escaped = html.escape(without_escapes(text))
    painted = _LABEL.sub(
        lambda found: f'<span style="color:{css_color(int(found[1]))}">{found[0]}</span>', escaped
    )
    return f'<pre style="margin:0;padding:1px 8px">{painted}</pre>'


def _of(rank: int | str, colors: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- of the colors' type
    return colors[int(rank) % len(colors)]


def css_color(rank: int) -> str:
    """Return the color of a rank in HTML."""
    return str(_of(rank, _CSS))


def has_place(data: Mapping[str, Any]) -> bool:
    """Return whether a display has a place for a label in each form that a front end may choose."""
    return bool(data) and data.keys() <= _WITH_PLACE


def labelled(
    data: Mapping[str, Any], metadata: Mapping[str, Any], rank: int, words: str = ""
) -> dict[str, Any]:
    """Return a display with its label inside, in each of its forms.

    An image is shown as HTML, with the label above it. It stays in the display as an image too,
    for tools that look for one.

    Args:
        data: What is displayed, by MIME type; it has a place for a label.
        metadata: Its metadata: the size of an image.
        rank: Whose it is.
        words: What to say after the label.
    """
    name = f"{label([rank])} {words}".rstrip()
    found = dict(data)
    style = f"padding:1px 8px;{FONT};color:{css_color(rank)}"
    head = f'<div style="{style}">{html.escape(name)}</div>\n'
    if (kind := image_of(data)) is not None and data.keys().isdisjoint(_BEFORE_IMAGES):
        found["text/html"] = head + _image(kind, data, metadata)
    elif "text/html" in data:
        found["text/html"] = head + as_text(data["text/html"])
    if "text/markdown" in data:
        found["text/markdown"] = f"`{name}`\n\n{as_text(data['text/markdown'])}"
    if "text/latex" in data:
        found["text/latex"] = f"{name} {as_text(data['text/latex'])}"
    plain = as_text(data.get("text/plain", ""))
    found["text/plain"] = name + ("\n" if "\n" in plain else " ") + plain if plain else name
    return found


def image_of(data: Mapping[str, Any]) -> str | None:
    """Return the MIME type of the image that a display has; None if it has none."""
    return next((kind for kind in IMAGES if kind in data), None)


def image_bytes(kind: str, content: object) -> bytes:
    """Return the content of an image's file."""
    text = as_text(content)
    if kind == "image/svg+xml":
        return _with_namespaces(text).encode()
    return base64.b64decode(text)


def _image(kind: str, data: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    content = "".join(as_text(data[kind]).split())
    if kind == "image/svg+xml":  # as an image, it is shown in a notebook that is not trusted too
        content = base64.b64encode(image_bytes(kind, data[kind])).decode()
    described = html.escape(as_text(data.get("text/plain", "")), quote=True)
    own = metadata.get(kind)
    size = own if isinstance(own, Mapping) else metadata
    sides = [f'{side}="{size[side]:g}"' for side in ("width", "height") if _is_number(size, side)]
    style = "max-width:100%;height:auto"
    if size.get("needs_background") in ("light", "dark"):
        style += f";background:{'white' if size['needs_background'] == 'light' else 'black'}"
    words = " ".join([f'alt="{described}"', *sides, f'style="{style}"'])
    return f'<img src="data:{kind};base64,{content}" {words}>'


def _with_namespaces(svg: str) -> str:
    """Return SVG with the namespaces that it needs as an image; within a page it needs none."""
    for name, uri in _NAMESPACES.items():
        prefix = name.partition(":")[2]
        if (not prefix or f"{prefix}:" in svg) and not re.search(rf"\b{name}\s*=", svg):
            svg = re.sub(r"<svg(?=[\s/>])", f'<svg {name}="{uri}"', svg, count=1)
    return svg


def _is_number(found: Mapping[str, Any], name: str) -> bool:
    return isinstance(found.get(name), (int, float))


def as_text(value: object) -> str:
    """Return a value of a display as text: notebook files have lists of lines."""
    return "".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
