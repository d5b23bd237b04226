"""Who waits for whom: from what ranks report to sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ddp_magic.display.diagnosis.hangs import ProcessState, explain, mismatches, reasons
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import UNNAMED, GroupRecord, Operation, Transfer
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import Collectives
from tests.unit.fakes import error, exited, finished, question

NOW = 1000.0


def _op(number: int, name: str = "all_reduce", *, age: float = 24.0, **more: Any) -> Operation:
    settings = {"done": False, "inputs": ((3,),), "dtypes": ("Float",), **more}
    return Operation(number=number, name=name, created=NOW - age, **settings)


def _exchange(sends: int, receives: int, **more: Any) -> Operation:
    return _op(1, "all_to_all", inputs=((sends,),), outputs=((receives,),), **more)


def _done(*operations: Operation) -> list[Operation]:
    return [Operation(**{**vars(operation), "done": True}) for operation in operations]


def _group(
    *operations: Operation, name: str = "0", ranks: tuple[int, ...] = (0, 1, 2), **more: Any
) -> GroupRecord:
    enqueued = max((o.number for o in operations), default=0)
    settings = {
        "backend": "gloo",
        "title": "default_pg" if name == "0" else "undefined",
        "enqueued": enqueued,
        "completed": max((o.number for o in operations if o.done), default=0),
        **more,
    }
    return GroupRecord(name=name, ranks=ranks, operations=operations, **settings)


def _rank(
    number: int,
    *groups: GroupRecord,
    line: int | None = 12,
    still_s: float = 24.0,
    heard: float = NOW,
    **more: Any,
) -> Rank:
    rank = Rank(
        rank=number,
        pid=100 + number,
        phase=Phase.RUNNING,
        line=line,
        still_s=still_s,
        heard=heard,
        **more,
    )
    if groups:
        rank.collectives = Collectives(rank=number, time=NOW, groups=groups)
    rank.enqueued = {group.key: group.enqueued for group in groups}
    return rank


WAITING = _group(*_done(_op(1, age=30)), _op(2))
BEHIND = _group(*_done(_op(1, age=30)))


def test_a_rank_that_has_not_joined_is_named_with_its_place() -> None:
    """As DESIGN's example has it: who waits, where, for how long; who is missing, and where."""
    ranks = [
        _rank(0, WAITING, call="Tensor.backward"),
        _rank(1, BEHIND, line=9, call="DataLoader"),
        _rank(2, WAITING, call="Tensor.backward"),
    ]
    assert explain(ranks, NOW) == [
        "ranks 0, 2 wait in all_reduce #2 (line 12, in Tensor.backward) for 24 s; "
        "rank 1 has not joined: it is at line 9, in DataLoader"
    ]


UNSEEN: dict[str, Any] = {"is_recorded": False, "inputs": (), "dtypes": ()}


@pytest.mark.parametrize("name", ["all_reduce", UNNAMED])
def test_what_was_overwritten_in_the_record_is_told_by_its_number(name: str) -> None:
    waiting = _group(_op(2, name, **UNSEEN), completed=1)
    ranks = [_rank(0, waiting), _rank(1, BEHIND, line=9), _rank(2, WAITING)]
    assert explain(ranks, NOW) == [
        f"ranks 0, 2 wait in {name} #2 (line 12) for 24 s; rank 1 has not joined: it is at line 9"
    ]


def test_that_all_have_joined_is_not_said_of_what_nobody_has_seen() -> None:
    """It may have completed: gloo may have noted so too late for its record."""
    for name, told in ((UNNAMED, 0), ("all_reduce", 1)):
        waiting = _group(_op(2, name, **UNSEEN), completed=1)
        assert len(explain([_rank(n, waiting) for n in range(3)], NOW)) == told


