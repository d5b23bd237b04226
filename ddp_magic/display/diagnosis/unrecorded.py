"""Waits for other ranks that torch's Flight Recorder does not know: sends, receives, groups. Pure.

That a rank waits, and in which line, its stack says; for whom, what it reports of its transfers.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

from ddp_magic.display.diagnosis.creations import other_groups, other_sizes
from ddp_magic.display.diagnosis.words import MAX_CLAUSES, listed, names, verb
from ddp_magic.display.rank import Rank
from ddp_magic.wire.collectives import Transfer

# Functions of torch.distributed in which a rank waits for others. Some the recorder does not know;
# NCCL records a group's first collective only once all its ranks have come; old torch records none.
_WAITS = frozenset(
    [
        "recv", "send", "batch_isend_irecv", "recv_object_list", "send_object_list",
        "new_group", "init_process_group", "init_device_mesh", "monitored_barrier",
        "_store_based_barrier", "split_group", "new_subgroups", "all_reduce", "broadcast",
        "barrier", "reduce", "all_gather", "gather", "scatter", "all_gather_into_tensor",
        "reduce_scatter", "reduce_scatter_tensor", "all_to_all", "all_to_all_single",
        "all_gather_object", "gather_object", "scatter_object_list", "broadcast_object_list",
        "new_subgroups_by_enumeration",
    ]
)  # fmt: skip
# `req.wait()` of what isend or irecv returned, which gloo does not record. What else waits under
# this name has a Python function for it, and is called by its class: `Event.wait`.
_WORK_WAIT = re.compile(r"(?![A-Z]\w*\.wait$).+\.wait")
# What calls collectives from C++ code, where there is no record of them.
_CPP = re.compile(r"(.*\.)?backward|DistributedDataParallel\..*")
_IDLE = 0.1  # share of a processor below which a main thread does not compute
_LAG_S = 1.0  # a main thread is seen at a place so much later at most than it came there

Whereabouts = Callable[[int], str]


def unrecorded_waits(
    ranks: Sequence[Rank], wait_s: float, explained: Collection[int], whereabouts: Whereabouts
) -> list[str]:
    """Return sentences on ranks whose stack says that they wait for others.

    Args:
        ranks: What is known of the ranks.
        wait_s: A shorter wait is left out, in seconds.
        explained: Ranks whose wait the recorder knows.
        whereabouts: Returns where a rank is that others wait for, as `it is at line 4`.
    """
    in_cpp = _waits_in_cpp(ranks)
    waiting = [
        rank
        for rank in ranks
        if (_waits(rank) or rank.rank in in_cpp)
        and rank.still_s >= wait_s
        and rank.rank not in explained
        # Of those that wait in the same collective, this one's may have timed out first.
        and not (explained and _is_recorded(rank))
    ]
    sentences = []
    for tell in (other_sizes, other_groups, _other_tags, _circle):
        told, sentence = tell(waiting)
        waiting = [rank for rank in waiting if rank.rank not in told]
        sentences += [sentence] if sentence else []
    alike: dict[tuple[str, str, tuple[Transfer, ...]], list[Rank]] = defaultdict(list)
    for rank in waiting:
        alike[rank.call, rank.full_place, transfers(rank)].append(rank)
    return [*sentences, *(_wait(who, ranks, whereabouts) for who in alike.values())]


def awaited(rank: Rank) -> str:
    """Return what a rank waits for, `recv from rank 2 (line 4)`; empty if that is not known."""
    if not _waits(rank) or not transfers(rank):
        return ""
    return _words(rank)


def lost_partner(rank: Rank, ranks: Sequence[Rank]) -> str:
    """Return how a send or a receive failed whose partner is gone; empty if it was none.

    Args:
        rank: That which lost its connection.
        ranks: All of them.
    """
    found = transfers(rank)
    peer = found[0].peer if len(found) == 1 else None
    if peer is None or peer >= len(ranks) or not ranks[peer].succeeded:
        return ""
    how = "left early (os._exit(0) in the cell)" if ranks[peer].left_early else "finished"
    place = f" ({rank.full_place})" if rank.full_place else ""
    what = found[0].kind + _partner(found[0])
    return f"rank {rank.rank} waited in {what}{place}, which has {how}"


def transfers(rank: Rank) -> tuple[Transfer, ...]:
    """Return the sends and receives that a rank waits for, where it is now."""
    reported = rank.collectives
    return reported.transfers if reported is not None and is_recent(rank) else ()


def place_in_thread(rank: Rank, group: str = "") -> str:
    """Return where a thread waits, as `line 5, in a thread`; empty if no thread is known to.

    Args:
        rank: Which rank.
        group: The name of the group in whose collective it is; empty for a thread in any, for which
            the main thread waits.
    """
    if (reported := rank.collectives) is None or not is_recent(rank):
        return ""
    if (thread := reported.threads.get(group)) is not None:
        return ", ".join(filter(None, [thread, "in a thread"]))
    return f"{reported.thread}, in a thread" if reported.thread else ""


def waits_beside(rank: Rank, group: str) -> bool:
    """Whether a thread is in a collective of a group, for which the main thread does not wait."""
    reported = rank.collectives
    return bool(
        reported is not None
        and is_recent(rank)
        and group in reported.threads
        and not reported.thread
    )


def different_roots(ranks: Sequence[Rank]) -> str:
    """Return a sentence if ranks wait in a collective with different roots; empty if not.

    Args:
        ranks: Those that wait in it.
    """
    same: dict[str, list[int]] = defaultdict(list)
    for rank in ranks:
        if (report := rank.collectives) is not None and report.root and is_recent(rank):
            same[report.root].append(rank.rank)
    # A root may be named by its rank in the world or in the group.
    if len(same) < 2 or len({root.endswith("group") for root in same}) > 1:
        return ""
    clauses = [
        f"{names(who)} {verb(who, 'name')} {root.partition(' ')[2]}" for root, who in same.items()
    ]
    return f"its root differs: {listed(clauses)}. All ranks must name the same one"


def is_recent(rank: Rank) -> bool:
    """Whether a rank's last report is of the place where it is now."""
    report = rank.collectives
    return report is not None and report.time >= rank.heard - rank.still_s - _LAG_S


