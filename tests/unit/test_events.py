"""The wire vocabulary."""

from __future__ import annotations

import pytest

from ddp_magic.errors import ProtocolError
from ddp_magic.events import (
    Captured,
    DisplayData,
    Error,
    Exit,
    Finished,
    Heartbeat,
    Kill,
    NewGroup,
    Preloaded,
    Results,
    RunCell,
    SharedMemory,
    Stayed,
    WorkerHello,
    decode,
    encode,
)


@pytest.mark.parametrize(
    "message",
    [
        RunCell(path="/x/cell.py", execution_count=3, prelude=("train",), argv=("a b",), seed=1),
        Exit(),
        Kill(ranks=(1, 2)),
        WorkerHello(rank=1, pid=7, marker="\x1b]m;"),
        Heartbeat(rank=0, time=1.5, phase="running", line=None, rss_mib=10.0),
        DisplayData(rank=0, mark=1, data={"text/html": "<b>ü</b>"}, metadata={"k": [1]}),
        Error(rank=1, time=2.0, ename="E", evalue="", traceback=("a", "b"), line=3),
        Finished(rank=0, time=0.0, code=1, message="no data"),
        SharedMemory(number=3, sizes=(10, 0, 2**33)),
        Captured(names=("a", "b"), stream=0, parts=([0, 1, 2],), sources={"f": ["text", 3]}),
        Preloaded(files={"torch": ["/x", 1, 2]}, number=4, environ={"A": "b"}),
        Results(rank=1, names=("a.b",), sizes=(1,), failed={"c": "was never set"}),
        Stayed(rank=0, names=("f", "x"), values=("x",)),
        NewGroup(number=2),
    ],
)
def test_a_message_arrives_as_it_was_sent(message: object) -> None:
    """encode and decode are inverse to each other, tuples included."""
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"garbage",
        b"[]",
        b"{}",
        b'{"type": "Nothing"}',
        b'{"type": "Exit", "more": 1}',
        b"\xff",
    ],
)
def test_garbage_is_refused(payload: bytes) -> None:
    """Whatever is no message of a known class with its own fields raises ProtocolError."""
    with pytest.raises(ProtocolError):
        decode(payload)
