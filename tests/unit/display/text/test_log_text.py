"""What of a rank's text goes into its log."""

from __future__ import annotations

import random

from ddp_magic.display.text.log_text import AGE_S, LogText


def _logged(*pieces: bytes, writer: int = 0) -> list[bytes]:
    log = LogText()
    found = [log.feed(piece, writer, 0.0, begins=True) for piece in pieces]
    return [*found, log.end()]


def test_other_text_is_kept_as_it_is() -> None:
    """Byte by byte, whatever they mean, also in the middle of a line."""
    chance = random.Random(0)
    for _ in range(100):
        data = bytes(chance.choices([b for b in range(256) if b not in (13, 27)], k=50))
        assert _logged(data, b"\x1b[31mred\x1b[0m", b"windows\r\n") == [
            data,
            b"\x1b[31mred\x1b[0m",
            b"windows\r\n",
            b"",
        ]


def test_of_a_bar_the_last_state_is_kept() -> None:
    """Bytes that are no text too; after it, text is kept as it is."""
    states = [b"\r%d%% \xe2\x96\x88\xff" % i for i in range(100)]
    logged = _logged(*states, b"\n", b"next\n", b"half")
    assert logged == [*[b""] * 101, b"99% \xe2\x96\x88\xff\nnext\n", b"half", b""]


def test_an_unfinished_bar_is_there_at_the_end() -> None:
    assert _logged(b"\r50%")[-1] == b"50%\n"


def test_a_finished_bar_does_not_wait_for_ever() -> None:
    log = LogText()
    log.feed(b"\r100%\n", 2, 0.0, begins=True)
    found = [log.feed(b"\r%d%%" % i, 2, i * 2 * AGE_S, begins=True) for i in range(1, 4)]
    assert b"".join(found) == b"100%\n"
