"""Reductions for objects of the standard library that pickle alone cannot send.

Only a lock, a weak reference or a string that is compared by identity stops it; the objects mean
the same in any process. The functions below the reductions run in the process that reads the
stream.

Private parts of the standard library, known to hold for Python 3.10 to 3.13
(tests/unit/wire/test_standard_library.py fails where they change): `functools._lru_cache_wrapper`,
`cached_property.lock` (gone in 3.12), the attributes that `functools.singledispatch` sets.
"""

from __future__ import annotations

import argparse
import copyreg
import functools
import os
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

# Whatever the notebook calls them (`from sys import stderr`), each process has its own.
_PROCESS_OWN = ((os, "environ"), (sys, "stdin"), (sys, "stdout"), (sys, "stderr"))
_NAMED = (typing.NewType, typing.ParamSpec, *filter(None, [getattr(typing, "TypeVarTuple", None)]))
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_DISPATCHER_ATTRIBUTES = {"register", "dispatch", "registry", "_clear_cache", "__wrapped__"}


def reduce(obj: Any) -> Any:  # noqa: ANN401, PLR0911 -- any object; a case for each kind
    """Return pickle's reduction of an object of these kinds; None for any other."""
    for module, attribute in _PROCESS_OWN:
        if obj is getattr(module, attribute):
            return getattr, (module, attribute)
    if isinstance(obj, functools._lru_cache_wrapper) and obj.__module__ == "__main__":
        return cached, (obj.__wrapped__, obj.cache_parameters())
    if isinstance(obj, functools.cached_property):  # holds a lock up to Python 3.11
        state = {name: value for name, value in vars(obj).items() if name != "lock"}
        return cached_property, (type(obj),), state
    if isinstance(obj, types.FunctionType) and _is_dispatcher(obj):
        own = {n: v for n, v in vars(obj).items() if n not in _DISPATCHER_ATTRIBUTES}
        state = {"registry": dict(vars(obj)["registry"]), "own": own}
        return dispatcher, (obj.__name__,), state, None, None, fill_dispatcher
    if type(obj) in _WEAK:
        # An object that only the container refers to is collected in the reading process too.
        items = list(obj) if isinstance(obj, weakref.WeakSet) else dict(obj)
        return type(obj), (), items, None, None, update
    if type(obj) in (weakref.ref, Reference):
        return reference, (obj(),)
    if isinstance(obj, _NAMED) and obj.__module__ == "__main__":  # pickle would look for it there
        bound = () if not isinstance(obj, typing.NewType) else (obj.__supertype__,)
        return named, (type(obj), obj.__name__, *bound)
    if isinstance(obj, (argparse.Action, argparse.ArgumentParser)):
        # argparse compares this string by identity.
        return _with_attributes(obj, argparse.SUPPRESS, _Suppress())
    return _constant(obj)


def _constant(obj: Any) -> tuple[Any, ...] | None:  # noqa: ANN401
    """Return where a library keeps an object that it compares by identity: `dataclasses.MISSING`.

    It has no attributes, and a class of its own.
    """
    kind: Any = type(obj)
    if kind.__module__ == "__main__" or kind.__base__ is not object:
        return None
    module = sys.modules.get(kind.__module__)
    usual = kind.__reduce__ is object.__reduce__
    if module is None or not usual or getattr(obj, "__dict__", True):
        return None
    name = _constants(module, kind, len(vars(module))).get(id(obj))
    return None if name is None else (getattr, (module, name))


@functools.lru_cache
def _constants(module: types.ModuleType, kind: type, _size: int) -> dict[int, str]:
    return {id(value): name for name, value in vars(module).items() if type(value) is kind}


def _with_attributes(obj: Any, one: object, other: object) -> tuple[Any, ...]:  # noqa: ANN401
    """Return a reduction of an object with one value of its attributes for another."""
    state = {name: other if value is one else value for name, value in vars(obj).items()}
    return copyreg.__newobj__, (type(obj),), state  # type: ignore[attr-defined]


class _Suppress:
    """Stands in the stream for `argparse.SUPPRESS`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (argparse, "SUPPRESS")


def _is_dispatcher(function: types.FunctionType) -> bool:
    """Return whether `functools.singledispatch` made this of a function of the notebook's."""
    own = function.__module__ == "__main__" and function.__globals__ is vars(functools)
    return own and vars(function).keys() >= _DISPATCHER_ATTRIBUTES


# --- called by the stream, in the process that reads it -------------------------------------------


def cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:  # noqa: ANN401
    """Make a function with an empty `functools.lru_cache`."""
    return functools.lru_cache(**parameters)(function)


def cached_property(kind: type) -> Any:  # noqa: ANN401 -- of `kind`
    """Make a `functools.cached_property` without attributes."""
    made: Any = object.__new__(kind)
    if sys.version_info < (3, 12):
        made.lock = threading.RLock()
    return made


def dispatcher(name: str) -> Any:  # noqa: ANN401 -- a function with attributes
    """Make a `functools.singledispatch` function without implementations."""

    def nothing(_: object) -> None: ...

    nothing.__name__ = name
    return functools.singledispatch(nothing)


def fill_dispatcher(function: Any, state: dict[str, Any]) -> None:  # noqa: ANN401
    """Register the implementations of a `functools.singledispatch` function."""
    functools.update_wrapper(function, state["registry"][object])
    for kind, implementation in state["registry"].items():
        function.register(kind, implementation)
    vars(function).update(state["own"])


def update(container: Any, items: Any) -> None:  # noqa: ANN401 -- a weak container
    """Fill a weak container."""
    container.update(items)


class Reference(weakref.ref[Any]):
    """A weak reference that keeps its object: the object's owner may not have been read yet."""

    obj: Any

    def __del__(self) -> None:
        # While this is whole: CPython 3.11 crashes if its attributes are cleared first, and its
        # object, of which it was the last owner, has other weak references with callbacks.
        self.obj = None

    def __copy__(self) -> Reference:
        return self

    def __deepcopy__(self, _memo: object) -> Reference:  # as that of `weakref.ref`
        return self


# What `type` and `help` show to a user, who has sent the standard library's.
Reference.__module__, Reference.__qualname__ = "weakref", weakref.ReferenceType.__qualname__
Reference.__name__ = weakref.ReferenceType.__name__


def reference(obj: Any) -> Reference:  # noqa: ANN401 -- any object at all
    """Return a reference to an object; a dead one for None."""
    made = Reference(set() if obj is None else obj)  # the set is collected at once
    made.obj = obj
    return made


def named(kind: Any, *args: Any) -> Any:  # noqa: ANN401 -- of `kind`
    """Make a `NewType`, `ParamSpec` or `TypeVarTuple` of the notebook's."""
    made = kind(*args)
    made.__module__ = "__main__"
    return made
