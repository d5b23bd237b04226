"""Packages in a pickle have the submodules that code may use."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import wsgiref.simple_server
import xml.dom.minidom
import xml.etree.ElementTree  # noqa: ICN001 -- as a notebook does
from pathlib import Path
from typing import Any

import pytest

from ddp_magic.kernel.values.notebook_pickler import NotebookPickler
from ddp_magic.wire.submodules import of_function, package_with, submodules, words_of


def test_words() -> None:
    """Of functions in functions too."""
    code = compile("a.b\ndef f():\n    return lambda: c.d", "<cell>", "exec")
    assert words_of(code) >= {"a", "b", "c", "d"}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ({"etree"}, ["xml.etree"]),
        ({"etree", "ElementTree", "parse"}, ["xml.etree", "xml.etree.ElementTree"]),
        ({"ElementTree", "parse"}, []),
        ({"dom", "sax_is_not_loaded"}, ["xml.dom"]),
        (set(), []),
    ],
)
def test_the_submodules_that_are_meant(words: set[str], found: list[str]) -> None:
    assert submodules(xml, words) == found


def test_of_functions_in_functions() -> None:
    def outer() -> Any:
        return lambda: wsgiref.simple_server.WSGIServer

    assert wsgiref.simple_server in of_function(outer)  # type: ignore[arg-type]


def test_of_packages_of_the_function_around() -> None:
    """And of a function whose variable is not set yet."""

    def outer() -> Any:
        import xml as local
        import xml.dom.minidom as _  # noqa: F401 -- loads it

        def inner() -> Any:
            return local.dom.minidom, later

        assert xml.dom.minidom in of_function(inner)  # type: ignore[arg-type]
        later = 1
        return inner

    assert xml.dom.minidom in of_function(outer())


def test_a_package_whose_submodule_is_missing_is_imported() -> None:
    """In a rank of another environment the code itself says what is missing."""
    assert package_with("xml", ["xml.nothing"]) is xml


def _notebook() -> dict[str, Any]:
    home: dict[str, Any] = {"__name__": "__main__", "xml": xml, "wsgiref": wsgiref}
    text = "def g():\n    def h():\n        return wsgiref.simple_server.WSGIServer\n    return h()"
    exec(text, home)
    return home


def test_where_nothing_is_loaded(tmp_path: Path) -> None:
    """In a new process the module has what the cell uses, and the function what it uses."""
    home, file = _notebook(), io.BytesIO()
    pickler = NotebookPickler(file, home=home, on_buffer=lambda _: None)
    pickler.words = {"xml", "etree", "ElementTree", "Element"}
    pickler.dump((home["xml"], home["wsgiref"], home["g"]))
    path = tmp_path / "values.pkl"
    path.write_bytes(file.getvalue())
    code = f"""
import pickle, sys
before = "wsgiref.simple_server" in sys.modules
xml, *_ = pickle.load(open({str(path)!r}, "rb"))
loaded = [name in sys.modules for name in ("wsgiref.simple_server", "xml.dom.minidom")]
print(xml.etree.ElementTree.Element("a").tag, before, *loaded)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "a False True False\n", done.stderr


def test_names_of_modules_without_parts_stay_as_they_are() -> None:
    """A module's name alone, as cloudpickle stores it."""
    home, file = _notebook(), io.BytesIO()
    pickler = NotebookPickler(file, home=home, on_buffer=lambda _: None)
    pickler.dump(xml.dom.minidom)
    assert pickle.loads(file.getvalue()) is xml.dom.minidom
    assert b"package_with" not in file.getvalue()
    assert xml.etree.ElementTree is not None
