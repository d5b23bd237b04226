"""The kernel's side of a rank, with a fake worker: bytes and events by hand."""

from __future__ import annotations

import socket
from pathlib import Path

from ddp_magic.channel import Channel
from ddp_magic.events import ClearOutput, DisplayData, Event, Stream
from ddp_magic.group import Member, rank_environment
from ddp_magic.output import MarkSplitter


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


def test_the_ranks_environment() -> None:
    """Launchers' variables go, the user's stay, threads are as torchrun sets them."""
    env = {"RANK": "1", "TORCHELASTIC_X": "1", "MASTER_PORT": "1", "SLURM_JOB_ID": "5", "A": "b"}
    ours = rank_environment(env, None, 2)
    assert {"SLURM_JOB_ID", "A"} < set(ours)
    assert not {"RANK", "TORCHELASTIC_X", "MASTER_PORT", "CUDA_VISIBLE_DEVICES"} & set(ours)
    assert ours["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in rank_environment(env, None, 1)
    assert rank_environment({"OMP_NUM_THREADS": "4"}, "", 2)["OMP_NUM_THREADS"] == "4"
    assert rank_environment(env, "2,0", 2)["CUDA_VISIBLE_DEVICES"] == "2,0"
