"""Enumerations of the notebook, made anew where a pickle is read.

cloudpickle lets `enum` make them from their values. That runs the notebook's `__new__`, `__init__`
and metaclass again, and fails for members that are not their value: of a data class, a date or a
function. Here the members are made without code of the notebook's, and then get their attributes.

Private names of `enum`, known to hold for Python 3.10 to 3.13 (tests/unit/wire/test_new_classes.py
fails where they change): those below that begin with an underscore.
"""

from __future__ import annotations

import abc
import enum
from _abc import _abc_init  # type: ignore[import-not-found]
from collections.abc import Mapping
from typing import Any

from cloudpickle.cloudpickle import (
    _class_getstate,
    _get_or_create_tracker_id,
    _lookup_class_or_track,
)

# Functions, not the module: a pickle beside a script carries those that it calls.
from ddp_magic.wire.new_classes import (
    in_order,
    is_set,
    is_the_notebooks,
    known_class,
    note,
    set_class,
    without_hooks,
)

_OF_MEMBERS = {"_member_map_", "_value2member_map_"}


def reduced(kind: Any, *, others_only: bool) -> tuple[Any, ...]:  # noqa: ANN401
    """Return pickle's reduction of an enumeration; for `others_only` see `new_classes.reduced`."""
    found: dict[str, Any] = kind._member_map_
    names = {name: member._name_ for name, member in found.items()}
    members = {name: found[name] for name in dict.fromkeys(names.values())}
    state = {n: v for n, v in _class_getstate(kind)[0].items() if n not in _OF_MEMBERS}
    attributes = {n: v for n, v in state.items() if n not in names}
    redirects = {n: v for n, v in state.items() if n in names}
    single = {id(member) for member in members.values()}  # not several flags together
    by_value = kind._value2member_map_.items()
    values = [(value, member._name_) for value, member in by_value if id(member) in single]
    early: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    if issubclass(kind, enum.Flag):  # among the attributes may be several flags together
        sunder = {n: v for n, v in attributes.items() if n[0] == n[-1] == "_"}
        early |= {n: v for n, v in sunder.items() if isinstance(v, (int, type, enum.Enum))}
    flags = {name: value for value, name in values} if issubclass(kind, enum.Flag) else {}
    parts = {name: (*_parts(member), flags.get(name)) for name, member in members.items()}
    number = _get_or_create_tracker_id(kind)
    args = (number, type(kind), kind.__name__, kind.__bases__, early, parts, names)
    own = [(name, vars(member)) for name, member in members.items()]
    ordered = in_order(kind, attributes, others_only=others_only)
    return make_enum, args, (ordered, redirects, own, values), None, None, set_enum


def reduced_member(member: Any) -> tuple[Any, ...]:  # noqa: ANN401
    """Return pickle's reduction of a member, or of several flags together."""
    kind = type(member)
    if kind._member_map_.get(member._name_) is member:
        return member_of, (kind, member._name_)
    return enum.Enum.__new__, (kind, member._value_)


def _parts(member: Any) -> tuple[type, tuple[Any, ...]]:  # noqa: ANN401
    """Return the class of a library's that a member is an object of, and arguments for it."""
    library: Any = next(
        each
        for each in type(member).__mro__
        if not is_the_notebooks(each) and not issubclass(each, enum.Enum)
    )
    if library.__reduce__ is not object.__reduce__:
        return library, library.__reduce__(member)[1]
    args = library.__getnewargs__(member) if hasattr(library, "__getnewargs__") else ()
    return library, args


# --- called by the stream, in the process that reads it -------------------------------------------


def make_enum(
    number: str,
    metaclass: type,
    name: str,
    bases: tuple[type, ...],
    early: dict[str, Any],
    parts: Mapping[str, tuple[Any, tuple[Any, ...], int | None]],
    names: Mapping[str, str],
) -> type:
    """Make an enumeration whose attributes follow in the pickle.

    Args:
        number: cloudpickle's number for it.
        metaclass: Its metaclass.
        name: Its name.
        bases: Its bases.
        early: Attributes that it must have from its beginning.
        parts: What its members are made of, by their names: a class, arguments, the value of a
            flag.
        names: The name of its member, by this name and by others of the same member.
    """
    if (known := known_class(number)) is not None:
        return known
    with without_hooks(bases):
        kind: Any = type.__new__(metaclass, name, bases, early)
    if issubclass(metaclass, abc.ABCMeta):
        _abc_init(kind)
        kind.__abstractmethods__ = frozenset()  # its methods follow
    members, by_value = {}, {}
    for each, (library, args, value) in parts.items():
        members[each] = library.__new__(kind, *args)
        vars(members[each])["_name_"] = each
        if value is not None:
            vars(members[each])["_value_"] = value
            by_value[value] = members[each]
    type.__setattr__(kind, "_member_map_", {each: members[own] for each, own in names.items()})
    type.__setattr__(kind, "_value2member_map_", by_value)
    return note(_lookup_class_or_track(number, kind))


def member_of(kind: Any, name: str) -> Any:  # noqa: ANN401
    """Return a member of an enumeration."""
    return kind._member_map_[name]


def set_enum(
    kind: Any,  # noqa: ANN401
    state: tuple[
        tuple[bool, None, dict[str, Any]],
        dict[str, Any],
        list[tuple[str, dict[str, Any]]],
        list[tuple[Any, str]],
    ],
) -> None:
    """Set the attributes of an enumeration and of its members."""
    attributes, members, own, values = state
    if not is_set(kind, attributes[0]):
        return
    for name, values_of_member in own:
        vars(kind._member_map_[name]).update(values_of_member)
    kind._value2member_map_.update((value, kind._member_map_[name]) for value, name in values)
    for name, member in members.items():  # `enum` forbids to set them
        type.__setattr__(kind, name, member)
    set_class(kind, attributes)
