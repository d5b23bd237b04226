"""Waits that torch's Flight Recorder does not know: from what ranks report to sentences."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ddp_magic.display.diagnosis.hangs import explain
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import GroupRecord, Operation, Transfer
from ddp_magic.wire.states import Phase
from ddp_magic.wire.worker_events import Collectives
from tests.unit.fakes import error, finished

NOW = 1000.0


def _recv(peer: int | None, tag: int = 0) -> Transfer:
    return Transfer(kind="recv", peer=peer, tag=tag)


def _send(peer: int, tag: int = 0) -> Transfer:
    return Transfer(kind="send", peer=peer, tag=tag)


def _rank(number: int, line: int, *transfers: Transfer, **more: Any) -> Rank:
    settings = {"phase": Phase.RUNNING, "still_s": 24.0, "heard": NOW, "pid": 100 + number, **more}
    rank = Rank(rank=number, line=line, **settings)
    rank.collectives = Collectives(rank=number, time=NOW, transfers=transfers)
    return rank


def test_a_receive_names_its_partner() -> None:
    """torch's recorder has no sends and receives of gloo: the stack has them."""
    ranks = [
        _rank(0, 4, _recv(2), call="recv"),
        _rank(1, 5),
        _rank(2, 6, call="time.sleep"),
    ]
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from rank 2 (line 4) for 24 s; rank 2 is at line 6, in time.sleep"
    ]


@pytest.mark.parametrize("call", ["req.wait", "dist.irecv(...).wait", "reqs[0].wait"])
def test_a_request_names_its_partner(call: str) -> None:
    ranks = [_rank(0, 4, _send(2), call=call), _rank(1, 5), _rank(2, 6, call="time.sleep")]
    assert explain(ranks, NOW) == [
        f"rank 0 waits in send to rank 2 (line 4, in {call}) for 24 s; "
        "rank 2 is at line 6, in time.sleep"
    ]


def test_a_loop_that_asks_for_a_request_is_told_to_wait_for_it() -> None:
    """`while not w.is_completed(): pass`."""
    ranks = [_rank(0, 4, _recv(1), call="is_completed"), _rank(1, 5)]
    ranks[1].take(finished(1))
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from rank 1 (line 4, in is_completed) for 24 s: gloo completes it "
        "only in `wait()`; rank 1 has finished its cell"
    ]


def test_ranks_that_give_different_world_sizes() -> None:
    calls = [f"init_process_group of world size {size}" for size in (4, 3, 3)]
    ranks = [_rank(n, 2, call=call) for n, call in enumerate(calls)]
    assert explain(ranks, NOW) == [
        "ranks give init_process_group different world sizes: rank 0 gives 4 (line 2); ranks 1, 2 "
        "give 3 (line 2). All must give the number of ranks"
    ]
    ranks = [_rank(n, 2, call=calls[0]) for n in range(3)]
    assert explain(ranks, NOW) == [
        "ranks 0-2 wait in init_process_group of world size 4 (line 2) for 24 s"
    ]


def test_a_request_whose_partner_is_not_known() -> None:
    """So it is where torch's Work was made by something else; all others are told."""
    ranks = [_rank(0, 4, call="w.wait"), *(_rank(n, 6, call="time.sleep") for n in (1, 2))]
    assert explain(ranks, NOW) == [
        "rank 0 waits in w.wait (line 4) for 24 s; ranks 1, 2: each is at line 6, in time.sleep"
    ]


def test_one_of_several_requests_is_waited_for() -> None:
    ranks = [
        _rank(0, 4, _send(1), _recv(3), call="reqs[0].wait"),
        *(_rank(n, 9) for n in (1, 2, 3)),
    ]
    assert explain(ranks, NOW) == [
        "rank 0 waits in reqs[0].wait (line 4) for 24 s, for one of: send to rank 1, recv from "
        "rank 3; ranks 1, 3: each is at line 9"
    ]


def test_a_receive_of_a_thread_has_the_line_of_the_thread() -> None:
    """The main thread waits for it, at another line."""
    ranks = [_rank(0, 9, call="Thread.join"), _rank(1, 5)]
    ranks[0].collectives = Collectives(rank=0, time=NOW, transfers=(_recv(1),), thread="line 4")
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from rank 1 (line 4, in a thread) for 24 s; rank 1 is at line 5"
    ]


def test_a_receive_from_any_rank_has_every_other_for_its_partner() -> None:
    ranks = [_rank(0, 4, _recv(None), call="recv"), _rank(1, 9), _rank(2, 9)]
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from any rank (line 4) for 24 s; ranks 1, 2: each is at line 9"
    ]


def test_a_partner_that_waits_for_a_third_is_told_with_it() -> None:
    ranks = [
        _rank(0, 4, _recv(1), call="recv"),
        _rank(1, 5, _recv(2), call="w.wait"),
        _rank(2, 6, call="time.sleep"),
    ]
    assert explain(ranks, NOW)[0] == (
        "rank 0 waits in recv from rank 1 (line 4) for 24 s; "
        "rank 1 waits in recv from rank 2 (line 5, in w.wait)"
    )


