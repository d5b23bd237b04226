"""Messages as bytes and back.

A message is one JSON object, with the name of its class under "type". Nothing is pickled, and
nothing is executed to read a message: what does not fit the class raises `ProtocolError`.
"""

from __future__ import annotations

import builtins
import dataclasses
import functools
import re
import reprlib
import types
from collections.abc import Callable, Collection, Iterable
from json import dumps, loads  # bound here: a cell may replace the module's
from typing import Any, TypeAlias, cast, get_args, get_origin, get_type_hints

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.collectives import Exchange, GroupRecord, Membership, Operation, Transfer
from ddp_magic.wire.commands import Command
from ddp_magic.wire.events import AgentDone, AgentEvent, Event, ForkserverEvent
from ddp_magic.wire.worker_events import (
    CellNames,
    DisplayData,
    Error,
    Finished,
    Heartbeat,
    Question,
    Results,
    WorkerEvent,
    WorkerReady,
)

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 200  # of nested lists and dictionaries: encoding them again is recursive
_MAX_INT = 2**63
_SIGNED = frozenset(["code", "seed"])  # all other integers are counts or indices
_MESSAGES = get_args(Command | ForkserverEvent | AgentEvent | WorkerEvent)
_PARTS = (Exchange, GroupRecord, Membership, Operation, Transfer)  # of messages
_CLASSES: dict[str, type[Any]] = {cls.__name__: cls for cls in _MESSAGES}
_TYPES: dict[str, type[Any]] = {**_CLASSES, **{cls.__name__: cls for cls in _PARTS}}
# Shown to a person; paths and environments keep bytes that are not UTF-8.
_SHOWN = (
    *(AgentDone, DisplayData, Error, Finished, Heartbeat, Question),
    *(Results, CellNames, WorkerReady),
)
_Reader: TypeAlias = Callable[[Any], object]
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_TYPE = re.compile(rb'\{"type": "(\w+)"')


def type_name(payload: bytes) -> str:
    """Return the name of a message's class without decoding it; empty if it is none of ours."""
    found = _TYPE.match(payload)
    return found[1].decode() if found else ""


def encode(message: Command | Event) -> bytes:
    """Turn a message into the JSON of one frame.

    Raises:
        ProtocolError: The reader would reject it: it is too long, or a display of the user's is
            invalid.
    """
    fields = {"type": type(message).__name__, **vars(message)}
    payload = dumps(fields, default=_plain).encode()
    if len(payload) > MAX_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} has {len(payload):,} bytes; the limit is {MAX_BYTES:,}"
        )
    if isinstance(message, DisplayData):
        decode(payload)
    return payload


def _plain(item: object) -> object:
    return vars(item) if dataclasses.is_dataclass(item) else str(item)


def decode(payload: bytes) -> Command | Event:
    """Read the message of one frame.

    Raises:
        ProtocolError: The payload is not a JSON object of a known class with the fields of that
            class, each of its declared type.
    """
    try:
        fields = loads(payload)
        cls = _CLASSES[fields.pop("type")]
        if cls in _SHOWN and _SURROGATE.search(payload):
            # A lone surrogate, which cannot be sent to a notebook.
            whole = dumps(fields, ensure_ascii=False).encode(errors="replace")
            fields = loads(whole)
        message: Command | Event = _read(cls.__name__, fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message {payload[:80]!r}: {error!r:.200}") from error
    return message


def _read(name: str, fields: dict[str, Any]) -> Any:  # noqa: ANN401 -- of the class of that name
    """Make the message, or the part of one, that was sent: JSON has no tuples and no classes."""
    readers = _readers(name)
    for field, value in fields.items():
        try:
            fields[field] = readers[field](value)
        except _MisfitError:
            raise ProtocolError(f"invalid {name}.{field}: {reprlib.repr(value)}") from None
    return _TYPES[name](**fields)


class _MisfitError(Exception):
    """A value from JSON is not of the declared type."""


# Types are examined once for each class: a rank that prints much sends thousands of messages.


@functools.cache
def _readers(name: str) -> dict[str, _Reader]:
    """Return, for each field of a class, what turns a value from JSON into one of its type."""
    kinds = get_type_hints(_TYPES[name]).items()
    return {field: _reader(kind, signed=field in _SIGNED) for field, kind in kinds}


def _reader(wanted: Any, *, signed: bool) -> _Reader:  # noqa: ANN401, PLR0911 -- a type, as written
    match get_origin(wanted), get_args(wanted):
        case (types.UnionType, (kind, types.NoneType)):
            read = _reader(kind, signed=signed)
            return lambda value: None if value is None else read(value)
        case (builtins.tuple | builtins.list as collection, (of, *_)):
            read = _read_shallow if of is Any else _each(_reader(of, signed=signed))
            return lambda value: collection(read(_typed(list, value)))
        case (builtins.dict, (_, of)):
            read = _read_shallow if of is Any else _each(_reader(of, signed=signed))
            return lambda value: dict(zip(_typed(dict, value), read(value.values()), strict=True))
        case _ if dataclasses.is_dataclass(wanted):
            name = cast("type", wanted).__name__
            return lambda value: _read(name, _typed(dict, value))
        case _ if wanted is int:
            return _read_signed if signed else _read_unsigned
        case _ if wanted is float:
            return _read_finite
        case _ if wanted in (str, bool):
            return functools.partial(_typed, wanted)
        case _:
            return cast("_Reader", wanted)  # an enum: raises ValueError


def _each(read: _Reader) -> Callable[[Iterable[Any]], Iterable[object]]:
    return functools.partial(map, read)


# By `type`, not `isinstance`: Python counts a bool as an int, and JSON knows no other subclasses.


def _typed(wanted: type, value: Any) -> Any:  # noqa: ANN401 -- of that type
    if type(value) is not wanted:
        raise _MisfitError
    return value


def _read_unsigned(value: Any) -> int:  # noqa: ANN401 -- from JSON, as below
    if type(value) is int and 0 <= value < _MAX_INT:
        return value
    raise _MisfitError


def _read_signed(value: Any) -> int:  # noqa: ANN401
    if type(value) is int and -_MAX_INT <= value < _MAX_INT:
        return value
    raise _MisfitError


def _read_finite(value: Any) -> float:  # noqa: ANN401
    # Neither inf nor nan.
    if (type(value) is float or type(value) is int) and -_MAX_INT < value < _MAX_INT:
        return value
    raise _MisfitError


def _read_shallow(items: Collection[Any]) -> Collection[Any]:
    """Return items of any type that are not nested too deep."""
    level: Iterable[Any] = items
    for _ in range(MAX_DEPTH):
        below = [item for item in level if isinstance(item, (dict, list))]
        if not below:
            return items
        level = [x for item in below for x in (item.values() if type(item) is dict else item)]
    raise _MisfitError
