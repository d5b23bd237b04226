"""The control characters and escape sequences that progress bars use."""

from __future__ import annotations

import pytest

from ddp_magic.display.text.controls import CONTROL, begins_at, rows_of


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a\r\rb", ["\r\r"]),
        ("\x1b[2Ka\x1b[A", ["\x1b[2K", "\x1b[A"]),
        ("\x1b[?25l", ["\x1b[?25l"]),
        ("\x1b[31mred", []),  # a color is text
    ],
)
def test_what_moves_the_cursor_or_erases(text: str, found: list[str]) -> None:
    assert [control[0] for control in CONTROL.finditer(text)] == found


@pytest.mark.parametrize("end", ["\x1b", "\x1b[", "\x1b[1", "\x1b[?2"])
def test_a_beginning_is_kept_for_its_end(end: str) -> None:
    assert begins_at(f"text{end}") == 4


@pytest.mark.parametrize("text", ["", "text", "\x1b[Atext", "\x1b[" + "1" * 20_000])
def test_what_is_whole_or_too_long_is_text(text: str) -> None:
    assert begins_at(text) == len(text)


@pytest.mark.parametrize(
    ("digits", "rows"), [("", 1), ("0", 1), ("3", 3), ("007", 7), ("9" * 5000, 1_000_000)]
)
def test_how_far_the_cursor_moves(digits: str, rows: int) -> None:
    assert rows_of(digits) == rows