def test_what_was_overwritten_differs_by_its_name_alone() -> None:
    """Its tensors are not known."""
    seen, other = _group(_op(2)), _group(_op(2, "barrier", **UNSEEN))
    (sentence,) = explain([_rank(0, other), _rank(1, seen), _rank(2, seen)], NOW)
    assert sentence.startswith(
        "collective #2 differs between ranks: rank 0 called barrier (line 12); ranks 1, 2 called "
        "all_reduce of float32 [3] (line 12). All ranks"
    )
    for name in ("all_reduce", UNNAMED):
        same = _group(_op(2, name, **UNSEEN))
        assert mismatches([_rank(0, same), _rank(1, seen), _rank(2, seen)]) == []


def test_a_thread_that_calls_one_collective_after_the_other_does_not_wait() -> None:
    """Of a rank that others wait for: the collective of its thread has just begun."""
    for age, told in ((0.1, False), (8.0, True)):
        metrics = _group(_op(900, age=age), name="7", title="metrics")
        ranks = [_rank(0, WAITING), _rank(1, BEHIND, metrics), _rank(2, WAITING)]
        ranks[1].collectives = replace(
            ranks[1].collectives,  # type: ignore[type-var]
            threads={"7": "line 5"},
        )
        assert (" #900 " in explain(ranks, NOW)[0]) is told


def test_a_short_wait_is_not_explained() -> None:
    waiting = _group(_op(1, age=1.0))
    assert explain([_rank(0, waiting, still_s=1.0), _rank(1), _rank(2)], NOW) == []


def test_a_rank_that_goes_on_does_not_wait() -> None:
    """It has called a collective asynchronously, and computes meanwhile."""
    assert explain([_rank(0, WAITING, still_s=0.1), _rank(1, BEHIND), _rank(2)], NOW) == []


def test_without_a_wait_there_is_nothing_to_say() -> None:
    """A long step on every rank, with all collectives completed."""
    assert explain([_rank(n, BEHIND) for n in range(3)], NOW) == []


def test_the_same_place_is_said_once() -> None:
    ranks = [_rank(0, WAITING), *(_rank(n, BEHIND, line=40, call="evaluate") for n in (1, 2))]
    (sentence,) = explain(ranks, NOW)
    assert sentence.endswith("; ranks 1, 2 have not joined: each is at line 40, in evaluate")


def _killed() -> Rank:
    rank = _rank(1, BEHIND)
    rank.take(exited(1, -9))
    return rank


def _raised() -> Rank:
    rank = _rank(1, BEHIND)
    rank.take(error(1, "ValueError", line=7))
    return rank


def _finished() -> Rank:
    rank = _rank(1, BEHIND)
    rank.take(finished(1))
    return rank


@pytest.mark.parametrize(
    ("rank", "where"),
    [
        (_finished(), "it has finished its cell"),
        (_raised(), "it raised ValueError at line 7"),
        (_killed(), "it has ended (killed by SIGKILL)"),
        (
            _rank(1, BEHIND, line=40, call="evaluate", cpu=0.9),
            "it computes at line 40, in evaluate",
        ),
        (_rank(1, BEHIND, line=None), "it has not reported where it is"),
    ],
)
def test_what_a_missing_rank_does(rank: Rank, where: str) -> None:
    (sentence,) = explain([_rank(0, WAITING), rank, _rank(2, WAITING)], NOW)
    assert sentence.endswith(f"; rank 1 has not joined: {where}")


@pytest.mark.parametrize(
    ("state", "where"),
    [
        (ProcessState(stopped=True), "is stopped: `kill -CONT 101` continues it"),
        (
            ProcessState(in_system_call=True),
            "is stuck in a system call, often of a disk or a network file system; it was last seen "
            "at line 12",
        ),
        (
            ProcessState(busy=True),
            "has been silent for 20 s and holds the interpreter lock in C code; it was last seen "
            "at line 12",
        ),
        (
            ProcessState(),
            "has been silent for 20 s and does not respond; it was last seen at line 12",
        ),
    ],
)
def test_a_silent_rank_may_have_joined(state: ProcessState, where: str) -> None:
    """Its last number is as old as its last heartbeat: what is not known is left out."""
    ranks = [_rank(0, WAITING), _rank(1, BEHIND, heard=NOW - 20), _rank(2, WAITING)]
    (sentence,) = explain(ranks, NOW, processes={1: state})
    assert sentence.endswith(f"for 24 s; rank 1 {where}")


