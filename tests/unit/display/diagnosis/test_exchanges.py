"""Sends that do not fit their receives: from what ranks report to sentences."""

from __future__ import annotations

import pytest

from ddp_magic.display.diagnosis.hangs import mismatches, reasons
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import Exchange
from ddp_magic.wire.worker_events import Collectives

FOUR, EIGHT, INTS = "4 elements of float32", "8 elements of float32", "4 elements of int32"


def _exchange(kind: str, peer: int, *runs: tuple[str, int], tag: int = 0) -> Exchange:
    tensors, counts = zip(*runs, strict=True)
    return Exchange(kind=kind, peer=peer, tag=tag, group="0", tensors=tensors, counts=counts)


def _ranks(*exchanges: list[Exchange]) -> list[Rank]:
    ranks = [Rank(rank=number) for number in range(len(exchanges))]
    for rank, own in zip(ranks, exchanges, strict=True):
        rank.collectives = Collectives(rank=rank.rank, time=1.0, exchanges=tuple(own))
    return ranks


@pytest.mark.parametrize(
    ("sent", "taken", "said"),
    [
        ([(FOUR, 1)], [(EIGHT, 1)], f"sent {FOUR} to rank 2, which received {EIGHT} (message from"),
        ([(FOUR, 1)], [(INTS, 1)], f"sent {FOUR} to rank 2, which received {INTS} (message from"),
        ([(FOUR, 3), (EIGHT, 1)], [(FOUR, 2), (EIGHT, 2)], f"received {EIGHT} (message #3 from"),
        ([(FOUR, 3), (EIGHT, 1)], [(FOUR, 3), (EIGHT, 1)], ""),
        ([(FOUR, 3)], [(EIGHT, 2)], ""),  # one of them was sent or received in another cell
    ],
)
def test_what_was_received_is_what_was_sent(
    sent: list[tuple[str, int]], taken: list[tuple[str, int]], said: str
) -> None:
    ranks = _ranks([_exchange("send", 2, *sent)], [], [_exchange("recv", 0, *taken)])
    found = mismatches(ranks)
    assert len(found) == bool(said)
    assert all(said in text and text.startswith("rank 0 sent ") for text in found)


@pytest.mark.parametrize(
    "taken",
    [
        _exchange("recv", 0, (EIGHT, 1), tag=1),
        _exchange("recv", 2, (EIGHT, 1)),
        _exchange("send", 0, (EIGHT, 1)),
    ],
)
def test_only_what_belongs_together_is_compared(taken: Exchange) -> None:
    assert mismatches(_ranks([_exchange("send", 1, (FOUR, 1))], [taken], [])) == []


class _Aborted(Rank):
    """A rank whose last words are given here, not in a file."""

    def _last_words(self) -> str:
        return (
            "terminate called after throwing an instance of 'x'\n  what():  "
            "op.preamble.length <= op.nbytes. 32 vs 16."
        )


def test_a_rank_that_gloo_ended_has_received_what_another_sent() -> None:
    ranks = _ranks([_exchange("send", 1, (FOUR, 1), (EIGHT, 1))])
    ranks.append(_Aborted(rank=1, line=4, code=-6, ended=2.0))
    assert reasons(ranks, (), check="") == [
        f"rank 0 sent {EIGHT} to rank 1; what rank 1 at line 4 receives does not match"
    ]


def test_the_sender_may_have_gone_on() -> None:
    """Of what it sent, that is named which has the size that the other end has received."""
    ranks = _ranks([_exchange("send", 1, (EIGHT, 1), (FOUR, 3))])
    ranks.append(_Aborted(rank=1, line=4, code=-6, ended=2.0))
    assert f"rank 0 sent {EIGHT} to rank 1; what " in reasons(ranks, ())[0]
