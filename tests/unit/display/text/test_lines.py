"""From text, cut anywhere, to the lines of a terminal."""

from __future__ import annotations

import random
import re

import pytest

from ddp_magic.display.text.lines import LineAssembler


@pytest.mark.parametrize(
    ("pieces", "lines", "live"),
    [
        (["a\nb", "c\nd"], ["a", "bc"], "d"),
        (["a\r\nb\r\n"], ["a", "b"], ""),
        (["a\r", "\nb"], ["a"], "b"),
        (["0%\r50%\r", "100%\nnext\n"], ["100%", "next"], ""),
        (["0%", "\r50%"], [], "50%"),
        (["\x1b[?25l\x1b[?25hx\n"], ["x"], ""),
        (["\n\n"], ["", ""], ""),
        (["10%", "\b\b\b20%"], [], "20%"),
        (["spin /\b", "-\b\\\b done\n"], ["spin  done"], ""),
        (["\x1b[31mred\x1b[0m\b\bx\n"], ["\x1b[31mr\x1b[0mx"], ""),
        (["one\n\b\b\btwo\n"], ["one", "two"], ""),
        (["outer\n\rinner 1\x1b[A\router 2\n\rinner 2\x1b[A"], [], "outer 2|inner 2"),
    ],
)
def test_lines(pieces: list[str], lines: list[str], live: str) -> None:
    """Newlines finish lines, carriage returns start them afresh, cursor-up goes back."""
    assembler = LineAssembler()
    seen = [line for piece in pieces for line in assembler.feed(piece)]
    assert seen == lines
    assert ("|".join(assembler.bars) or assembler.partial) == live


def test_a_bar_is_progress_and_a_plain_rest_is_not() -> None:
    """Only a line that was begun anew is shown in the table."""
    assembler = LineAssembler()
    assembler.feed("thinking")
    assert (assembler.partial, assembler.bars) == ("thinking", ())
    assert assembler.take_partial() == "thinking"
    assembler.feed("\r 10%")
    assert (assembler.partial, assembler.bars) == ("", (" 10%",))
    assert assembler.feed("\r100%\nnext\n") == ["100%", "next"]
    assert assembler.bars == ()


def test_the_rest_is_given_back_at_the_end() -> None:
    """A line without a newline is a line."""
    assembler = LineAssembler()
    assembler.feed("last words")
    assert assembler.end() == ["last words"]


_TOKEN = re.compile(
    r"(\x1b\[[0-9]{0,10000}[A-G])|(\x1b\[[0-9]{0,10000}[JK])|\x1b\[\?[0-9]{1,10000}[hl]|(.)",
    re.DOTALL,
)
_COLOR = re.compile(r"(\x1b\[[0-9;:]*m)")


def _without_last(row: str) -> str:
    """Remove a row's last character; colors stay."""
    parts = _COLOR.split(row)  # text, color, text, color, text
    for index in range(len(parts) - 1, -1, -2):
        if parts[index]:
            parts[index] = parts[index][:-1]
            break
    return "".join(parts)


def _reference(text: str) -> list[str] | None:
    """The lines of a text, one character after the other; None where the cursor moves."""
    lines, row, at_start, returned, is_bar = [], "", True, False, False
    for token in _TOKEN.finditer(text):
        moves, erases, character = token.groups()
        if moves:
            return None
        if erases and (at_start or erases[2:-1].lstrip("0") == "2"):
            row, returned = "", True
        elif character == "\n":
            lines += [row] if row.strip() or not is_bar else []
            row, at_start, returned, is_bar = "", True, False, False
        elif character == "\r":
            at_start = returned = True
        elif character == "\b":
            row = row if at_start else _without_last(row)
        elif character:
            row = character if at_start else row + character
            is_bar = returned or (is_bar and not at_start)
            at_start = returned = False
    return [*lines, row] if row.strip() else lines


_PIECES = [
    "a", "bc", " ", "\b", "\b\b", "\n", "\r", "\r\n", "\x1b[K", "\x1b[2K", "\x1b[?25h", "\x1b[?7l",
    "\x1b[31m", "\x1b[0m",
    "\x1b", "\x1b[", "\x1b[?", "\x1b[12", "A", "K", "5", "\x1b[K", "\x1b[J", "\x1b]0;t\a",
    "\x1b[1;1H", "é",
    "\x1b[" + "9" * 50 + "K", "\x1b[" + "9" * 10_001 + "K", "\x1b[" + "9" * 10_000 + "K",
    "\U0001f600", "\u0663", "\x1b[\u0663K", "\0", "\x9b", "\x85", "\u2028",
]  # fmt: skip


def _rstrip(lines: list[str]) -> list[str]:
    """Remove blank lines at the end, and the blanks that bars end with."""
    lines = [line.rstrip(" ") for line in lines]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def test_any_text_cut_anywhere() -> None:
    """The lines are those of a terminal that takes one character after the other."""
    chance = random.Random(0)
    compared = 0
    for _ in range(800):
        text = "".join(chance.choices(_PIECES, k=chance.randint(0, 25)))
        cuts = sorted(chance.choices(range(len(text) + 1), k=chance.randint(0, 12)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assembler = LineAssembler()
        lines = [line for piece in pieces for line in assembler.feed(piece)] + assembler.end()
        if (wanted := _reference(text)) is not None:
            assert _rstrip(lines) == _rstrip(wanted), pieces
            compared += 1
    assert compared > 300


@pytest.mark.parametrize(
    ("sequence", "lines"),
    [
        ("\x1b[" + "9" * 5000 + "A", ["new", "two"]),
        ("\x1b[9999999A", ["new", "two"]),
        ("\x1b[2A", ["new", "two"]),
        ("\x1b[0000000000000000001A", ["one", "new"]),
        ("\x1b[A", ["one", "new"]),
        ("\x1b[0A", ["one", "new"]),
        # What follows is text.
        ("\x1b[" + "9" * 20_000 + "A", ["one", "two", "new"]),
        ("\x1b[\u0661A", ["one", "two", "new"]),
        ("\x1b[-5A", ["one", "two", "new"]),
        ("\x1b[1;A", ["one", "two", "new"]),
    ],
)
def test_the_cursor_goes_up(sequence: str, lines: list[str]) -> None:
    """As far as there are rows, however far it is told to."""
    assembler = LineAssembler()
    assert assembler.feed(f"one\ntwo\n{sequence}\rnew") + assembler.end() == lines


def test_a_long_line_in_many_pieces() -> None:
    """Whole at the end; its beginning is not copied for each piece, or this would take minutes."""
    for start in ("", "\r", "\x1b[31m"):
        assembler = LineAssembler()
        assert assembler.feed(start) == []
        for _ in range(1000):
            assert assembler.feed("x" * 60_000) == []
            assert len("".join(assembler.bars)) <= 1000
        (line,) = assembler.feed("\n") + assembler.settle()
        assert line == start.replace("\r", "") + "x" * 60_000_000
