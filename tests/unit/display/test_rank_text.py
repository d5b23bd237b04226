"""From bytes to lines."""

from __future__ import annotations

import random
import re

import pytest

from ddp_magic.display.rank_text import (
    BYTES_BURST,
    BYTES_PER_S,
    LINE_BYTES,
    LINES_BURST,
    Bucket,
    LineAssembler,
    MarkSplitter,
    Throttle,
)

MARKER = b"\x1b]ddp_magic;0123;"


def _split(pieces: list[bytes]) -> list[bytes | int]:
    splitter = MarkSplitter(MARKER)
    items: list[bytes | int] = []
    for piece in pieces:
        for item in splitter.feed(piece):
            if isinstance(item, bytes) and items and isinstance(items[-1], bytes):
                items[-1] += item
            else:
                items.append(item)
    if rest := splitter.end():
        items.append(rest)
    return items


def test_marks_split_in_any_way() -> None:
    """Wherever the reads cut, the same text and marks come out, and no byte is lost."""
    data = b"one\x1b]d" + MARKER + b"12\a" + b"two" + MARKER + b"3\a" + MARKER + b"4\a\x1b]ddp_m"
    wanted = [b"one\x1b]d", 12, b"two", 3, 4]
    chance = random.Random(0)
    for _ in range(300):
        cuts = sorted(chance.sample(range(len(data)), chance.randint(0, 12)))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        items = _split(pieces)
        assert items[:5] == wanted
        assert b"".join(i for i in items[5:] if isinstance(i, bytes)) == b"\x1b]ddp_m"


def test_a_quoted_marker_is_text() -> None:
    """What only looks like a mark goes through."""
    assert _split([MARKER + b"x\aend"]) == [MARKER + b"x\aend"]


@pytest.mark.parametrize(
    ("pieces", "lines", "live"),
    [
        (["a\nb", "c\nd"], ["a", "bc"], "d"),
        (["a\r\nb\r\n"], ["a", "b"], ""),
        (["a\r", "\nb"], ["a"], "b"),
        (["0%\r50%\r", "100%\n"], ["100%"], ""),
        (["0%", "\r50%"], [], "50%"),
        (["\x1b[2K\x1b[?25lx\n"], ["x"], ""),
        (["\n\n"], ["", ""], ""),
        (["outer\n\rinner 1\x1b[A\router 2\n\rinner 2\x1b[A"], [], "inner 2"),
    ],
)
def test_lines(pieces: list[str], lines: list[str], live: str) -> None:
    """Newlines finish lines, carriage returns start them afresh, cursor-up goes back."""
    assembler = LineAssembler()
    seen = [line for piece in pieces for line in assembler.feed(piece)]
    assert seen == lines
    assert (assembler.progress or assembler.partial) == live


def test_a_bar_is_progress_and_a_plain_rest_is_not() -> None:
    """Only a line that was begun anew is shown in the table."""
    assembler = LineAssembler()
    assembler.feed("thinking")
    assert (assembler.partial, assembler.progress) == ("thinking", "")
    assert assembler.take_partial() == "thinking"
    assembler.feed("\r 10%")
    assert (assembler.partial, assembler.progress) == ("", " 10%".rstrip())
    assert assembler.feed("\r100%\nnext\n") == ["100%", "next"]
    assert assembler.progress == ""


def test_the_rest_is_given_back_at_the_end() -> None:
    """A line without a newline is a line."""
    assembler = LineAssembler()
    assembler.feed("last words")
    assert assembler.end() == ["last words"]


def _throttle() -> Throttle:
    return Throttle("/log", Bucket(BYTES_BURST, BYTES_PER_S))


def test_few_lines_pass_at_once() -> None:
    """Nothing is held back below the limits."""
    lines = [f"line {i}" for i in range(LINES_BURST)]
    throttle = _throttle()
    assert throttle.admit(lines, 0.0) == lines
    assert throttle.release(0.0, final=True) == []


