"""The sends and receives of this rank that may not have completed, with their partners.

gloo does not record them. `dist.send` and `dist.recv` have their partner as an argument on the
stack; what waits for the Work of `isend` or `irecv` does not. So the methods of `ProcessGroup` that
make such a Work are replaced by ones that remember it, which costs some 0.5 us a call;
and `Work.is_completed` by one that notes when it is asked again and again.
"""

from __future__ import annotations

import ast
import functools
import re
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from time import monotonic  # bound here: a cell may replace the module's
from types import FrameType, TracebackType
from typing import Any, NamedTuple

from torch.distributed import ProcessGroup, Work, distributed_c10d

from ddp_magic.wire.collectives import Exchange, Transfer
from ddp_magic.worker.watch.frame_calls import called_expression
from ddp_magic.worker.watch.main_thread import frames_of_main_thread

_METHODS = {"send": "send", "recv": "recv", "recv_anysource": "recv"}
_WAIT = ".wait"
_CHAINED = re.compile(r"(?:.*\.)?i(send|recv)\(.*\)\.wait")
_POLL_S = 0.5  # a loop asks more often than this whether something has completed


class _Made(NamedTuple):
    """How a Work was made: the method of the group, its arguments after the tensor, and that."""

    work: weakref.ref[Any]
    method: str
    group: weakref.ref[Any]
    arguments: tuple[Any, ...]
    dtype: object
    elements: int


_MOST = 4096  # are remembered; plain tuples, which are made faster
_made: deque[tuple[Any, ...]] = deque(maxlen=_MOST)
_told: object = None  # the last one of which `new_exchanges` has told

# What the main thread has asked for whether it has completed, in vain: the first and the last time.
_polled: weakref.WeakKeyDictionary[Any, tuple[float, float]] = weakref.WeakKeyDictionary()


def remember_transfers() -> None:
    """Remember from now on what the sends and receives of gloo are waiting for."""
    if not hasattr(Work.is_completed, "__wrapped__"):
        Work.is_completed = _noting(Work.is_completed)  # type: ignore[assignment, method-assign]
    for method in _METHODS:
        original = getattr(ProcessGroup, method)
        if not hasattr(original, "__wrapped__"):
            setattr(ProcessGroup, method, _remembering(method, original))


