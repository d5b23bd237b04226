"""Messages as bytes and back.

A message is one JSON object, with the name of its class under "type". Nothing is pickled, and
nothing is executed to read a message: what does not fit the class raises `ProtocolError`.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import re
import reprlib
import types
from collections.abc import Callable
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
_Check: TypeAlias = Callable[[object], bool]
_Restorer: TypeAlias = Callable[[Any], object]
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
        message: Command | Event = _built(cls.__name__, fields)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message {payload[:80]!r}: {error!r:.200}") from error
    if name := _misfit(message):
        value = reprlib.repr(getattr(message, name))
        raise ProtocolError(f"invalid {cls.__name__}.{name}: {value}")
    return message


def _built(name: str, fields: dict[str, Any]) -> Any:  # noqa: ANN401 -- of the class of that name
    """Turn what JSON cannot express back into what was sent, so that messages compare equal."""
    restore = _restorers(name)
    for field, value in fields.items():
        if field in restore:
            fields[field] = restore[field](value)
        elif isinstance(value, list):
            fields[field] = tuple(value)
    return _TYPES[name](**fields)


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _misfit(item: object) -> str:
    """Return the first field that is not of its declared type; empty if there is none."""
    values = vars(item)
    for name, fits in _checks(type(item).__name__):
        if not fits(values[name]):
            return name
    return ""


# Types are examined once for each class: a rank that prints much sends thousands of messages.


@functools.cache
def _restorers(name: str) -> dict[str, _Restorer]:
    """Return, for those fields of a class that need it, what restores a value from JSON."""
    kinds = get_type_hints(_TYPES[name]).items()
    found = {field: _restorer(kind) for field, kind in kinds}
    return {field: restore for field, restore in found.items() if restore is not None}


def _restorer(kind: Any) -> _Restorer | None:  # noqa: ANN401 -- a type, as written
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind
    if dataclasses.is_dataclass(kind):
        name = cast("type", kind).__name__
        return lambda value: _built(name, value) if isinstance(value, dict) else value
    if get_origin(kind) is not tuple:
        return None
    of = get_args(kind)[0]
    restore = _restorer(of) or (_as_tuple if get_origin(of) is tuple else None)
    if restore is None:
        return None
    return lambda value: tuple(map(restore, value)) if isinstance(value, list) else value


@functools.cache
def _checks(name: str) -> tuple[tuple[str, _Check], ...]:
    """Return, for each field of a message, what checks its value."""
    kinds = get_type_hints(_TYPES[name]).items()
    return tuple((field, _check(kind, signed=field in _SIGNED)) for field, kind in kinds)


def _check(wanted: Any, *, signed: bool) -> _Check:  # noqa: ANN401 -- a type, as written
    """Return a function that returns whether a value from JSON is of a field's type."""
    match get_origin(wanted), get_args(wanted):
        case (types.UnionType, (kind, types.NoneType)):
            fits_kind = _check(kind, signed=signed)
            return lambda value: value is None or fits_kind(value)
        case (types.UnionType, kinds):
            options = [_check(kind, signed=signed) for kind in kinds]
            return lambda value: any(fits(value) for fits in options)
        case (builtins.tuple | builtins.list | builtins.dict as collection, kinds):
            of = kinds[1] if collection is dict else kinds[0]
            fits_all = _is_shallow if of is Any else _each(_check(of, signed=signed))
            return lambda value: isinstance(value, collection) and fits_all(_items(value))
        case _ if dataclasses.is_dataclass(wanted):
            return lambda value: type(value) is wanted and not _misfit(value)
        case _ if wanted is int:
            return _is_signed if signed else _is_unsigned
        case _:
            return _TESTS.get(wanted) or (lambda value: isinstance(value, wanted))


def _each(fits: _Check) -> Callable[[list[object]], bool]:
    return lambda items: all(fits(item) for item in items)


def _items(value: Any) -> list[object]:  # noqa: ANN401 -- a list, a tuple or a dictionary
    return list(value.values() if isinstance(value, dict) else value)


# By `type`, not `isinstance`: Python counts a bool as an int, and JSON knows no other subclasses.


def _is_unsigned(value: object) -> bool:
    return type(value) is int and 0 <= value < _MAX_INT


def _is_signed(value: object) -> bool:
    return type(value) is int and -_MAX_INT <= value < _MAX_INT


def _is_finite(value: object) -> bool:
    # Neither inf nor nan.
    return (type(value) is float or type(value) is int) and -_MAX_INT < value < _MAX_INT


def _is_text(value: object) -> bool:
    return type(value) is str


_TESTS: dict[type, _Check] = {float: _is_finite, str: _is_text}


def _is_shallow(items: list[object]) -> bool:
    for _ in range(MAX_DEPTH):
        below = [item for item in items if isinstance(item, (dict, list))]
        if not below:
            return True
        items = [x for item in below for x in _items(item)]
    return False
