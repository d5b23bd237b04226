"""What a forkserver may import, and what shows that its imports are out of date."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from ddp_magic.system import libraries


def _module(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    return importlib.util.module_from_spec(spec)


def test_only_installed_libraries(tmp_path: Path) -> None:
    """Not the interpreter's own modules, not the user's, not the kernel's."""
    modules = {
        "numpy": np,
        "numpy.linalg": np.linalg,
        "os": os,
        "my_dataset": _module("my_dataset", tmp_path / "my_dataset.py"),
        "zmq": _module("zmq", Path(sysconfig.get_path("purelib")) / "zmq" / "__init__.py"),
        "alias": np,
        "__main__": sys.modules["__main__"],
    }
    assert libraries.libraries(modules) == ["numpy", "numpy.linalg"]


@pytest.mark.parametrize(
    ("record", "project", "installed"),
    [
        ("lib-1.0.dist-info/METADATA", "", True),  # pip, --target, a .pth file's directory
        ("lib.egg-info/PKG-INFO", "", True),  # Debian's
        ("EGG-INFO/PKG-INFO", "", True),  # of an .egg directory
        ("lib.egg-info/PKG-INFO", "setup.py", False),  # `pip install -e`, of old
        ("lib.egg-info/PKG-INFO", "pyproject.toml", False),
        ("", "", False),  # the user's own modules
    ],
)
def test_what_is_installed_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record: str, project: str, installed: bool
) -> None:
    """Where importlib.metadata finds a distribution; but not a project that is being edited."""
    place = tmp_path / "lib-1.0-py3.egg"
    (place / "lib").mkdir(parents=True)
    file = place / "lib" / "__init__.py"
    file.touch()
    if record:
        (place / record).parent.mkdir()
        (place / record).write_text("Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n")
    if project:
        (place / project).touch()
    monkeypatch.syspath_prepend(str(place))
    assert libraries.libraries({"lib": _module("lib", file)}) == (["lib"] if installed else [])
    part = _module("lib.part", place / "lib" / "part.py")  # of a namespace package
    assert libraries.libraries({"lib.part": part}) == (["lib.part"] if installed else [])


def test_a_zipped_egg_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of the path that is a file."""
    egg = tmp_path / "lib-1.0-py3.egg"
    with zipfile.ZipFile(egg, "w") as file:
        file.writestr("lib/__init__.py", "")
        file.writestr("EGG-INFO/PKG-INFO", "Metadata-Version: 2.1\nName: lib\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(egg))
    assert libraries.libraries({"lib": _module("lib", egg / "lib" / "__init__.py")}) == ["lib"]


def test_a_src_layout_is_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record lies in `src`, its pyproject.toml beside that."""
    src = tmp_path / "src"
    (src / "lib.egg-info").mkdir(parents=True)
    (src / "lib.egg-info" / "PKG-INFO").write_text("Name: lib\nVersion: 1\n")
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.syspath_prepend(str(src))
    assert libraries.libraries({"lib": _module("lib", src / "lib.py")}) == []


def test_the_users_directory_is_not_searched() -> None:
    """Neither by its name nor as the empty string."""
    path = ["", "/work", "/lib/python3", "."]
    assert libraries.search_path(path, "/work") == ["/lib/python3"]


def test_a_file_that_hides_a_library(tmp_path: Path) -> None:
    """Only in front of the installed ones, as the interpreter searches."""
    installed = sysconfig.get_path("purelib")
    path = [*sys.path[:1], installed]
    held = {"numpy": str(np.__file__)}
    assert libraries.shadowed(held, ["", *path], str(tmp_path)) is None
    (tmp_path / "numpy.py").touch()
    hidden = libraries.shadowed(held, ["", installed], str(tmp_path))
    assert hidden == ("numpy", os.path.join(tmp_path, ""))  # noqa: PTH118 -- Path drops the slash
    assert libraries.shadowed(held, [installed, str(tmp_path)], "/") is None
    held = {"numpy": str(tmp_path / "numpy.py")}  # it is there that it comes from
    assert libraries.shadowed(held, ["", installed], str(tmp_path)) is None


@pytest.mark.parametrize("name", ["numpy/__init__.py", "numpy.so", "numpy.pyc"])
def test_what_hides_a_library(name: str, tmp_path: Path) -> None:
    """A package and a compiled module too; and it is seen when it comes and when it goes."""
    held, path = {"numpy": str(np.__file__)}, ["", sysconfig.get_path("purelib")]
    assert libraries.shadowed(held, path, str(tmp_path)) is None
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    assert libraries.shadowed(held, path, str(tmp_path)) == ("numpy", f"{tmp_path}/")
    (tmp_path / name).unlink()
    assert libraries.shadowed(held, path, str(tmp_path)) is None
    assert libraries.shadowed(held, path, str(tmp_path / "gone")) is None


def test_an_upgrade_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is another one, or gone, names its library."""
    file = tmp_path / "lib" / "__init__.py"
    file.parent.mkdir()
    file.touch()
    (tmp_path / "lib-1.0.dist-info").mkdir()
    (tmp_path / "lib-1.0.dist-info" / "METADATA").write_text("Name: lib\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    held = libraries.files({"lib": _module("lib", file)})
    assert libraries.changed(held) == ""
    new = tmp_path / "new"
    new.touch()
    new.replace(file)
    assert libraries.changed(held) == "lib"
    held = libraries.files({"lib": _module("lib", file)})
    file.unlink()
    assert libraries.changed(held) == "lib"