def test_a_rank_that_was_stopped_at_once_has_sent_no_heartbeat() -> None:
    ranks = [_rank(0, WAITING), _rank(1, heard=0.0), _rank(2, WAITING)]
    (sentence,) = explain(ranks, NOW, processes={1: ProcessState(stopped=True)})
    assert sentence.endswith("for 24 s; rank 1 is stopped: `kill -CONT 101` continues it")


def test_a_rank_that_holds_the_lock_at_once_has_sent_no_heartbeat() -> None:
    ranks = [_rank(0, WAITING), _rank(1, heard=0.0, began=NOW - 25, line=None), _rank(2, WAITING)]
    (sentence,) = explain(ranks, NOW, processes={1: ProcessState(busy=True)})
    assert sentence.endswith(
        "rank 1 has been silent for 25 s and holds the interpreter lock in C code"
    )


def test_a_rank_is_asked_by_its_heartbeat_too() -> None:
    """It runs, so it has reported no groups; but it has called the collective, and gone on."""
    rank = _rank(1)
    rank.enqueued = {"gloo:0": 3}
    (sentence,) = explain([_rank(0, WAITING), rank, _rank(2, WAITING)], NOW)
    assert "; all its ranks have joined: `--check` tells" in sentence


def test_a_report_may_be_older_than_the_last_heartbeat() -> None:
    """The collective that was waited in when the rank reported has completed since."""
    ranks = [_rank(0, WAITING), _rank(1, BEHIND), _rank(2, WAITING)]
    for rank in ranks:
        rank.enqueued, rank.completed = {"gloo:0": 3}, {"gloo:0": 2}
    assert explain(ranks, NOW) == []


def test_a_heartbeat_from_before_the_collective_names_no_line() -> None:
    waiting = _group(*_done(_op(1, age=30)), _op(2, age=6))
    ranks = [_rank(0, waiting, heard=NOW - 7), _rank(1, BEHIND, line=9), _rank(2, waiting)]
    (sentence,) = explain(ranks, NOW)
    assert sentence.startswith("ranks 0, 2 wait in all_reduce #2 for 6 s; rank 1 has not joined")


def test_other_operations_are_a_mismatch() -> None:
    """What follows the first one is a consequence, and is left out."""
    ranks = [
        _rank(0, _group(_op(1, "barrier", inputs=(), dtypes=())), line=4),
        *(_rank(n, _group(_op(1), _op(2)), line=6) for n in (1, 2)),
    ]
    assert explain(ranks, NOW) == [
        "collective #1 differs between ranks: rank 0 called barrier (line 4); ranks 1, 2 called "
        "all_reduce of float32 [3] (line 6). All ranks must call the same collectives in the same "
        "order, with the same shapes and dtypes"
    ]


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (_op(1, inputs=((4,),)), "all_reduce of float32 [4]"),
        (_op(1, dtypes=("Int",)), "all_reduce of int32 [3]"),
        (_op(1, "broadcast"), "broadcast of float32 [3]"),
    ],
)
def test_wrong_numbers_are_told_at_the_end(other: Operation, said: str) -> None:
    """The collective has completed on all ranks, and what it returned is garbage."""
    ranks = [_rank(0, _group(*_done(other))), *(_rank(n, _group(*_done(_op(1)))) for n in (1, 2))]
    (sentence,) = mismatches(ranks)
    assert f"rank 0 called {said}" in sentence
    assert "What it returned is wrong" in sentence


@pytest.mark.parametrize("name", ["all_reduce", "broadcast", "all_gather", "reduce_scatter"])
def test_shapes_of_the_same_size_differ(name: str) -> None:
    """Each element meets another one than on the other ranks."""
    shapes = [(2, 3), (3, 2), (6,)]
    ranks = [_rank(n, _group(*_done(_op(1, name, inputs=(s,))))) for n, s in enumerate(shapes)]
    (sentence,) = mismatches(ranks)
    assert f"rank 1 called {name} of float32 [3, 2]" in sentence
    assert "What it returned is wrong" in sentence