def test_what_was_reported_of_an_earlier_line_is_not_told() -> None:
    ranks = [_rank(0, 4, _recv(2), call="w.wait", still_s=6.0), _rank(1, 5), _rank(2, 6)]
    ranks[0].collectives = Collectives(rank=0, time=NOW - 9, transfers=(_recv(2),))
    assert explain(ranks, NOW)[0].startswith("rank 0 waits in w.wait (line 4) for 6 s; rank 1")


@pytest.mark.parametrize("call", ["Event.wait", "Popen.wait", "wait"])
def test_what_else_is_waited_for_is_no_wait_for_ranks(call: str) -> None:
    assert explain([_rank(0, 4, call=call), _rank(1, 6, call="time.sleep")], NOW) == []


def test_ranks_that_all_receive_first_wait_in_a_circle() -> None:
    ranks = [_rank(n, 3, _recv((n + 2) % 3), call="recv") for n in range(3)]
    assert explain(ranks, NOW) == [
        "ranks 0-2 wait for each other for 24 s: rank 0 waits in recv from rank 2 (line 3); "
        "rank 2 waits in recv from rank 1 (line 3); rank 1 waits in recv from rank 0 (line 3). "
        "One of them must call send first"
    ]


def test_a_library_that_waits_for_a_transfer() -> None:
    """torch's pipelines wait for what they have sent and received."""
    ranks = [_rank(0, 8, _recv(1), call="ScheduleGPipe.step"), _rank(1, 7, call="time.sleep")]
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from rank 1 (line 8, in ScheduleGPipe.step) for 24 s; "
        "rank 1 is at line 7, in time.sleep"
    ]


def test_a_circle_of_many_ranks_is_short() -> None:
    ranks = [_rank(n, 3, _send((n + 1) % 32), call="send") for n in range(32)]
    (sentence,) = explain(ranks, NOW)
    assert "rank 3 waits in send to rank 4 (line 3); and 28 more. One of them must call recv" in (
        sentence
    )


def test_a_receive_with_another_tag_than_the_send() -> None:
    ranks = [
        _rank(0, 2, _send(1, tag=1), call="send"),
        _rank(1, 3, _recv(0, tag=2), call="recv"),
        _rank(2, 4, call="time.sleep"),
    ]
    assert explain(ranks, NOW) == [
        "rank 0 waits in send to rank 1 (line 2) with tag 1, and rank 1 in recv from rank 0 "
        "(line 3) with tag 2: a receive takes only what was sent with its tag"
    ]


def test_a_long_transfer_has_its_send_and_its_receive() -> None:
    """It may move data: nothing is wrong with it."""
    ranks = [_rank(0, 2, _send(1), call="send"), _rank(1, 3, _recv(0), call="recv")]
    send = "rank 0 waits in send to rank 1 (line 2)"
    recv = "rank 1 waits in recv from rank 0 (line 3)"
    assert explain(ranks, NOW) == [f"{send} for 24 s; {recv}", f"{recv} for 24 s; {send}"]


def test_a_group_that_only_some_ranks_create() -> None:
    ranks = [_rank(n, 4, call="new_group") for n in (0, 1)] + [_rank(2, 6, call="step")]
    assert explain(ranks, NOW) == [
        "ranks 0, 1 wait in new_group (line 4) for 24 s; rank 2 is at line 6, in step"
    ]


def test_groups_that_are_created_in_another_order() -> None:
    ranks = [_rank(n, 5, call="new_group #1 of ranks 0, 1, 2") for n in (0, 2)]
    ranks.insert(1, _rank(1, 3, call="new_group #1 of ranks 0, 1"))
    assert explain(ranks, NOW) == [
        "ranks create different groups: ranks 0, 2 call new_group([0, 1, 2]) (line 5); rank 1 "
        "calls new_group([0, 1]) (line 3). All ranks must create the same groups in the same order"
    ]


def test_groups_of_which_some_ranks_have_created_one_more() -> None:
    """Rank 1 waits for its first one, in which ranks 0 and 2 are: they have created another one."""
    calls = [f"new_group #{number} of ranks 0, 1, 2" for number in (2, 1, 2)]
    assert explain([_rank(n, 4, call=call) for n, call in enumerate(calls)], NOW) == [
        "ranks create different groups: ranks 0, 2 call new_group([0, 1, 2]), its group #2 (line "
        "4); rank 1 calls new_group([0, 1, 2]), its group #1 (line 4). All ranks must create the "
        "same groups in the same order"
    ]


