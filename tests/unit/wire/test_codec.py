"""Messages as bytes and back."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.codec import MAX_BYTES, MAX_DEPTH, decode, encode, type_name
from ddp_magic.wire.collectives import Exchange, GroupRecord, Membership, Operation, Transfer
from ddp_magic.wire.commands import Answer, Captured, Exit, Kill, NewGroup, RunCell, SharedMemory
from ddp_magic.wire.events import AgentEvent, ForkserverEvent, Preloaded
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import (
    CellNames,
    Collectives,
    DisplayData,
    Error,
    Finished,
    Heartbeat,
    Idle,
    Question,
    Results,
    WorkerEvent,
    WorkerHello,
)


@pytest.mark.parametrize(
    "message",
    [
        RunCell(path="/x/cell.py", execution_count=3, prelude=("train",), argv=("a b",), seed=1),
        Exit(),
        Kill(ranks=(1, 2)),
        WorkerHello(rank=1, pid=7, marker="\x1b]m;"),
        Heartbeat(rank=0, time=1.5, phase=Phase.RUNNING, line=None, rss_mib=10.0),
        DisplayData(rank=0, mark=1, data={"text/html": "<b>ü</b>"}, metadata={"k": [1]}),
        Error(rank=1, time=2.0, ename="E", evalue="", traceback=("a", "b"), line=3),
        Finished(rank=0, time=0.0, code=1, message="no data"),
        SharedMemory(number=3, sizes=(10, 0, 2**33)),
        Captured(names=("a", "b"), stream=0, parts=([0, 1, 2],), sources={"f": ["text", 3]}),
        Preloaded(files={"torch": ["/x", 1, 2]}, number=4, environ={"A": "b"}),
        Results(rank=1, names=("a.b",), sizes=(1,), failed={"c": "was never set"}),
        CellNames(rank=0, names=("f", "x"), values=("x",)),
        NewGroup(number=2),
        Question(rank=1, mark=3, prompt="ü\n? ", password=True),
        Answer(number=3, text="ünï", ended=True, problem="no"),
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
        b"[" * 1000,
        b"[" * 10**6,
        b'{"type": "Exit", "x": ' + b"[" * 10**6,
        b'{"type": ["Exit"]}',
        b'{"type": {"a": 1}}',
        b'{"type": "WorkerReady", "rank": ' + b"9" * 5000 + b"}",
        b"null",
        b"5",
    ],
)
def test_garbage_is_refused(payload: bytes) -> None:
    """Whatever is no message of a known class with its own fields raises ProtocolError."""
    with pytest.raises(ProtocolError):
        decode(payload)


_RIGHT = {
    "by_agent": True, "group": False, "cuda_error": "", "call": "", "inner": "", "root": "",
    "still_s": 0.0, "cpu_s": 0.0,
    "enqueued": {"gloo:0": 2}, "completed": {"gloo:0": 1}, "transfers": [], "groups": [],
    "memberships": [], "exchanges": [], "thread": "", "threads": {}, "takes_usr1": False,
    "exit_wait": "",
    "rank": 0, "pid": 7, "time": 1.0, "code": 0, "marker": "m", "device": "cpu", "modules": ["os"],
    "node": "n1",
    "phase": "running", "line": 3, "cell": "", "rss_mib": 1.0, "device_mib": None, "mark": 1,
    "ename": "E",
    "data": {"text/plain": "x"}, "metadata": {}, "display_id": None, "update": False,
    "evalue": "", "traceback": ["a"], "classes": ["builtins:E"], "message": "", "names": ["a"],
    "sizes": [1], "failed": {"b": "why"}, "values": ["a"], "error": "", "swept": 0,
    "left_out": {"b": "why"}, "good": ["os"], "module": "os", "files": {"os": ["/x", 1]},
    "number": 1, "environ": {"A": "b"},
    "reason": "", "run_id": "r", "attempt": 0, "prompt": "name? ", "password": False,
    "held": False, "wait": True, "runs_on": False,
}  # fmt: skip
_EVENTS = [*get_args(ForkserverEvent), *get_args(AgentEvent), *get_args(WorkerEvent)]


def _payload(cls: type, **wrong: object) -> bytes:
    fields = {field.name: _RIGHT[field.name] for field in dataclasses.fields(cls)}
    return json.dumps({"type": cls.__name__, **fields, **wrong}).encode()


_ODD: list[object] = [
    None, True, "x", 1.5, 1, -1, 2**63, float("nan"), float("inf"), [], ["x"], [1], [[1]], [None],
    {}, {"a": 1}, {"a": "b"}, {"a": None}, {"a": [1]},
]  # fmt: skip
# Which of them are right for a field that is declared so; a list without items fits any list.
_GOOD: dict[object, list[object]] = {
    int: [1], float: [1.5, 1, -1], str: ["x"], bool: [True], int | None: [1, None],
    float | None: [1.5, 1, -1, None], str | None: ["x", None],
    tuple[str, ...]: [[], ["x"]], tuple[int, ...]: [[], [1]],
    tuple[GroupRecord, ...]: [[]], tuple[Transfer, ...]: [[]], dict[str, int]: [{}, {"a": 1}],
    tuple[Membership, ...]: [[]],
    tuple[Exchange, ...]: [[]],
    dict[str, str]: [{}, {"a": "b"}], dict[str, list[Any]]: [{}, {"a": [1]}],
    Phase: [],
    dict[str, Any]: [{}, {"a": 1}, {"a": "b"}, {"a": None}, {"a": [1]}],
}  # fmt: skip


@pytest.mark.parametrize("cls", _EVENTS)
def test_every_field_has_its_own_type(cls: type) -> None:
    """A value that is none of the field's is refused, in every field of every event."""
    decode(_payload(cls))
    for name, kind in get_type_hints(cls).items():
        good = [*_GOOD[kind], *([-1] if name == "code" else [])]
        for value in _ODD:
            payload = _payload(cls, **{name: value})
            if any(value is x or (value == x and type(value) is type(x)) for x in good):
                decode(payload)
            else:
                with pytest.raises(ProtocolError):
                    decode(payload)