def _waits(rank: Rank) -> bool:
    if not rank.busy or rank.error is not None or rank.finished is not None:
        return False
    call = re.split(" #| of ", rank.call)[0]
    # A library may wait for them, as torch's pipelines do.
    return call in _WAITS or _WORK_WAIT.fullmatch(call) is not None or bool(transfers(rank))


def _waits_in_cpp(ranks: Sequence[Rank]) -> set[int]:
    """Return ranks that seem to wait in C++ code, as in DDP's backward, if nothing is recorded.

    So it is with a torch that has no recorder for the backend, and with TORCH_FR_BUFFER_SIZE=0. If
    all ranks are there, they wait for something else.
    """
    if any(rank.collectives.groups for rank in ranks if rank.collectives):
        return set()
    found = {
        rank.rank
        for rank in ranks
        if rank.busy
        and rank.finished is None
        and rank.error is None
        and rank.cpu < _IDLE
        and _CPP.fullmatch(rank.call)
    }
    return found if len(found) < len(ranks) else set()


def _is_recorded(rank: Rank) -> bool:
    """Whether the recorder knows the call: it has come to an end, of which the rank has not heard.

    So it is when it has timed out, until the rank reports the error.
    """
    since = rank.heard - rank.still_s - _LAG_S
    return any(
        rank.call.startswith(operation.name) and operation.created >= since
        for group in (rank.collectives.groups if rank.collectives else ())
        for operation in group.operations
    )


def _words(rank: Rank) -> str:
    """Return what a rank waits in, and where: `recv from rank 2 (line 5, in w.wait)`."""
    found, call, thread = transfers(rank), rank.call, place_in_thread(rank)
    place = [rank.full_place] if rank.full_place else []
    if len(found) == 1:
        (one,) = found
        if call not in _WAITS:
            call, place = one.kind, [*place, f"in {rank.call}"]
        call += _partner(one)
    place = [thread] if thread else place
    return f"{call} ({', '.join(place)})" if place else call


def _partner(transfer: Transfer) -> str:
    who = "any rank" if transfer.peer is None else f"rank {transfer.peer}"
    return f" {'from' if transfer.kind == 'recv' else 'to'} {who}"


def _wait(who: list[Rank], ranks: Sequence[Rank], whereabouts: Whereabouts) -> str:
    numbers = [rank.rank for rank in who]
    seconds = max(rank.still_s for rank in who)
    found = transfers(who[0])
    head = f"{names(numbers)} {verb(numbers, 'wait')} in {_words(who[0])} for {seconds:.0f} s"
    if len(found) > 1:
        each = dict.fromkeys(transfer.kind + _partner(transfer) for transfer in found)
        head += f", for one of: {', '.join(list(each)[:MAX_CLAUSES])}"
    if found and who[0].call == "is_completed":
        head += ": gloo completes it only in `wait()`"
    peers = {transfer.peer for transfer in found}
    others = [
        rank.rank
        for rank in ranks
        if (rank.rank in peers if peers and None not in peers else rank.rank not in numbers)
    ]
    places: dict[str, list[int]] = defaultdict(list)
    for other in others:
        places[whereabouts(other)].append(other)
    return "; ".join([head, *(_fate(text, them) for text, them in places.items())])


def _fate(text: str, who: list[int]) -> str:
    if len(who) == 1:
        return text.replace("it ", f"rank {who[0]} ", 1)
    return f"{names(who)}: {text.replace('it ', 'each ', 1)}"


def _other_tags(waiting: Sequence[Rank]) -> tuple[set[int], str]:
    """Return two ranks that wait for each other with different tags, and a sentence on them."""
    single = {rank.rank: transfers(rank)[0] for rank in waiting if len(transfers(rank)) == 1}
    by_number = {rank.rank: rank for rank in waiting}
    for number, sent in single.items():
        taken = single.get(-1 if sent.peer is None else sent.peer)
        if sent.kind != "send" or taken is None or (taken.kind, taken.peer) != ("recv", number):
            continue
        if sent.tag != taken.tag:
            told = {number, sent.peer or 0}
            ends = [_words(by_number[rank]) for rank in (number, sent.peer or 0)]
            return told, (
                f"rank {number} waits in {ends[0]} with tag {sent.tag}, and rank {sent.peer} in "
                f"{ends[1]} with tag {taken.tag}: a receive takes only what was sent with its tag"
            )
    return set(), ""


def _circle(waiting: Sequence[Rank]) -> tuple[set[int], str]:
    """Return ranks of which each waits for the next, and the last for the first."""
    by_number = {rank.rank: rank for rank in waiting if len(transfers(rank)) == 1}
    for start in by_number:
        path: list[int] = []
        at: int | None = start
        while at is not None and at in by_number and at not in path:
            path.append(at)
            at = transfers(by_number[at])[0].peer
        kinds = {transfers(by_number[number])[0].kind for number in path}
        if at != start or len(kinds) > 1:
            continue
        clauses = [f"rank {number} waits in {_words(by_number[number])}" for number in path]
        seconds = min(by_number[number].still_s for number in path)
        other = "send" if kinds == {"recv"} else "recv"
        return set(path), (
            f"{names(path)} wait for each other for {seconds:.0f} s: {listed(clauses)}. One of "
            f"them must call {other} first"
        )
    return set(), ""
