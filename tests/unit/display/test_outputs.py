"""The outputs of a cell: what their text costs a front end."""

from __future__ import annotations

import contextlib
import io

import pytest

from ddp_magic.display.outputs import MAX_COLORED_LINES, Outputs
from tests.unit.fakes import FakeShell


class NotebookStdout(io.StringIO):
    """By its module it is known for a notebook's."""


NotebookStdout.__module__ = "ipykernel.iostream"


def _outputs() -> Outputs:
    return Outputs(FakeShell())  # type: ignore[arg-type]


def test_labels_have_colors_until_a_text_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """JupyterLab takes ten times as long for a line with a color, each time that it draws it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    lines = MAX_COLORED_LINES + 100
    with contextlib.redirect_stdout(NotebookStdout()) as stdout:
        outputs = _outputs()
        for _ in range(2):
            for number in range(lines):
                outputs.write(f"[rank 0] {number}\n")
            outputs.display({"text/plain": "a figure"}, {}, "f", update=False)  # then a new text
    written = stdout.getvalue().splitlines()
    colored = [number for number, line in enumerate(written) if "\x1b" in line]
    assert colored == [
        *range(MAX_COLORED_LINES),
        *range(lines, lines + MAX_COLORED_LINES),
    ]


def test_the_length_of_a_text_is_known() -> None:
    """Of the one to which more is added; a terminal never draws it again."""
    outputs = _outputs()
    outputs.write("a\nb\n")
    outputs.write("c\n")
    assert outputs.lines_of_text == 3
    outputs.display({}, {}, "f", update=False)
    assert outputs.lines_of_text == 0
    terminal = Outputs(None)
    terminal.write("a\n")
    assert terminal.lines_of_text == 0


def test_a_display_of_text_has_the_color_of_its_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a line has; where the text is only a substitute, it stays as it is."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    rank, text = {"ddp": {"rank": 1}}, "[rank 1] {'a': 1}"
    with contextlib.redirect_stdout(NotebookStdout()):
        shell = FakeShell()
        outputs = Outputs(shell)  # type: ignore[arg-type]
    outputs.display({"text/plain": text}, rank, "a", update=False)
    outputs.display({"text/plain": [text]}, rank, "a", update=True)
    outputs.display({"text/plain": text, "text/html": "<p>"}, rank, "b", update=False)
    outputs.display({"text/plain": text}, {}, "c", update=False)
    shown = [data["text/plain"] for data, *_ in shell.published]
    assert shown == ["\x1b[32m[rank 1]\x1b[0m {'a': 1}"] * 2 + [text] * 2


def test_outputs_are_tall_or_not() -> None:
    """Of more than a page shows, the first and the last are not seen at once."""
    few, many, figures = _outputs(), _outputs(), _outputs()
    few.write("a\n" * 20)
    few.display({}, {}, "f", update=False)
    many.write("a\n" * 50)
    for number in range(5):
        figures.display({}, {}, f"f{number}", update=False)
    assert [few.is_tall, many.is_tall, figures.is_tall] == [False, True, True]