def _remembering(method: str, original: Callable[..., Any]) -> Callable[..., Any]:
    ref, remember = weakref.ref, _made.append

    @functools.wraps(original)
    def transfer(group: Any, tensors: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- torch's
        work = original(group, tensors, *args, **kwargs)
        tensor = tensors[0]
        # NCCL records its own, and their state is the device's.
        if work is not None and not tensor.is_cuda:
            args = (*args, *kwargs.values()) if kwargs else args
            remember((ref(work), method, ref(group), args, tensor.dtype, tensor.numel()))
        return work

    return transfer


def _noting(original: Callable[[Any], bool]) -> Callable[[Any], bool]:
    @functools.wraps(original)
    def is_completed(work: Any) -> bool:  # noqa: ANN401 -- torch's
        done = original(work)
        if done and not _polled:
            return done
        if threading.get_ident() != threading.main_thread().ident:
            return done
        if done:
            _polled.pop(work, None)
        else:
            now = monotonic()
            first, last = _polled.get(work, (now, now))
            _polled[work] = (first if now - last < _POLL_S else now, now)
        return done

    return is_completed


def last_transfer() -> object:
    """Return what stands for the last send or receive: another one tells of progress."""
    return _made[-1] if _made else None


def new_exchanges() -> tuple[Exchange, ...]:
    """Return what was sent and received since the last call; none of it if some is forgotten."""
    global _told
    made = list(_made)
    last, _told = _told, (made[-1] if made else _told)
    new = [*takewhile(lambda one: one is not last, reversed(made))][::-1]
    if len(new) == _MOST:
        return ()
    runs: dict[tuple[Transfer, str], list[tuple[str, int]]] = {}
    for one in map(_Made._make, new):
        if (group := one.group()) is None:
            continue
        for transfer in _transfer(one.method, group, one.arguments):
            tensor = f"{one.elements} elements of {str(one.dtype).removeprefix('torch.')}"
            found = runs.setdefault((transfer, group.group_name), [])
            if found and found[-1][0] == tensor:
                found[-1] = tensor, found[-1][1] + 1
            else:
                found.append((tensor, 1))
    return tuple(
        Exchange(
            kind=transfer.kind,
            peer=transfer.peer,
            tag=transfer.tag,
            group=group_name,
            tensors=tuple(tensor for tensor, _ in found),
            counts=tuple(count for _, count in found),
        )
        for (transfer, group_name), found in runs.items()
        if transfer.peer is not None
    )


def _remembered(work: object = None) -> list[_Made]:
    """Return what is remembered of a Work; without one, of all."""
    found = map(_Made._make, list(_made))
    return [made for made in found if work is None or made.work() is work]


def _is_open(made: _Made) -> bool:
    """Whether it may not have completed."""
    return (work := made.work()) is not None and not work.is_completed()


def polling_s() -> float:
    """Return for how long the main thread has asked for the same Work; 0 if it does not."""
    return max((monotonic() - first for _, first in _polls()), default=0.0)


def _polls() -> list[tuple[Any, float]]:
    """Return what the main thread is asking for now, and since when."""
    try:
        polled = list(_polled.items())
    except RuntimeError:  # the main thread adds one at this moment
        return []
    now = monotonic()
    return [(work, first) for work, (first, last) in polled if now - last < _POLL_S]


def awaited_transfers() -> tuple[Transfer, ...]:
    """Return what the main thread waits for, if it waits for a send or a receive; oldest first.

    If it is not known for which, all are returned that may not have completed: torch says of one
    that has arrived only once someone has waited for it.
    """
    frames = frames_of_main_thread()
    found = transfers_of(frames[0]) if frames else ()
    return found or tuple(_described(made for work, _ in _polls() for made in _remembered(work)))


def failed_transfers(traceback: TracebackType | None) -> tuple[Transfer, ...]:
    """Return the send or receive that has raised an error, with the error's traceback."""
    if traceback is None:
        return ()
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    frame = traceback.tb_frame
    if frame.f_code.co_filename == __file__:  # what would have made a Work
        names = frame.f_locals
        arguments = (*names["args"], *names["kwargs"].values())
        return tuple(_transfer(names["method"], names["group"], arguments))
    expression = called_expression(frame, traceback.tb_lasti)
    if (work := _work(frame, expression)) is not None:
        return tuple(_described(_remembered(work)))
    return tuple(_described(_made_in(expression)))


def transfers_of(frame: FrameType) -> tuple[Transfer, ...]:
    """Return `awaited_transfers` of a thread whose innermost frame is known."""
    expression = called_expression(frame)
    if not expression.endswith(_WAIT):
        return ()
    work = _work(frame, expression)
    found = _remembered(work) if work is not None else _made_in(expression) or _remembered()
    return tuple(_described(filter(_is_open, found)))


def _made_in(expression: str) -> list[_Made]:
    """Return how the Work was made of `dist.irecv(...).wait`: it has no name."""
    if (found := _CHAINED.fullmatch(expression)) is None:
        return []
    return [m for m in map(_Made._make, list(_made)) if _METHODS[m.method] == found[1]][-1:]


def _work(frame: FrameType, expression: str) -> Any:  # noqa: ANN401 -- whatever has a `wait`
    """Return the Work of `work.wait`; None if it is not known, or something else is called."""
    name = expression.removesuffix(_WAIT)
    try:
        node = ast.parse(name, mode="eval").body
        return _value(node, frame) if name != expression else None
    # Not there any more, changed at this moment by the main thread, or not what it seems.
    except (SyntaxError, LookupError, TypeError, ValueError, RuntimeError):
        return None


def _value(node: ast.expr, frame: FrameType) -> Any:  # noqa: ANN401 -- whatever it is
    """Return the value of `work`, `self.work` or `works[-1]`, without a call of anyone's code."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(value))):
            return -value
        case ast.Name(id=name):
            return frame.f_locals.get(name, frame.f_globals.get(name))
        case ast.Attribute(value=inner, attr=name):
            return vars(_value(inner, frame))[name]
        case ast.Subscript(value=inner, slice=key):
            container = _value(inner, frame)
            if type(container) in (list, tuple, dict):
                return container[_value(key, frame)]
    return None


def _described(waited: Iterable[_Made]) -> Iterable[Transfer]:
    for made in waited:
        if (group := made.group()) is not None:
            yield from _transfer(made.method, group, made.arguments)


def _transfer(method: str, group: ProcessGroup, arguments: tuple[Any, ...]) -> Iterable[Transfer]:
    """Yield what was sent or received; nothing if the group has been destroyed."""
    *peers, tag = arguments
    try:
        peer = distributed_c10d.get_global_rank(group, int(peers[0])) if peers else None
    except (KeyError, ValueError, RuntimeError):
        return
    yield Transfer(kind=_METHODS[method], peer=peer, tag=max(0, int(tag)))