_OPERATION = {
    "number": 3, "name": "all_reduce", "created": 1.0, "done": False, "inputs": [[3, 2], []],
    "outputs": [[3, 2]], "dtypes": ["Float"], "point_to_point": False,
}  # fmt: skip
_RECORD = {
    "name": "0", "backend": "gloo", "title": "default_pg", "ranks": [0, 1], "enqueued": 3,
    "completed": 2, "before": 0, "operations": [_OPERATION],
}  # fmt: skip


def test_a_message_has_parts_of_their_own_classes() -> None:
    """As they were sent, tuples again."""
    operation = Operation(
        number=3, name="all_reduce", created=1.0, done=False, inputs=((3, 2), ()),
        outputs=((3, 2),), dtypes=("Float",),
    )  # fmt: skip
    group = GroupRecord(
        name="0", backend="gloo", title="default_pg", ranks=(0, 1), enqueued=3, completed=2,
        operations=(operation,),
    )  # fmt: skip
    sent = Collectives(rank=1, time=2.0, groups=(group,))
    assert decode(encode(sent)) == sent
    assert decode(_payload(Collectives, rank=1, time=2.0, groups=[_RECORD])) == sent
    transfers = (Transfer(kind="recv", peer=None), Transfer(kind="send", peer=2, tag=5))
    assert decode(encode(replace(sent, transfers=transfers))) == replace(sent, transfers=transfers)
    members = replace(sent, memberships=(Membership(name="1", ranks=(0, 2)),))
    assert decode(encode(members)) == members


@pytest.mark.parametrize("where", ["record", "operation"])
@pytest.mark.parametrize("wrong", [{"name": 1}, {"more": 1}, {"outputs": [["x"]]}, {"ranks": [-1]}])
def test_the_parts_of_a_message_are_checked(where: str, wrong: dict[str, object]) -> None:
    """A field of another type, and one that does not exist."""
    operation = {**_OPERATION, **wrong} if where == "operation" else _OPERATION
    record = {**_RECORD, "operations": [operation], **(wrong if where == "record" else {})}
    with pytest.raises(ProtocolError):
        decode(_payload(Collectives, groups=[record]))


@pytest.mark.parametrize("part", [1, "x", [], {}, None])
def test_a_part_is_an_object(part: object) -> None:
    with pytest.raises(ProtocolError):
        decode(_payload(Collectives, groups=[part]))


def test_a_rank_is_a_whole_number() -> None:
    """None that is negative, text, a truth value or a fraction."""
    for rank in (-1, "0", True, 0.0, None, [0], 2**63):
        with pytest.raises(ProtocolError, match="rank"):
            decode(_payload(Idle, rank=rank))


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 900])
def test_what_is_nested_too_deep_is_refused_at_both_ends(depth: int) -> None:
    """Whoever writes it out again would fail."""
    deep: list[object] = []
    for _ in range(depth):
        deep = [deep]
    with pytest.raises(ProtocolError):
        decode(_payload(DisplayData, data={"application/json": deep}))
    with pytest.raises(ProtocolError):
        encode(DisplayData(rank=0, mark=1, data={"application/json": deep}, metadata={}))


def test_an_output_may_be_nested() -> None:
    """A chart's description is; a hundred levels are fine, and numbers without value."""
    deep: object = float("inf")
    for _ in range(50):
        deep = {"layer": [1.5, deep]}
    message = DisplayData(rank=0, mark=1, data={"application/json": deep}, metadata={"a": deep})
    assert decode(encode(message)) == message


def test_half_a_character_is_replaced_where_it_is_shown() -> None:
    """No notebook could be sent it; a whole one stays, and so does a path that is no UTF-8."""
    text = "a\ud800b \U0001f600"
    seen = decode(encode(DisplayData(rank=0, mark=1, data={"text/html": text}, metadata={})))
    assert isinstance(seen, DisplayData)
    assert seen.data == {"text/html": "a?b \U0001f600"}
    assert decode(encode(RunCell(path="/a\udcff"))) == RunCell(path="/a\udcff")


def test_what_is_too_long_is_not_sent() -> None:
    """The other end would take it for garbage."""
    with pytest.raises(ProtocolError, match="268,435,"):
        encode(Error(rank=0, time=0.0, ename="E", evalue="x" * MAX_BYTES, traceback=()))


@pytest.mark.parametrize("cls", get_args(AgentEvent | WorkerEvent)[:3])
def test_the_type_is_read_without_the_rest(cls: type) -> None:
    assert type_name(f'{{"type": "{cls.__name__}", "broken'.encode()) == cls.__name__
    assert type_name(b'{"rank": 1}') == type_name(b"") == ""


def test_the_type_comes_first() -> None:
    """Relays look there."""
    assert type_name(encode(Exit())) == "Exit"
