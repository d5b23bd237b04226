"""Objects of the standard library that pickle cannot take apart; private names of it for that."""

from __future__ import annotations

import argparse
import copy
import dataclasses
import functools
import io
import os
import sys
import typing
import weakref
from typing import Any

import pytest

from ddp_magic.wire.pickling import Pickler, load


def _received(*values: Any) -> Any:
    file = io.BytesIO()
    pickler = Pickler(file, on_buffer=lambda _: None)
    for value in values:
        pickler.dump(value)
    found = list(load(file.getvalue(), []))
    return found[0] if len(found) == 1 else found


def _names(text: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__main__", "functools": functools}
    exec(compile(text, "1.py", "exec", dont_inherit=True), names)
    return names


@pytest.mark.parametrize("value", [os.environ, sys.stdin, sys.stdout, sys.stderr])
def test_each_process_has_its_own(value: object) -> None:
    assert _received([value])[0] is value


def test_a_parser_of_arguments_parses_them() -> None:
    """argparse compares `SUPPRESS` by identity."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--x", type=int)
    parser.add_argument("--y", default=argparse.SUPPRESS)
    found = _received(parser)
    assert vars(found.parse_args(["--x", "1"])) == {"x": 1}
    assert "--y Y" in found.format_help()


def test_what_a_library_compares_by_identity_is_the_same() -> None:
    names = _names(
        "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 1\n"
        "    y: list = dataclasses.field(default_factory=list)"
    )
    x, y = _received(dataclasses.fields(names["A"]))
    assert x.default_factory is y.default is dataclasses.MISSING


def test_a_cached_function_begins_with_an_empty_cache() -> None:
    """`functools._lru_cache_wrapper`."""
    f = _names("@functools.lru_cache(maxsize=2, typed=True)\ndef f(x): return x + 1")["f"]
    f(1)
    found = _received(f)
    assert found.cache_info().currsize == 0
    assert found.cache_parameters() == {"maxsize": 2, "typed": True}
    assert found(1) == 2


def test_a_cached_property_works() -> None:
    """`cached_property.lock`, up to Python 3.11."""
    once = _names("once = functools.cached_property(lambda self: [1])")["once"]
    found = _received(once)
    found.__set_name__(object, "once")
    owner: Any = type("A", (), {"once": found})()
    assert owner.once == [1]
    assert owner.once is owner.once


def test_a_dispatcher_dispatches() -> None:
    """The attributes that `functools.singledispatch` sets."""
    area = _names(
        "@functools.singledispatch\ndef area(x): return 'any'\n"
        "@area.register\ndef _(x: int): return 'int'\n"
        "area.note = 'mine'"
    )["area"]
    found = _received(area)
    assert found is not area
    assert (found(""), found(1), found.note, found.__name__) == ("any", "int", "mine", "area")


class _Node: ...


def test_weak_references_and_containers() -> None:
    """They refer to the objects that are read with them; a dead one stays dead."""
    node = _Node()
    values = [
        node,
        weakref.ref(node),
        weakref.WeakSet([node]),
        weakref.WeakKeyDictionary({node: 1}),
    ]
    values += [weakref.WeakValueDictionary(k=node), weakref.ref(_Node())]
    found, reference, some, keys, by_name, dead = _received(*values)
    assert reference() is found
    assert list(some) == [found]
    assert dict(keys) == {found: 1}
    assert by_name["k"] is found
    assert dead() is None
    assert _received([found, reference])[1]() is not None  # and can be sent on


def test_a_reference_goes_by_the_standard_librarys_name() -> None:
    """And is copied as one: it is itself its copy."""
    node = _Node()
    found, reference = _received([node, weakref.ref(node)])
    assert isinstance(reference, weakref.ref)
    assert repr(type(reference)) == repr(weakref.ref)
    assert copy.deepcopy([reference]) == [reference]
    assert copy.copy(reference) is reference
    assert reference() is found


def test_a_reference_keeps_its_object_until_its_own_end() -> None:
    """Where its owner was not sent; a container with a callback notices the end."""
    node = _Node()
    reference, some = _received(weakref.ref(node), weakref.WeakSet([node]))
    assert list(some) == [reference()]
    del reference
    assert list(some) == []


def test_named_types_of_the_notebook() -> None:
    """Pickle would look for them in `__main__`."""
    names = _names("import typing\nWidth = typing.NewType('Width', int)\nP = typing.ParamSpec('P')")
    width, parameters = _received(names["Width"], names["P"])
    assert (width.__name__, width.__supertype__, width(3)) == ("Width", int, 3)
    assert isinstance(parameters, typing.ParamSpec)
    assert (parameters.__name__, parameters.__module__) == ("P", "__main__")
