"""From a rank's bytes to text and the places of its outputs."""

from __future__ import annotations

import random

from ddp_magic.wire.marks import MarkSplitter, Writer

MARKER = b"\x1b]ddp_magic;0123;"


def _split(pieces: list[bytes]) -> list[bytes | int | Writer]:
    splitter = MarkSplitter(MARKER)
    items: list[bytes | int | Writer] = []
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
    data = b"one\x1b]d" + MARKER + b"12\a" + b"two" + MARKER + b"3\a" + MARKER + b"w2\a\x1b]ddp_m"
    wanted = [b"one\x1b]d", 12, b"two", 3, Writer.STDERR]
    chance = random.Random(0)
    for _ in range(300):
        cuts = sorted(chance.sample(range(len(data)), chance.randint(0, 12)))
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        items = _split(pieces)
        assert items[:5] == wanted
        assert b"".join(i for i in items[5:] if isinstance(i, bytes)) == b"\x1b]ddp_m"


def test_a_quoted_marker_is_text() -> None:
    """What only looks like a mark goes through."""
    for tail in (b"x\aend", b"w9\a", b"w12\a", b"wx", b"\a"):
        assert _split([MARKER + tail]) == [MARKER + tail]


def test_a_mark_with_a_huge_number_is_text() -> None:
    """No number of ours has that many digits."""
    text = MARKER + b"9" * 5000 + b"\a"
    assert b"".join(item for item in _split([text]) if isinstance(item, bytes)) == text
