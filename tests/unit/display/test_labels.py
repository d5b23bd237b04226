"""Labels: `[rank 2]` before lines, and inside displays in each form that a front end may show."""

from __future__ import annotations

import base64
import itertools
import re
from typing import Any

import pytest

from ddp_magic.display.labels import (
    as_html,
    colored,
    css_color,
    has_place,
    image_bytes,
    image_of,
    label,
    labelled,
)

PNG = base64.b64encode(b"\x89PNG").decode() + "\n"  # with the newline that IPython adds
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><title>é</title></svg>'


@pytest.mark.parametrize(
    ("ranks", "words"),
    [([2], "[rank 2]"), (range(4), "[ranks 0-3]"), ([0, 2, 3], "[ranks 0, 2-3]")],
)
def test_whose_an_output_is(ranks: Any, words: str) -> None:
    assert label(ranks) == words


def test_a_color_ends_with_its_line() -> None:
    """The next line is another rank's. An unfinished line may go on in its color."""
    text = "[ranks 0-1] \x1b[31mred\n[rank 1] \x1b[1;32mok\x1b[0m\n[ranks 0-1] \x1b[31mopen"
    first, second, last = colored(text).split("\n")
    assert first.endswith("red\x1b[0m")
    assert second.endswith("ok\x1b[0m")
    assert last.endswith("open")


def test_labels_have_colors_that_a_terminal_knows() -> None:
    """At the beginning of lines; those of all ranks, and what a rank prints, stay as they are."""
    text = "[rank 0] a [rank 1]\n[ranks 0-1] b\n[rank 1] c\n"
    painted = colored(text)
    assert re.sub(r"\x1b\[\d+m", "", painted) == text
    assert re.findall(r"\x1b\[(\d+)m(\[rank \d+\])\x1b\[0m", painted) == [
        ("36", "[rank 0]"),
        ("32", "[rank 1]"),
    ]


def test_text_as_html() -> None:
    """Labels have the colors of displays; what a rank has colored is readable."""
    markup = as_html("[rank 1] <b>\x1b[31mred\x1b[0m [rank 0]\n")
    assert re.sub("<.*?>", "", markup) == "[rank 1] &lt;b&gt;red [rank 0]\n"
    assert markup.count("<span") == 1
    assert css_color(1) in markup


def test_neighboring_ranks_differ_in_color() -> None:
    colors = [colored(f"[rank {rank}]") for rank in range(8)]
    codes = [re.findall(r"\[(\d+)m", color)[0] for color in colors]
    assert all(a != b for a, b in itertools.pairwise(codes))
    assert "31" not in codes  # the color of errors


def test_an_image_is_shown_below_its_label() -> None:
    """As HTML; it is there as an image too."""
    found = labelled({"image/png": PNG, "text/plain": "<Figure>"}, {}, 1)
    assert found["image/png"] == PNG
    label_, image = found["text/html"].splitlines()
    assert ">[rank 1]<" in label_
    assert f'src="data:image/png;base64,{PNG.strip()}"' in image
    assert 'alt="&lt;Figure&gt;"' in image
    assert found["text/plain"] == "[rank 1] <Figure>"


@pytest.mark.parametrize(
    "metadata", [{"image/png": {"width": 320, "height": 240}}, {"width": 320, "height": 240}]
)
def test_the_size_of_an_image_stays(metadata: dict[str, Any]) -> None:
    """Of a retina figure, say."""
    found = labelled({"image/png": PNG}, metadata, 1)
    assert 'width="320" height="240"' in found["text/html"]


def test_an_svg_is_an_image_too() -> None:
    """Untrusted notebooks show no other SVG."""
    found = labelled({"image/svg+xml": SVG}, {}, 0)
    content = re.findall(r"svg\+xml;base64,([^\"]+)", found["text/html"])[0]
    assert base64.b64decode(content).decode() == SVG


@pytest.mark.parametrize(
    ("start", "names"),
    [
        ("<svg>", ["xmlns"]),
        ("<?xml version='1.0'?>\n<svg width='5'><use xlink:href='#a'/>", ["xmlns", "xmlns:xlink"]),
        ("<svg xmlns = 'u'>", []),
        ("<s:svg xmlns:s='u'>", []),
    ],
)
def test_an_svg_has_the_namespaces_that_an_image_needs(start: str, names: list[str]) -> None:
    """Within a page it is shown without; as an image, or a file, it would be broken."""
    found = image_bytes("image/svg+xml", start).decode()
    added = re.findall(r' (xmlns[:\w]*)="http', found)
    assert sorted(added) == names
    assert re.sub(r' xmlns[:\w]*="http[^"]*"', "", found) == start


@pytest.mark.parametrize(
    ("data", "shown", "words"),
    [
        ({"text/html": "<b>"}, "text/html", "<b>"),
        ({"text/html": ["<b>", "x"]}, "text/html", "<b>x"),
        ({"text/markdown": "# a"}, "text/markdown", "`[rank 3] more`\n\n# a"),
        ({"text/latex": "$x$"}, "text/latex", "[rank 3] more $x$"),
        ({"text/latex": "$x$", "image/png": PNG}, "text/latex", "[rank 3] more $x$"),
        ({"text/plain": "a\nb"}, "text/plain", "[rank 3] more\na\nb"),
    ],
)
def test_each_form_has_the_label(data: dict[str, Any], shown: str, words: str) -> None:
    found = labelled(data, {}, 3, "more")
    assert found[shown].endswith(words)
    assert "[rank 3] more" in found[shown]
    assert "[rank 3] more" in found["text/plain"]
    assert ("text/html" in found) == ("text/html" in data)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"application/vnd.plotly.v1+json": {}, "text/html": "x"},
        {"application/json": {}, "text/plain": "x"},
        {"application/javascript": "x"},
    ],
)
def test_what_has_no_place_for_a_label(data: dict[str, Any]) -> None:
    """A front end may show a form that is not ours to change."""
    assert not has_place(data)


def test_which_image_a_display_has() -> None:
    assert image_of({"text/plain": "", "image/jpeg": ""}) == "image/jpeg"
    assert image_of({"text/html": ""}) is None
