"""The kernel's side of a rank, with a fake worker: bytes and events by hand."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from pathlib import Path

from ddp_magic.kernel.worker_group.member import Member
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.events import Event
from ddp_magic.wire.kernel_events import Rejoined, Stream
from ddp_magic.wire.marks import MarkSplitter
from ddp_magic.wire.worker_events import ClearOutput, DisplayData
from tests.unit.fakes import ready


def _member(tmp_path: Path) -> Member:
    ours, _ = socket.socketpair()
    return Member(
        rank=1,
        channel=Channel(ours),
        pipe=-1,
        process=None,
        splitter=MarkSplitter(b"M;"),
        log=tmp_path / "log",
    )


def _display(mark: int) -> DisplayData:
    return DisplayData(rank=1, mark=mark, data={"text/html": str(mark)}, metadata={})


def _text(events: Iterable[Event]) -> list[object]:
    return [event.text if isinstance(event, Stream) else event.mark for event in events]  # type: ignore[union-attr]


def test_outputs_stand_where_their_marks_stand(tmp_path: Path) -> None:
    """Whichever of mark and output arrives first."""
    member = _member(tmp_path)
    assert _text(member.take_text(b"aM;1\abM;2\ac")) == ["a"]
    assert _text(member.take(_display(1))) == [1, "b"]
    assert _text(member.take(ClearOutput(rank=1, mark=2))) == [2, "c"]
    assert _text(member.take(_display(3))) == []
    assert _text(member.take_text(b"dM;3\ae")) == ["d", 3, "e"]


def test_at_the_end_nothing_is_waited_for(tmp_path: Path) -> None:
    """A rank that died between an output and its mark loses neither text nor output."""
    member = _member(tmp_path)
    assert _text(member.take(_display(2))) == []
    assert _text(member.take_text(b"aM;3\abM;")) == ["a"]
    assert _text(member.take_end()) == ["b", "M;", 2]


def test_a_character_split_over_reads(tmp_path: Path) -> None:
    """It is one character; half of one at the end is a replacement mark, not an error."""
    member = _member(tmp_path)
    assert _text(member.take_text(b"\xc3")) == []
    assert _text(member.take_text(b"\xbc\xc3")) == ["ü"]
    assert _text(member.take_end()) == ["\ufffd"]


def test_the_log_has_the_text_without_marks(tmp_path: Path) -> None:
    """And each piece of text says how long the log is with it."""
    member = _member(tmp_path)
    (first,) = member.take_text(b"one\nM;1\atwo")
    _, second = member.take(_display(1))
    assert isinstance(first, Stream)
    assert isinstance(second, Stream)
    assert (first.log_bytes, second.log_bytes) == (4, 7)
    assert member.log.read_bytes() == b"one\ntwo"


def test_a_log_that_cannot_be_written_costs_no_text(tmp_path: Path) -> None:
    """The error is kept for whoever reports it."""
    member = _member(tmp_path)
    member.log.symlink_to("/dev/full")
    assert _text(member.take_text(b"one\n")) == ["one\n"]
    assert member.log_error is not None
    assert "No space left" in str(member.log_error)


def test_closing_twice_closes_once(tmp_path: Path) -> None:
    """The pipe's number may be another file's by then."""
    member = _member(tmp_path)
    member.pipe, write_end = os.pipe()
    member.close()
    member.close()
    assert member.pipe == -1
    os.close(write_end)


def test_a_write_says_whose_it_is_and_where_it_begins(tmp_path: Path) -> None:
    """Also when its bytes come in pieces."""
    member = _member(tmp_path)
    pieces = [b"aM;w2\a\r5", b"0%M;w0\ab"]
    streams = [e for piece in pieces for e in member.take_text(piece) if isinstance(e, Stream)]
    seen = [(event.text, event.writer, event.begins) for event in streams]
    assert seen == [("a", 0, False), ("\r5", 2, True), ("0%", 2, False), ("b", 0, True)]


def test_the_log_has_the_last_state_of_a_bar(tmp_path: Path) -> None:
    """Once, and no mark; what is unfinished is there at the end."""
    member = _member(tmp_path)
    for i in range(100):
        list(member.take_text(b"M;w2\a\r%d %%M;w0\aline %d\n" % (i, i)))
    list(member.take_text(b"half"))
    *_, last = member.take_end()
    assert isinstance(last, Stream)
    assert last.log_bytes == member.written
    lines = [f"line {i}" for i in range(100)]
    assert member.log.read_text().splitlines() == [*lines, "99 %", "half"]
    assert member.written == member.log.stat().st_size


def test_the_size_of_the_log_counts_what_an_earlier_attempt_wrote(tmp_path: Path) -> None:
    """Else the text of a restarted rank would seem to end in the middle of the first attempt's."""
    (tmp_path / "log").write_bytes(b"the first attempt\n")
    (event,) = _member(tmp_path).take_text(b"the second\n")
    assert isinstance(event, Stream)
    assert event.log_bytes == (tmp_path / "log").stat().st_size


def test_a_session_finds_it_again(tmp_path: Path) -> None:
    """With the device that it has told, and the size of its log."""
    member = _member(tmp_path)
    assert member.take(ready(1, "cuda:0")) == [ready(1, "cuda:0")]
    list(member.take_text(b"one\n"))
    assert member.rejoined() == Rejoined(rank=1, pid=None, device="cuda:0", log_bytes=4)