def test_ranks_that_create_groups_in_turn_need_not_create_the_same_at_a_time() -> None:
    """Rank 2 is no member of the first group, and waits in the second for rank 3, which is slow."""
    ranks = [_rank(0, 4, call="new_group #1 of ranks 0, 1"), _rank(1, 3, call="time.sleep")]
    ranks += [_rank(2, 5, call="new_group #2 of ranks 2, 3"), _rank(3, 3, call="time.sleep")]
    assert explain(ranks, NOW) == [
        "rank 0 waits in new_group #1 of ranks 0, 1 (line 4) for 24 s; ranks 1, 3: each is at line "
        "3, in time.sleep; rank 2 is at line 5, in new_group #2 of ranks 2, 3",
        "rank 2 waits in new_group #2 of ranks 2, 3 (line 5) for 24 s; rank 0 is at line 4, in "
        "new_group #1 of ranks 0, 1; ranks 1, 3: each is at line 3, in time.sleep",
    ]


def test_a_collective_that_has_just_timed_out_is_told_once() -> None:
    """The recorder has it as completed, before the rank has reported the error."""
    ended = Operation(number=1, name="all_reduce", created=NOW - 24, done=True)
    group = GroupRecord(
        name="0", backend="gloo", title="default_pg", ranks=(0, 1, 2), enqueued=1, completed=1,
        operations=(ended,),
    )  # fmt: skip
    ranks = [_rank(0, 4, call="all_reduce"), _rank(1, 5, call="time.sleep")]
    ranks.append(_rank(2, 4, call="all_reduce"))
    ranks[0].collectives = Collectives(rank=0, time=NOW, groups=(group,))
    (alone,) = explain(ranks, NOW)
    assert "rank 1 is at line 5, in time.sleep" in alone
    waits = replace(group, completed=0, operations=(replace(ended, done=False),))
    ranks[2].collectives = Collectives(rank=2, time=NOW, groups=(waits,))
    (both,) = explain(ranks, NOW)  # the recorder's
    assert both.startswith("rank 2 waits in all_reduce #1")


@pytest.mark.parametrize(
    ("roots", "said"),
    [
        (
            ["from rank 0", "from rank 1", "from rank 0"],
            "its root differs: ranks 0, 2 name rank 0; rank 1 names rank 1. All ranks must name "
            "the same one",
        ),
        (["from rank 0", "from rank 0 of the group", ""], "all its ranks have joined: `--check` "),
    ],
)
def test_a_collective_with_different_roots(roots: list[str], said: str) -> None:
    operation = Operation(number=1, name="broadcast", created=NOW - 24, done=False)
    group = GroupRecord(
        name="0", backend="gloo", title="default_pg", ranks=(0, 1, 2), enqueued=1, completed=0,
        operations=(operation,),
    )  # fmt: skip
    ranks = [_rank(number, 4, call="broadcast") for number in range(3)]
    for rank, root in zip(ranks, roots, strict=True):
        rank.collectives = Collectives(rank=rank.rank, time=NOW, root=root, groups=(group,))
    (sentence,) = explain(ranks, NOW)
    assert sentence.startswith(f"ranks 0-2 wait in broadcast #1 (line 4) for 24 s; {said}")


def test_the_line_of_another_cell_is_told() -> None:
    ranks = [
        _rank(0, 4, _recv(1), call="recv", inner="Cell In[3], line 7"),
        _rank(1, 6, call="time.sleep", inner="train.py, line 8"),
    ]
    assert explain(ranks, NOW) == [
        "rank 0 waits in recv from rank 1 (line 4, which calls Cell In[3], line 7) for 24 s; "
        "rank 1 is at line 6, which calls train.py, line 8, in time.sleep"
    ]


def test_a_rank_that_has_failed_does_not_wait() -> None:
    rank = _rank(0, 4, _recv(1), call="recv")
    rank.error = error(0)
    assert explain([rank, _rank(1, 5)], NOW) == []


@pytest.mark.parametrize("call", ["Tensor.backward", "backward", "DistributedDataParallel.forward"])
def test_without_any_record_a_still_backward_waits_for_others(call: str) -> None:
    """An older torch, or no buffer: DDP calls its collectives from C++."""
    ranks = [_rank(0, 4, call=call), _rank(1, 6, call="time.sleep"), _rank(2, 4, call=call)]
    assert explain(ranks, NOW) == [
        f"ranks 0, 2 wait in {call} (line 4) for 24 s; rank 1 is at line 6, in time.sleep"
    ]


def test_without_any_record_a_backward_may_compute() -> None:
    """Or all wait for something else, such as their GPUs; or the record knows that none waits."""
    calls = ["Tensor.backward", "time.sleep", "Tensor.backward"]
    busy = [_rank(n, 4, call=call, cpu=0.9) for n, call in enumerate(calls)]
    same = [_rank(n, 4, call="Tensor.backward") for n in range(3)]
    recorded = [_rank(n, 4, call=call) for n, call in enumerate(calls)]
    group = GroupRecord(
        name="0", backend="gloo", title="", ranks=(0, 1, 2), enqueued=3, completed=3
    )
    recorded[1].collectives = Collectives(rank=1, time=NOW, groups=(group,))
    for ranks in (busy, same, recorded):
        assert explain(ranks, NOW) == []