def test_an_exchange_must_receive_what_is_sent() -> None:
    """gloo leaves the rest as it was, without a word. With the parts unknown, the sums must fit."""
    parts = [_exchange(6, 6), _exchange(6, 7), _exchange(6, 6)]
    ranks = [_rank(n, _group(*_done(part))) for n, part in enumerate(parts)]
    assert mismatches(ranks) == [
        "collective #1 differs between ranks: ranks 0, 2 called all_to_all of float32 [6] into "
        "[6]; rank 1 called all_to_all of float32 [6] into [7]. What it returned is wrong: all "
        "ranks must call the same collectives in the same order, and each must receive as many "
        "elements as the others send to it"
    ]
    assert mismatches(ranks[:2]) == []  # what the third receives is not known


def test_a_scatter_into_another_size_is_told_by_what_it_goes_into() -> None:
    source = _op(1, "scatter", inputs=((3, 2),), outputs=((2,),))
    others = [_op(1, "scatter", inputs=(), dtypes=(), outputs=((n,),)) for n in (2, 4)]
    ranks = [_rank(n, _group(*_done(one))) for n, one in enumerate([source, *others])]
    (sentence,) = mismatches(ranks)
    assert (
        "rank 0 called scatter of float32 [3, 2] into [2]; rank 1 called scatter into [2]; rank 2 "
        "called scatter into [4]. "
    ) in sentence


def test_a_collective_of_a_rank_that_has_finished_has_returned() -> None:
    """gloo notes its completion a moment after the rank has gone on."""
    last = _op(1), _op(1, dtypes=("Int",))
    ranks = [_rank(number, _group(operation)) for number, operation in enumerate(last)]
    assert "What it returned is wrong" not in mismatches(ranks)[0]
    ranks[1].take(finished(1))
    ranks[1].take(exited(1, 0))
    assert "What it returned is wrong" in mismatches(ranks)[0]


@pytest.mark.parametrize(
    "operations",
    [
        [_op(1, inputs=((2, 3),)), _op(1, inputs=((6,),))],  # gloo and NCCL count elements
        [_op(1, inputs=((),)), _op(1, inputs=((1, 1),))],
        [_op(1, inputs=((2, 3),)), _op(1, inputs=((1, 2, 3),))],
        [_op(1, "gather", outputs=((3,), (3,))), _op(1, "gather")],
        [
            _op(1, "scatter", inputs=((3,),), outputs=((3,),)),
            _op(1, "scatter", inputs=(), outputs=((3,),)),
        ],
        [_op(1, "all_to_all", inputs=((1,), (2,))), _op(1, "all_to_all", inputs=((2,), (1,)))],
        [_exchange(1, 3), _exchange(5, 3)],
        [_op(1, "barrier", inputs=(), dtypes=()), _op(1, "barrier", inputs=(), dtypes=())],
    ],
)
def test_what_may_differ(operations: list[Operation]) -> None:
    ranks = [_rank(n, _group(*_done(one), ranks=(0, 1))) for n, one in enumerate(operations)]
    assert mismatches(ranks) == []


def test_more_collectives_on_some_ranks() -> None:
    """The root of a broadcast does not wait for the others."""
    ranks = [
        _rank(0, _group(*_done(_op(1), _op(2, "broadcast")))),
        *(_rank(n, BEHIND) for n in (1, 2)),
    ]
    assert mismatches(ranks) == ["rank 0 called broadcast #2, but ranks 1, 2 did not"]


def test_a_thread_that_runs_on_may_yet_call_what_another_rank_has_called() -> None:
    """The cell has come to its end on all ranks, and the session goes on."""
    ranks = [_rank(n, _group(*_done(*map(_op, range(1, 4 + n % 2))))) for n in range(3)]
    for rank in ranks:
        rank.take(finished(rank.rank))
    assert mismatches(ranks) == ["rank 1 called all_reduce #4, but ranks 0, 2 did not"]
    ranks[2].collectives = replace(ranks[2].collectives, runs_on=True)  # type: ignore[type-var]
    assert mismatches(ranks) == []


