"""Classes of the notebook, made anew where a pickle is read without running their hooks.

`__init_subclass__` and a metaclass have done their work in the notebook, and its result is in the
pickle. A second run would register a class twice, and the names that it reads may not be there yet.
"""

from __future__ import annotations

import contextlib
import enum
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cloudpickle.cloudpickle import _class_setstate, _make_skeleton_class

_HOOK = "__init_subclass__"
_OF_ALL_MEMBERS = {"_value_", "_name_", "__objclass__", "_sort_order_", "_inverted_"}
_OF_A_METACLASS = {"__new__", "__init__", "__prepare__", "__call__"}


def reduced(kind: type, reduction: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return cloudpickle's reduction of a class, so that it is read without its hooks."""
    make, args, state, *rest = reduction
    if make is _make_skeleton_class:
        return make_class, (make, *args), state, *rest
    if not issubclass(kind, enum.Enum):
        return reduction
    # cloudpickle leaves out the aliases, and what `__new__` and `__init__` have set on members.
    bases, name, qualified_name, _, *others = args
    members = dict(kind.__members__)
    values = {each: member.value for each, member in members.items()}
    attributes = {each: value for each, value in state[0].items() if each not in members}
    own = {each: _own_attributes(member) for each, member in members.items()}
    args = (bases, name, qualified_name, values, *others)
    return make, args, ((attributes, *state[1:]), own), *rest[:2], set_members


def _own_attributes(member: enum.Enum) -> dict[str, Any]:
    return {name: value for name, value in vars(member).items() if name not in _OF_ALL_MEMBERS}


def set_members(kind: Any, state: tuple[Any, Mapping[str, Mapping[str, Any]]]) -> Any:  # noqa: ANN401
    """Set the attributes of an enumeration, and those of its members."""
    attributes, own = state
    made = _class_setstate(kind, attributes)
    for name, values in own.items():
        vars(kind[name]).update(values)
    return made


def make_class(make: Callable[..., type], metaclass: type, *args: Any) -> type:  # noqa: ANN401
    """Make a class whose attributes follow in the pickle, without the hooks of the notebook's.

    Args:
        make: cloudpickle's function for it.
        metaclass: Its metaclass.
        args: The other arguments of `make`: its name, its bases and others.
    """
    with _without_hooks(args[1]):
        return make(_of_a_library(metaclass) or metaclass, *args)


@contextlib.contextmanager
def _without_hooks(bases: tuple[Any, ...]) -> Iterator[None]:
    """Remove `__init_subclass__` of the notebook's classes in a `with` block."""
    resolved = types.resolve_bases(bases)  # of `Generic[T]` or `NamedTuple`
    owners = {each for base in resolved for each in base.__mro__ if _is_the_notebooks(each)}
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
    own = [each for each in metaclass.__mro__ if _is_the_notebooks(each)]
    if not any(_OF_A_METACLASS & vars(each).keys() for each in own):
        return None
    library: Any = next(each for each in metaclass.__mro__ if not _is_the_notebooks(each))

    def made(name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> type:
        kind: type = library.__new__(metaclass, name, bases, namespace)
        library.__init__(kind, name, bases, namespace)
        return kind

    return made


def _is_the_notebooks(kind: type) -> bool:
    return kind.__module__ in ("__main__", "__mp_main__")  # the latter in a child of a script's
