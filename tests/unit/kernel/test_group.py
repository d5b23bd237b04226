"""The kernel's side of a rank, with a fake worker: bytes and events by hand."""

from __future__ import annotations

import socket
from pathlib import Path

from ddp_magic.display.rank_text import MarkSplitter
from ddp_magic.kernel.group import Member
from ddp_magic.wire.channel import Channel
from ddp_magic.wire.messages import ClearOutput, DisplayData, Event, Stream


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


def _text(events: list[Event]) -> list[object]:
    return [event.text if isinstance(event, Stream) else event.mark for event in events]  # type: ignore[union-attr]


def test_outputs_stand_where_their_marks_stand(tmp_path: Path) -> None:
    """Whichever of mark and output arrives first."""
    member = _member(tmp_path)
    member.text.extend([b"a", 1, b"b", 2, b"c"])
    assert _text(list(member.ordered())) == ["a"]
    member.outputs[1] = _display(1)
    assert _text(list(member.ordered())) == [1, "b"]
    member.outputs[2] = ClearOutput(rank=1, mark=2)
    assert _text(list(member.ordered())) == [2, "c"]


def test_at_the_end_nothing_is_waited_for(tmp_path: Path) -> None:
    """A rank that died between an output and its mark loses neither text nor output."""
    member = _member(tmp_path)
    member.text.extend([b"a", 1, b"b"])
    member.outputs[2] = _display(2)
    assert _text(list(member.ordered(final=True))) == ["a", "b", 2]


def test_a_character_split_over_reads(tmp_path: Path) -> None:
    """It is one character; half of one at the end is a replacement mark, not an error."""
    member = _member(tmp_path)
    member.text.extend([b"\xc3", b"\xbc\xc3"])
    assert _text(list(member.ordered(final=True))) == ["ü", "\ufffd"]