def test_the_line_of_an_error_needs_no_heartbeat() -> None:
    """It failed in the collective before its next one was due."""
    ranks = [
        _rank(0, _group(*_done(_op(1), replace(_op(2), created=NOW + 1)))),
        *(_rank(n, BEHIND) for n in (1, 2)),
    ]
    ranks[0].take(error(0))
    assert mismatches(ranks) == ["rank 0 called all_reduce #2 (line 3), but ranks 1, 2 did not"]


def test_what_a_rank_did_not_call_since_it_lost_another_is_a_consequence() -> None:
    """Rank 3 has finished with one less in a group of its; rank 2, which waits there, misses 0."""
    first, second = _done(_op(1), _op(2)), _done(_op(1))
    ranks = [
        _rank(0, _group(*first, name="dp", title="dp", ranks=(0, 2))),
        _rank(1),
        _rank(
            2,
            _group(*second, name="dp", title="dp", ranks=(0, 2)),
            _group(*first, name="tp", title="tp", ranks=(2, 3)),
        ),
        _rank(3, _group(*second, name="tp", title="tp", ranks=(2, 3))),
    ]
    for rank in ranks[::2]:
        rank.take(error(rank.rank, "Connection closed by peer", line=3 + rank.rank))
    for rank in ranks[1::2]:
        rank.take(finished(rank.rank))
    assert mismatches(ranks) == [
        "rank 2 called all_reduce #2 of group 'tp' (line 5), but rank 3 did not"
    ]


def test_a_group_without_a_name_may_be_any() -> None:
    """Its operations have left the record on that rank."""
    ranks = [_rank(0, _group(_op(1, done=True), name="a", ranks=(0, 1))), _rank(1, _group(name=""))]
    assert mismatches(ranks) == []


def test_only_what_the_cell_called_is_counted() -> None:
    """A failed cell of the session left a group of which one rank had called more."""
    old = [_group(name="old", enqueued=n, before=n) for n in (1, 2)]
    assert mismatches([_rank(n, group) for n, group in enumerate(old)]) == []
    new = [_group(name="old", enqueued=n, before=5, ranks=(0, 1)) for n in (5, 6)]
    assert mismatches([_rank(n, group) for n, group in enumerate(new)]) == [
        "rank 1 called collective #6, but rank 0 did not"
    ]


def test_a_rank_that_has_finished_is_at_no_line() -> None:
    """torch notes a moment later that its last collective has completed."""
    ranks = [_rank(n, _group(_op(1, dtypes=(dtype,)))) for n, dtype in enumerate(["Int", "Float"])]
    for rank in ranks:
        rank.take(finished(rank.rank))
    (sentence,) = mismatches(ranks)
    assert "(line" not in sentence


def test_a_rank_without_a_report_is_not_counted() -> None:
    """It was killed: how many collectives it called is not known."""
    ranks = [_rank(0, WAITING), _rank(1), _rank(2, BEHIND)]
    assert mismatches(ranks) == []


def test_ranks_that_wait_in_each_others_subgroups() -> None:
    a, b = {"name": "1", "ranks": (0, 1)}, {"name": "2", "ranks": (1, 2)}
    ranks = [
        _rank(0, _group(), _group(_op(1), **a), line=5),
        _rank(1, _group(), _group(**a), _group(_op(1), **b), line=6),
        _rank(2, _group(), _group(**b), line=7, call="time.sleep"),
    ]
    assert explain(ranks, NOW) == [
        "rank 0 waits in all_reduce #1 of group '1' (line 5) for 24 s; rank 1 has not joined: it "
        "waits in all_reduce #1 of group '2' (line 6)",
        "rank 1 waits in all_reduce #1 of group '2' (line 6) for 24 s; rank 2 has not joined: it "
        "is at line 7, in time.sleep",
    ]


