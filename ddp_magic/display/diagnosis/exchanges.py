"""Sends that do not fit their receives. Pure.

gloo fills the first part of a larger tensor, and takes the bytes of another dtype as they are, both
without a word. It ends a rank that receives more bytes than its tensor has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, repeat

from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import Exchange


def misfits(ranks: Sequence[Rank]) -> list[str]:
    """Return a sentence for each two ranks of which one has received something else than was sent.

    Args:
        ranks: What is known of the ranks at the end of a run.
    """
    received = {
        (taken.peer, rank.rank, taken.tag, taken.group): taken
        for rank in ranks
        for taken in _exchanges(rank, "recv")
    }
    found = []
    for rank in ranks:
        for sent in _exchanges(rank, "send"):
            taken = received.get((rank.rank, sent.peer, sent.tag, sent.group))
            # Otherwise one belongs to another cell, or was received from any rank.
            if taken is not None and sum(sent.counts) == sum(taken.counts):
                found += [_words(rank.rank, sent, *one) for one in _first_misfit(sent, taken)]
    return found


def sent_to(aborted: Rank, ranks: Sequence[Rank]) -> list[str]:
    """Return what others had sent to a rank that gloo ended for the size of what it received.

    Of several sends it is the last one of that size: the sender may have gone on.
    """
    received = aborted.failure.received_bytes if aborted.failure else None
    found = []
    for rank in ranks:
        for sent in _exchanges(rank, "send"):
            if sent.peer == aborted.rank:
                fits = [tensor for tensor in sent.tensors if _bytes(tensor) == received]
                found.append(
                    f"rank {rank.rank} sent {(fits or sent.tensors)[-1]} to rank {aborted.rank}; "
                    f"what rank {aborted.rank}{aborted.where} receives does not match"
                )
    return found


def _bytes(tensor: str) -> int:
    """Return the size of `4 elements of float32`."""
    count, _, dtype = tensor.partition(" ")
    bits = re.search(r"\d+$", dtype)
    return int(count) * (int(bits[0]) // 8 if bits else 1)


def _exchanges(rank: Rank, kind: str) -> list[Exchange]:
    reported = rank.collectives
    return [one for one in reported.exchanges if one.kind == kind] if reported else []


def _first_misfit(sent: Exchange, taken: Exchange) -> Iterator[tuple[int, str, str]]:
    """Yield number, sent and received tensor of the first message that does not fit, if any."""
    pairs = zip(_each(sent), _each(taken), strict=True)
    numbered = ((n, one, other) for n, (one, other) in enumerate(pairs, 1) if one != other)
    if (first := next(numbered, None)) is not None:
        yield first


def _each(exchange: Exchange) -> Iterator[str]:
    runs = zip(exchange.tensors, exchange.counts, strict=True)
    return chain.from_iterable(repeat(tensor, count) for tensor, count in runs)


def _words(rank: int, sent: Exchange, number: int, tensor: str, into: str) -> str:
    which = f" #{number}" if sum(sent.counts) > 1 else ""
    tag = f" with tag {sent.tag}" if sent.tag else ""
    message = f"message{which}{tag} from rank {rank} to rank {sent.peer}"
    return (
        f"rank {rank} sent {tensor} to rank {sent.peer}, which received {into} ({message}): what "
        "it received is wrong. Both need the same number of elements and the same dtype"
    )