def test_a_flood_shows_head_and_tail_and_counts_the_rest() -> None:
    """Every line is shown or counted."""
    throttle = _throttle()
    shown = throttle.admit([f"line {i}" for i in range(100_000)], 0.0)
    rest = throttle.release(0.0, final=True)
    assert rest[0].endswith("lines left out here; all are in /log")
    left_out = int(rest[0].split()[1].replace(",", ""))
    assert len(shown) + left_out + len(rest) - 1 == 100_000
    assert rest[-1] == "line 99999"


def test_a_slow_log_is_never_cut() -> None:
    """Ten lines a second for hours are shown, all of them, as they come."""
    throttle = _throttle()
    for i in range(20_000):
        assert throttle.admit([f"step {i}"], i / 10) == [f"step {i}"]


def test_the_rate_stays_below_what_a_jupyter_server_bears() -> None:
    """Over any 3 s at most 3 MB, from however many ranks."""
    size = Bucket(BYTES_BURST, BYTES_PER_S)
    throttles = [Throttle("/log", size) for _ in range(8)]
    sent: list[tuple[float, int]] = []
    for tick in range(400):
        now = tick * 0.05
        for throttle in throttles:
            lines = throttle.admit(["x" * 1000] * 200, now) + throttle.release(now)
            sent.append((now, sum(map(len, lines))))
    for start in range(17):
        assert sum(n for t, n in sent if start <= t < start + 3) < 3e6


def test_a_huge_line_is_cut_with_a_word() -> None:
    """The log has it whole."""
    (line,) = _throttle().admit(["x" * 10**6], 0.0)
    assert len(line) < LINE_BYTES + 200
    assert "1,000,000 characters" in line


_TOKEN = re.compile(
    r"(\x1b\[[0-9]{0,10000}A)|\x1b\[(?:\?[0-9]{1,10000}[hl]|[0-9]{0,10000}K)|(.)", re.DOTALL
)


def _reference(text: str) -> list[str] | None:
    """The lines of a text, one character after the other; None where the cursor goes up."""
    lines, row, overwrite = [], "", False
    for token in _TOKEN.finditer(text):
        up, character = token.groups()
        if up:
            return None
        if character == "\n":
            lines.append(row)
            row, overwrite = "", False
        elif character == "\r":
            overwrite = True
        elif character:
            row = character if overwrite else row + character
            overwrite = False
    return [*lines, row] if row.strip() else lines


_PIECES = [
    "a", "bc", " ", "\n", "\r", "\r\n", "\x1b[K", "\x1b[2K", "\x1b[?25l", "\x1b[31m", "\x1b[0m",
    "\x1b", "\x1b[", "\x1b[?", "\x1b[12", "A", "K", "5", "\x1b]0;t\a", "\x1b[1;1H", "é",
    "\x1b[" + "9" * 50 + "K", "\x1b[" + "9" * 10_001 + "K", "\x1b[" + "9" * 10_000 + "K",
    "\U0001f600", "\u0663", "\x1b[\u0663K", "\0", "\x9b", "\x85", "\u2028",
]  # fmt: skip


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
            assert lines == wanted, pieces
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
            assert len(assembler.progress) <= 1000
        (line,) = assembler.feed("\n")
        assert line == start.replace("\r", "") + "x" * 60_000_000


def test_a_mark_with_a_huge_number_is_text() -> None:
    """No number of ours has that many digits."""
    text = MARKER + b"9" * 5000 + b"\a"
    assert b"".join(item for item in _split([text]) if isinstance(item, bytes)) == text


def test_an_unfinished_line_waits_for_room() -> None:
    """It is cut as a whole one, and not shown before there is room for it."""
    throttle = _throttle()
    first = throttle.admit_partial("x" * 10**7, 0.0)
    assert LINE_BYTES < len(first) < LINE_BYTES + 200
    shown = [throttle.admit_partial("y" * 150_000, 0.0) for _ in range(10)]
    assert sum(map(bool, shown)) < 5
    assert throttle.admit_partial("z", 60.0) == "z"