def test_the_numbers_of_many_ranks_are_short() -> None:
    ranks = [_rank(n, _group(_op(2), ranks=tuple(range(8)))) for n in range(8)]
    ranks[5] = _rank(5, line=9)
    (sentence,) = explain(ranks, NOW)
    assert sentence.startswith("ranks 0-4, 6, 7 wait in all_reduce #2")


def test_of_several_reasons_the_most_certain_is_shown() -> None:
    """A difference in the records; else who waited for whom; else who called more than others."""
    barrier = _group(_op(1, "barrier", inputs=(), dtypes=()))
    differ = [_rank(0, barrier), _rank(1, _group(_op(1))), _rank(2, _group(_op(1)))]
    (sentence,) = reasons(differ, ["rank 0 waits"])
    assert sentence.startswith("collective #1 differs between ranks")
    unequal = [_rank(0, WAITING), _rank(1, BEHIND), _rank(2, WAITING)]
    assert reasons(unequal, ["rank 0 waits"]) == ["rank 0 waits"]
    assert reasons(unequal, []) == mismatches(unequal) != []


def test_a_short_wait_that_all_have_joined_is_usual() -> None:
    """It moves data, or the last rank has just come."""
    for age, told in ((3, 0), (24, 1)):
        waiting = _group(*_done(_op(1, age=30)), _op(2, age=age))
        assert len(explain([_rank(n, waiting) for n in range(3)], NOW, wait_s=2.0)) == told


@pytest.mark.parametrize(
    ("survivor", "expected"),
    [
        (_rank(1, _group(_op(1), _op(2)), error=error(1, "reset"), line=3), "all_reduce"),
        (_rank(1, _group(*_done(_op(1, "all_gather"))), finished=finished(1)), "all_gather"),
        (_rank(1, _group(*_done(_op(1), _op(2))), finished=finished(1)), ""),
    ],
    ids=["it raised in it", "its only one", "it is not known which"],
)
def test_an_abort_for_other_sizes_names_what_others_called(survivor: Rank, expected: str) -> None:
    """The record of the rank that gloo aborted is lost; those of the others are not."""
    words = "terminate called after throwing an instance of 'x'\n  what():  "
    words += "op.preamble.length <= op.nbytes. 8 vs 4."
    aborted = _Aborted(rank=0, line=3, code=-6, ended=NOW)
    aborted.words = words
    found = [text for text in reasons([aborted, survivor], ()) if "does not match" in text]
    assert len(found) == bool(expected)
    if found:
        assert found[0].startswith(f"rank 1 called {expected} of float32 [3], #")
        assert found[0].endswith("what rank 0 at line 3 called does not match")


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        # It is the source, and goes on to the next one: what it sent there is not too much.
        ([_op(6, "broadcast", dtypes=("Double",)), _op(7, "broadcast")], "#6"),
        ([_op(6, "broadcast"), _op(7, "broadcast", dtypes=("Double",))], "#7"),
        (
            [
                _op(6, "scatter", inputs=((6,),) * 2, dtypes=("Float",) * 2),
                _op(7, "gather"),
                _op(8, "all_reduce"),
            ],
            "#6",
        ),
        # All ranks wait for each other in it, and send parts of its tensors.
        ([_op(6, "broadcast"), _op(7, "all_reduce")], "#7"),
        ([_op(6, "all_reduce", dtypes=("Double",)), _op(7, "broadcast")], "#7"),
        # So it is in a reduce, but a rank may go on: it is not known which.
        ([_op(6, "reduce"), _op(7, "all_reduce")], ""),
        ([_op(7, "reduce")], "#7"),
    ],
)
def test_a_rank_may_have_gone_on_when_gloo_aborts_another(
    calls: list[Operation], expected: str
) -> None:
    survivor = _rank(1, _group(*calls), error=error(1, "reset"), line=3)
    aborted = _Aborted(rank=0, line=3, code=-6, ended=NOW)
    aborted.words = "terminate called after throwing an instance of 'x'\n  what():  "
    aborted.words += "op.preamble.length <= op.nbytes. 24 vs 12."
    found = [text for text in reasons([aborted, survivor], ()) if "does not match" in text]
    assert len(found) == bool(expected)
    if found:
        assert f", {expected}" in found[0]


