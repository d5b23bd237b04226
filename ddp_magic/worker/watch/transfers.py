"""The sends and receives of this rank that may not have completed, with their partners.

gloo does not record them. `dist.send` and `dist.recv` have their partner as an argument on the
stack; what waits for the Work of `isend` or `irecv` does not. So the methods of `ProcessGroup` that
make such a Work are replaced by ones that remember it, which costs some 2 us a call.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NamedTuple

from torch.distributed import ProcessGroup, distributed_c10d

from ddp_magic.wire.collectives import Transfer
from ddp_magic.worker.watch.main_thread import called_expression, frames_of_main_thread

_METHODS = {"send": "send", "recv": "recv", "recv_anysource": "recv"}
_WAIT = ".wait"


class _Made(NamedTuple):
    """How a Work was made: the method of the group, its arguments after the tensors."""

    method: str
    group: weakref.ref[Any]
    arguments: tuple[Any, ...]


_made: weakref.WeakKeyDictionary[Any, _Made] = weakref.WeakKeyDictionary()


def remember_transfers() -> None:
    """Remember from now on what the sends and receives of gloo are waiting for."""
    for method in _METHODS:
        original = getattr(ProcessGroup, method)
        if not hasattr(original, "__wrapped__"):
            setattr(ProcessGroup, method, _remembering(method, original))


def _remembering(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def transfer(group: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- torch's
        work = original(group, tensors, *args, **kwargs)
        # NCCL records its own, and their state is the device's.
        if work is not None and not tensors[0].is_cuda:
            _made[work] = _Made(method, weakref.ref(group), args or tuple(kwargs.values()))
        return work

    return transfer


def awaited_transfers() -> tuple[Transfer, ...]:
    """Return what the main thread waits for, if it waits for a send or a receive; oldest first.

    If it is not known for which, all are returned that may not have completed: torch says of one
    that has arrived only once someone has waited for it.
    """
    frames = frames_of_main_thread()
    return transfers_of(frames[0]) if frames else ()


def transfers_of(frame: FrameType) -> tuple[Transfer, ...]:
    """Return `awaited_transfers` of a thread whose innermost frame is known."""
    expression = called_expression(frame)
    if not expression.endswith(_WAIT):
        return ()
    name = expression.removesuffix(_WAIT)
    work: Any = frame.f_locals.get(name, frame.f_globals.get(name))
    try:
        if work is None:
            waited = list(_made.items())
        else:
            waited = [(work, _made[work])] if work in _made else []
    except (RuntimeError, TypeError):  # the main thread adds one at this moment; not hashable
        return ()
    return tuple(_described(made for work, made in waited if not work.is_completed()))


def _described(waited: Iterable[_Made]) -> Iterable[Transfer]:
    for made in waited:
        group = made.group()
        if group is None:
            continue
        *peers, tag = made.arguments
        try:
            peer = distributed_c10d.get_global_rank(group, int(peers[0])) if peers else None
        except (KeyError, ValueError, RuntimeError):  # the group has been destroyed
            continue
        yield Transfer(kind=_METHODS[made.method], peer=peer, tag=max(0, int(tag)))
