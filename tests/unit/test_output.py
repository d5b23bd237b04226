"""From bytes to lines."""

from __future__ import annotations

import random

import pytest

from ddp_magic.output import (
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