def test_who_compares_all_arguments_is_not_told_how() -> None:
    """Neither while ranks wait, nor at the end."""
    waiting = [_rank(n, WAITING) for n in range(3)]
    aborted = _Aborted(rank=0, line=3, code=-6, ended=NOW)
    aborted.words = "terminate called after throwing an instance of 'x'\n  what():  "
    aborted.words += "op.preamble.length <= op.nbytes. 8 vs 4."
    for option, told in (("--check", True), ("check", True), ("", False)):
        (sentence,) = explain(waiting, NOW, check=option)
        assert sentence.endswith(
            f"have joined: `{option}` tells whether their arguments differ"
            if told
            else "all its ranks have joined"
        )
        advice = f"`{option}` names the collective on which the ranks differ"
        found = reasons([aborted, _rank(1)], (), option)
        assert found == ([advice] if told else [])


class _Aborted(Rank):
    """A rank whose last words are known without its log."""

    words = ""

    def _last_words(self) -> str:
        return self.words


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"question": question(1)}, "it waits for an answer in the cell at line 9"),
        ({"held": error(1)}, "it raised ValueError at line 9"),
        (
            {"held": error(1), "question": question(1)},
            "it raised ValueError at line 9, and waits for an answer in the cell",
        ),
    ],
)
def test_a_rank_that_asks_is_no_riddle(more: dict[str, Any], words: str) -> None:
    """A person knows what to do about it."""
    ranks = [_rank(0, WAITING), _rank(1, BEHIND, line=9, call="input", **more), _rank(2, WAITING)]
    assert explain(ranks, NOW) == [
        f"ranks 0, 2 wait in all_reduce #2 (line 12) for 24 s; rank 1 has not joined: {words}"
    ]


def test_a_rank_that_has_finished_does_not_wait() -> None:
    """gloo may note a moment after the end of the cell that its last collective has completed."""
    ranks = [_rank(n, WAITING) for n in range(3)]
    for rank in ranks[:2]:
        rank.take(finished(rank.rank))
    (sentence,) = explain(ranks, NOW)
    assert sentence.startswith("rank 2 waits in all_reduce #2")


def test_a_rank_that_called_it_in_an_earlier_cell_is_out_of_step() -> None:
    """Its arguments are not what differs."""
    early = _group(_op(2), before=1, completed=0)
    ranks = [_rank(0, early), _rank(1, early), _rank(2, _group(_op(1)))]
    (sentence,) = explain(ranks, NOW)
    assert sentence == (
        "rank 2 waits in all_reduce #1 (line 12) for 24 s; ranks 0, 1 called it in an earlier "
        "cell, in which rank 2 did not: the ranks are out of step"
    )


def test_a_report_that_is_behind_the_heartbeats_accuses_nobody() -> None:
    """Its rank has called more than it could report."""
    ranks = [_rank(0, BEHIND), _rank(1), _rank(2, BEHIND)]
    ranks[1].collectives = Collectives(rank=1, time=NOW)
    assert mismatches(ranks) == ["ranks 0, 2 called all_reduce #1, but rank 1 did not"]
    ranks[1].enqueued = {BEHIND.key: 1}
    assert mismatches(ranks) == []


@pytest.mark.parametrize("call", ["time.sleep", "sleep", "input", "DataLoader", "subprocess.run"])
def test_a_rank_that_does_something_else_does_not_wait_for_what_it_has_called(call: str) -> None:
    """`async_op=True`, and then a pause: what it has called may complete meanwhile."""
    ranks = [_rank(0, WAITING, call=call), _rank(1, BEHIND, call=call), _rank(2, WAITING)]
    assert explain(ranks, NOW) == [
        "rank 2 waits in all_reduce #2 (line 12) for 24 s; rank 1 has not joined: it is at line "
        f"12, in {call}"
    ]


