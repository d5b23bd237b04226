"""What both directions share; the private names of cloudpickle for that."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any

import cloudpickle
import pytest

from ddp_magic.wire.pickling import (
    Call,
    Pickler,
    global_names,
    load,
    read_saved,
    reader_namespace,
    reader_value,
)


def _function(text: str, name: str = "f", file: str = "/notebook/1.py") -> Any:
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(text, file, "exec", dont_inherit=True), names)
    return names[name]


def _stream(*values: Any, pickler: Callable[..., Pickler] = Pickler) -> bytes:
    file = io.BytesIO()
    writer = pickler(file, on_buffer=lambda _: None)
    for value in values:
        writer.dump(value)
    return file.getvalue()


def test_values_of_one_stream_share_their_objects() -> None:
    model = {"w": 1}
    first, second = load(_stream(model, [model]), [])
    assert second[0] is first


def test_a_saved_stream_is_a_dictionary() -> None:
    assert read_saved(_stream(("a", 1), ("b", [2])), []) == {"a": 1, "b": [2]}


def test_a_call_is_made_by_the_reader() -> None:
    """With the namespace that it reads for; another stream's is not left over."""
    stream = _stream([Call(reader_namespace), Call(reader_value, "device")])
    home = {"device": "here"}
    (found,) = load(stream, [], home)
    assert found[0] is home
    assert found[1] == "here"
    assert list(load(_stream(Call(reader_namespace)), [])) == [{}]


# --- cloudpickle's private names: these fail on a version that changes them -----------------------


def test_code_keeps_its_file() -> None:
    """`_code_reduce`: cloudpickle 3.1.3 drops the name of the file."""
    (found,) = load(_stream(_function("def f(): return lambda: 1")), [])
    assert found.__code__.co_filename == "/notebook/1.py"
    assert found().__code__.co_filename == "/notebook/1.py"


def test_the_global_names_of_code() -> None:
    """`_extract_code_globals`: those of nested functions too, and none that are assigned only."""
    text = "def f(x):\n    def g(): return b\n    return a + x.attribute, [c for _ in x], g"
    assert set(global_names(_function(text).__code__)) == {"a", "b", "c"}


def test_a_pickler_chooses_globals_and_attributes_of_functions() -> None:
    """`_function_getnewargs` and `_dynamic_function_reduce`: their hooks are still called."""

    class Chooses(Pickler):
        def function_globals(self, func: object, usual: object) -> object:  # noqa: ARG002
            return Call(reader_namespace)

        def function_slots(self, func: object, slots: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
            return {**slots, "__globals__": {}, "__defaults__": (3,)}

    home = {"n": 4}
    (found,) = load(_stream(_function("def f(x=1): return x + n"), pickler=Chooses), [], home)
    assert found.__globals__ is home
    assert found() == 7


def test_functions_that_share_a_variable_share_it_where_they_are_read() -> None:
    text = """
        def f():
            count = 0
            def add():
                nonlocal count
                count += 1
                return again
            def again(): return count, add
            return add, again
        """
    add, again = load(_stream(*_function(textwrap.dedent(text))()), [])
    add()()
    assert again() == (1, add)


def test_the_names_of_a_function_include_those_that_classes_in_it_read() -> None:
    text = """
        def f():
            class A(base):
                x: kind = first
                y = x
                def g(self): return second.part
                class B: z = third
            return A, later
        """
    found = set(global_names(_function(textwrap.dedent(text)).__code__))
    assert found >= {"base", "kind", "first", "second", "third", "later"}
    assert "part" not in found


def test_a_nested_class_keeps_its_qualified_name() -> None:
    """cloudpickle's reduction of a class has its attributes in third place."""
    kind = _function("class f:\n    class Part: pass").Part
    reduced = Pickler(io.BytesIO(), on_buffer=lambda _: None).reducer_override(kind)
    assert reduced[2][-1]["__qualname__"] == "f.Part"


def test_the_version_of_cloudpickle_is_known() -> None:
    """A newer one has not been tried: read its changes, then change this line."""
    version = tuple(map(int, cloudpickle.__version__.split(".")[:2]))
    assert (3, 0) <= version <= (3, 1)


@pytest.mark.parametrize("text", ["def f(): return f", "class f:\n    def m(self): return f"])
def test_recursion(text: str) -> None:
    (found,) = load(_stream(_function(text)), [])
    assert found.__name__ == "f"
