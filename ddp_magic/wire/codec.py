"""Messages as bytes and back.

A message is one JSON object, with the name of its class under "type". Nothing is pickled, and
nothing is executed to read a message: what does not fit the class raises `ProtocolError`.
"""

from __future__ import annotations

import builtins
import dataclasses
import enum
import functools
import json
import re
import reprlib
import types
from typing import Any, get_args, get_origin, get_type_hints

from ddp_magic.errors import ProtocolError
from ddp_magic.wire.messages import (
    AgentDone,
    AgentEvent,
    CellNames,
    Command,
    DisplayData,
    Error,
    Event,
    Finished,
    ForkserverEvent,
    Heartbeat,
    Results,
    WorkerEvent,
    WorkerReady,
)

MAX_BYTES = 256 * 2**20
MAX_DEPTH = 200  # of nested lists and dictionaries: encoding them again is recursive
_MAX_INT = 2**63
_SIGNED = frozenset(["code", "seed"])  # all other integers are counts or indices
_CLASSES: dict[str, type[Any]] = {
    cls.__name__: cls for cls in get_args(Command | ForkserverEvent | AgentEvent | WorkerEvent)
}
# Shown to a person; paths and environments keep bytes that are not UTF-8.
_SHOWN = (AgentDone, DisplayData, Error, Finished, Heartbeat, Results, CellNames, WorkerReady)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def encode(message: Command | Event) -> bytes:
    """Turn a message into the JSON of one frame.

    Raises:
        ProtocolError: The reader would reject it: it is too long, or a display of the user's is
            invalid.
    """
    fields = {f.name: getattr(message, f.name) for f in dataclasses.fields(message)}
    payload = json.dumps({"type": type(message).__name__, **fields}, default=str).encode()
    if len(payload) > MAX_BYTES:
        raise ProtocolError(
            f"{type(message).__name__} has {len(payload):,} bytes; the limit is {MAX_BYTES:,}"
        )
    if isinstance(message, DisplayData):
        decode(payload)
    return payload


def decode(payload: bytes) -> Command | Event:
    """Read the message of one frame.

    Raises:
        ProtocolError: The payload is not a JSON object of a known class with the fields of that
            class, each of its declared type.
    """
    try:
        fields = json.loads(payload)
        cls = _CLASSES[fields.pop("type")]
        if cls in _SHOWN and _SURROGATE.search(payload):
            # A lone surrogate, which cannot be sent to a notebook.
            whole = json.dumps(fields, ensure_ascii=False).encode(errors="replace")
            fields = json.loads(whole)
        wanted = _types(cls.__name__)
        message: Command | Event = cls(
            **{name: _restored(value, wanted.get(name)) for name, value in fields.items()}
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"unreadable message {payload[:80]!r}: {error!r:.200}") from error
    for name, kind in wanted.items():
        value = getattr(message, name)
        if not _fits(value, kind, signed=name in _SIGNED):
            raise ProtocolError(f"invalid {cls.__name__}.{name}: {reprlib.repr(value)}")
    return message


def _restored(value: object, wanted: Any) -> object:  # noqa: ANN401 -- a type, as written
    """Turn what JSON cannot express back into what was sent, so that messages compare equal."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return wanted(value)
    return value


@functools.cache
def _types(name: str) -> dict[str, Any]:
    return get_type_hints(_CLASSES[name])


def _fits(value: object, wanted: Any, *, signed: bool) -> bool:  # noqa: ANN401 -- a type, as written
    """Return whether a value from JSON is of a field's type."""
    items: list[object]
    match get_origin(wanted), get_args(wanted):
        case (types.UnionType, options):
            return any(_fits(value, option, signed=signed) for option in options)
        case (builtins.tuple, (of, *_)):
            items = list(value) if isinstance(value, tuple) else [_NOTHING]
        case (builtins.list, (of,)):
            items = list(value) if isinstance(value, list) else [_NOTHING]
        case (builtins.dict, (_, of)):
            items = list(value.values()) if isinstance(value, dict) else [_NOTHING]
        case _:
            return _is(value, wanted, signed=signed)
    if of is Any:
        return _NOTHING not in items[:1] and _is_shallow(items)
    return all(_fits(item, of, signed=signed) for item in items)


_NOTHING = object()  # of no type


def _is(value: object, wanted: Any, *, signed: bool) -> bool:  # noqa: ANN401 -- a type
    if isinstance(value, bool):  # which Python counts as an int
        return wanted is bool
    if wanted is int:
        low = -_MAX_INT if signed else 0
        return isinstance(value, int) and low <= value < _MAX_INT
    if wanted is float:
        return isinstance(value, (int, float)) and abs(value) < _MAX_INT  # neither inf nor nan
    return isinstance(value, wanted)


def _is_shallow(items: list[object]) -> bool:
    for _ in range(MAX_DEPTH):
        below = [item for item in items if isinstance(item, (dict, list))]
        if not below:
            return True
        items = [x for item in below for x in (item.values() if isinstance(item, dict) else item)]
    return False