def test_a_collective_that_failed_with_different_roots() -> None:
    """The recorder has no roots: the ranks' tracebacks have them."""
    gather = _group(*_done(_op(1), _op(2, "gather")))
    ranks = [_rank(n, gather, line=4) for n in range(3)]
    for rank, root in zip(ranks, ("to rank 0", "", "to rank 1"), strict=True):
        rank.collectives = replace(rank.collectives, root=root)  # type: ignore[type-var]
    ranks[0].error, ranks[2].error = error(0), error(2)
    ranks[1].take(finished(1))
    assert reasons(ranks, ["rank 0 waits"]) == [
        "gather #2 failed; its root differs: rank 0 names rank 0; rank 2 names rank 1. All ranks "
        "must name the same one"
    ]
    ranks[2].collectives = replace(ranks[2].collectives, root="to rank 0")  # type: ignore[type-var]
    assert reasons(ranks, ["rank 0 waits"]) == ["rank 0 waits"]


def test_a_collective_of_a_thread_beside_the_main_one_is_not_the_main_threads() -> None:
    """Rank 1 sleeps; what its thread waits for is no reason why it has not joined the others."""
    beside = {"7": "line 5"}
    bg, empty = _group(_op(1), name="7", title="bg"), _group(name="7", title="bg")
    ranks = [
        _rank(0, WAITING, bg, line=7, call="all_reduce"),
        _rank(1, BEHIND, bg, line=8, call="time.sleep"),
        _rank(2, WAITING, empty, line=7, call="all_reduce"),
    ]
    for rank in ranks[:2]:
        rank.collectives = replace(rank.collectives, threads=beside)  # type: ignore[type-var]
    assert explain(ranks, NOW) == [
        "ranks 0, 2 wait in all_reduce #2 (line 7) for 24 s; rank 1 has not joined: it is at line "
        "8, in time.sleep, and waits in all_reduce #1 of group 'bg' (line 5, in a thread)",
        "ranks 0, 1 wait in all_reduce #1 of group 'bg' (line 5, in a thread) for 24 s; rank 2 has "
        "not joined: it waits in all_reduce #2 (line 7)",
    ]


def test_a_receive_of_the_main_thread_is_told_beside_a_collective_of_a_thread() -> None:
    bg = _group(_op(1), name="7", title="bg")
    ranks = [_rank(0, bg, line=7, call="recv"), _rank(1, line=8), _rank(2, line=8)]
    ranks[0].collectives = replace(
        ranks[0].collectives,  # type: ignore[type-var]
        threads={"7": "line 5"},
        transfers=(Transfer(kind="recv", peer=2),),
    )
    assert "rank 0 waits in recv from rank 2 (line 7) for 24 s; rank 2 is at line 8" in explain(
        ranks, NOW
    )


def test_a_collective_of_a_thread_has_the_line_of_the_thread() -> None:
    """The main thread waits for it, at another line."""
    waits = _rank(0, WAITING, line=9, call="Thread.join")
    assert waits.collectives is not None
    waits.collectives = replace(waits.collectives, thread="line 5")
    (sentence,) = explain([waits, _rank(1, BEHIND, line=40), _rank(2, BEHIND, line=40)], NOW)
    assert sentence.startswith("rank 0 waits in all_reduce #2 (line 5, in a thread) for 24 s")
    waits.collectives = replace(waits.collectives, time=NOW - 60)
    (sentence,) = explain([waits, _rank(1, BEHIND, line=40), _rank(2, BEHIND, line=40)], NOW)
    assert sentence.startswith("rank 0 waits in all_reduce #2 (line 9, in Thread.join) for 24 s")


def test_nodes_are_named() -> None:
    """That of the rank for which the others wait, if there are several."""
    waiting = [_rank(r, _group(_op(4)), node="n1") for r in (0, 1)]
    absent = _rank(2, _group(*_done(_op(3))), line=9, node="n2")
    (sentence,) = explain([*waiting, absent], NOW)
    assert "ranks 0, 1 wait in all_reduce" in sentence
    assert "rank 2 on n2 has" in sentence
    assert reasons([*waiting, absent], [sentence]) == [sentence]
