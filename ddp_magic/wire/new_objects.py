"""Reductions for objects of the notebook's classes that pickle could not make again."""

from __future__ import annotations

import copyreg
import enum
from typing import Any

from ddp_magic.wire import new_enums
from ddp_magic.wire.new_classes import is_the_notebooks, library_class


def reduce(obj: Any) -> tuple[Any, ...] | None:  # noqa: ANN401 -- any object at all
    """Return pickle's reduction of an object of these kinds; None for any other."""
    kind = type(obj)
    if not is_the_notebooks(kind):
        return None
    if issubclass(kind, enum.Enum):
        return new_enums.reduced_member(obj)
    if issubclass(kind, BaseException):
        return _exception(obj)
    if hasattr(kind, "__getattr__"):
        return _without_getattr(obj)
    return None


def _exception(error: BaseException) -> tuple[Any, ...] | None:
    """Reduce an exception whose `__init__` may need other arguments than those of its base."""
    kind: Any = type(error)
    library = library_class(kind)
    # Others have attributes that only their `__init__` sets: OSError, StopIteration.
    plain = library.__basicsize__ == BaseException.__basicsize__
    if not plain or kind.__reduce__ is not BaseException.__reduce__ or not _is_usual(kind):
        return None
    return copyreg.__newobj__, (kind, *error.args), vars(error) or None  # type: ignore[attr-defined]


def _without_getattr(obj: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
    """Reduce an object that would be asked for `__setstate__` before it has an attribute."""
    kind: Any = type(obj)
    usual = kind.__reduce__ is object.__reduce__ and _is_usual(kind)
    if not usual or hasattr(kind, "__setstate__"):
        return None
    make, args, state, items, pairs = obj.__reduce_ex__(5)
    return None if state is None else (make, args, state, items, pairs, set_state)


def _is_usual(kind: Any) -> bool:  # noqa: ANN401
    """Return whether objects of a class give their state to pickle as most do."""
    own = getattr(kind, "__getstate__", None) is not getattr(object, "__getstate__", None)
    return kind.__reduce_ex__ is object.__reduce_ex__ and not own


# --- called by the stream, in the process that reads it -------------------------------------------


def set_state(obj: object, state: Any) -> None:  # noqa: ANN401 -- `object.__getstate__`'s
    """Set the attributes of an object without code of its class."""
    own, slots = state if isinstance(state, tuple) else (state, {})
    if own:
        object.__getattribute__(obj, "__dict__").update(own)
    for name, value in slots.items():
        object.__setattr__(obj, name, value)
