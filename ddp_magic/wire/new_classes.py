"""Classes of the notebook, made anew where a pickle is read without running their hooks.

`__init_subclass__` and a metaclass have done their work in the notebook, and its result is in the
pickle. A second run would register a class twice, and the names that it reads may not be there yet.

A process that knows the class already (cloudpickle numbers them) uses its own. That of a session's
rank gets the attributes that the notebook's has now; the notebook's stays as it is in a pull.
"""

from __future__ import annotations

import abc
import contextlib
import types
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cloudpickle.cloudpickle as tracker
from cloudpickle.cloudpickle import _make_skeleton_class

_HOOK = "__init_subclass__"
_OF_A_METACLASS = {"__new__", "__init__", "__prepare__", "__call__"}
# Classes that this process has made from a pickle: all but those that it has defined itself.
from_pickles: weakref.WeakSet[type] = weakref.WeakSet()


def reduced(kind: type, reduction: tuple[Any, ...], *, others_only: bool) -> tuple[Any, ...]:
    """Return cloudpickle's reduction of a class, so that it is read without its hooks.

    Args:
        kind: The class.
        reduction: What cloudpickle returns for it.
        others_only: Whether the process that has defined a class keeps it as it is.
    """
    _, args, (attributes, *_), *_ = reduction
    attributes = dict(attributes)
    if "." in kind.__qualname__:
        # cloudpickle forgets the class that it lies in, where pickle looks for it.
        attributes["__qualname__"] = kind.__qualname__
    metaclass, name, bases, namespace, *others = args
    # A class gets its slots when it is made, or never.
    if "__slots__" in attributes and typing.NamedTuple not in bases:
        namespace = {**namespace, "__slots__": attributes.pop("__slots__")}
        slots = types.MemberDescriptorType
        attributes = {n: v for n, v in attributes.items() if not isinstance(v, slots)}
    args = (metaclass, name, bases, namespace, *others)
    state = in_order(kind, attributes, others_only=others_only)
    return make_class, args, state, None, None, set_class


def in_order(kind: type, attributes: Mapping[str, Any], *, others_only: bool) -> tuple[Any, ...]:
    """Return the state of a class for `set_class`."""
    methods = {n: v for n, v in attributes.items() if isinstance(v, types.FunctionType)}
    others = {n: v for n, v in attributes.items() if n not in methods}
    return others_only, _Methods(kind, methods, others_only), others


class _Methods:
    """Sets the methods of a class as soon as it is read.

    Objects of the class among its other attributes need them, such as the hash of a key.
    """

    def __init__(self, *args: Any) -> None:  # noqa: ANN401
        self._args = args

    def __reduce__(self) -> tuple[Any, ...]:
        return set_methods, self._args


# --- called by the stream, in the process that reads it -------------------------------------------


def make_class(
    metaclass: type,
    name: str,
    bases: tuple[Any, ...],
    namespace: dict[str, Any],
    number: str,
    *others: Any,  # noqa: ANN401
) -> type:
    """Make a class whose attributes follow in the pickle, without the hooks of the notebook's.

    Args:
        metaclass: Its metaclass.
        name: Its name.
        bases: What stands in the brackets behind its name.
        namespace: What it must have from its beginning.
        number: cloudpickle's number for it.
        others: Other arguments of cloudpickle's function.
    """
    if (known := known_class(number)) is not None:
        return known
    with without_hooks(types.resolve_bases(bases)):
        maker: Any = _of_a_library(metaclass) or metaclass
        return note(_make_skeleton_class(maker, name, bases, namespace, number, *others))


def known_class(number: str) -> type | None:
    """Return the class of this process that has cloudpickle's number; None if there is none."""
    known: type | None = tracker._DYNAMIC_CLASS_TRACKER_BY_ID.get(number)
    return known


def note(kind: type) -> type:
    """Note that a class comes from a pickle, and return it."""
    from_pickles.add(kind)
    return kind


def is_set(kind: type, others_only: bool) -> bool:
    """Return whether the attributes of a class are set from a pickle; see `reduced`."""
    return not others_only or kind in from_pickles


def set_methods(kind: type, methods: Mapping[str, Any], others_only: bool) -> None:
    """Set the methods of a class."""
    if is_set(kind, others_only):
        _set(kind, methods)


def set_class(kind: type, state: tuple[bool, None, Mapping[str, Any]]) -> None:
    """Set the other attributes of a class."""
    others_only, _, attributes = state
    if is_set(kind, others_only):
        _set(kind, attributes)


def _set(kind: type, attributes: Mapping[str, Any]) -> None:
    """Set attributes of a class without code of its metaclass."""
    library = library_class(type(kind))
    for name, value in attributes.items():
        if name != "_abc_impl":
            library.__setattr__(kind, name, value)
    if "__firstlineno__" in attributes:  # Python 3.13 removes it where `__module__` is set
        type.__setattr__(kind, "__firstlineno__", attributes["__firstlineno__"])
    for registered in attributes.get("_abc_impl", ()):
        abc.ABCMeta.register(kind, registered)  # type: ignore[arg-type]


@contextlib.contextmanager
def without_hooks(bases: tuple[type, ...]) -> Iterator[None]:
    """Remove `__init_subclass__` of the notebook's classes in a `with` block."""
    above = [each for base in bases for each in type.__getattribute__(base, "__mro__")]
    owners = {each for each in above if is_the_notebooks(each)}
    hooks = [(each, vars(each)[_HOOK]) for each in owners if _HOOK in vars(each)]
    for owner, _ in hooks:
        type.__delattr__(owner, _HOOK)
    try:
        yield
    finally:
        for owner, hook in hooks:
            type.__setattr__(owner, _HOOK, hook)


def _of_a_library(metaclass: type) -> Callable[..., type] | None:
    """Return what makes a class as the nearest metaclass that is not the notebook's does.

    None if the notebook's has no code that would run.
    """
    own = [each for each in metaclass.__mro__ if is_the_notebooks(each)]
    if not any(_OF_A_METACLASS & vars(each).keys() for each in own):
        return None
    library = library_class(metaclass)

    def made(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        kind: type = library.__new__(metaclass, name, bases, namespace)
        library.__init__(kind, name, bases, namespace)
        return kind

    return made


def library_class(kind: type) -> Any:  # noqa: ANN401 -- a class
    """Return the nearest base of a class that is not the notebook's."""
    return next(each for each in kind.__mro__ if not is_the_notebooks(each))


def is_the_notebooks(kind: type) -> bool:
    """Return whether the notebook has defined a class."""
    return kind.__module__ in ("__main__", "__mp_main__")  # the latter in a child of a script's
