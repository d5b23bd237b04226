"""Packages in a pickle, with their submodules: `import xml.dom` binds only `xml`.

Pickle stores the name of a package. Where it is read, a submodule that the writer has loaded is
missing, so those are stored that the code which gets the package may use.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Collection


def words_of(code: types.CodeType) -> set[str]:
    """Return the global names and attributes that code uses, nested functions included."""
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= words_of(constant)
    return found


def submodules(package: types.ModuleType, words: Collection[str]) -> list[str]:
    """Return the loaded submodules of a package, and theirs, whose names are among the words."""
    found: list[str] = []
    todo = [package]
    while todo:
        parent = todo.pop()
        for word in vars(parent).keys() & words:
            name = f"{parent.__name__}.{word}"
            child = sys.modules.get(name)
            if isinstance(child, types.ModuleType) and name not in found:
                found.append(name)
                todo.append(child)
    return sorted(found)


def of_function(function: types.FunctionType) -> list[types.ModuleType]:
    """Return the submodules that a function may use of the packages that it reads."""
    words = words_of(function.__code__)
    values = [function.__globals__.get(word) for word in sorted(words)]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # an empty one
            values.append(cell.cell_contents)
    names = [n for m in values if isinstance(m, types.ModuleType) for n in submodules(m, words)]
    return [sys.modules[name] for name in names]


def package_with(name: str, names: Collection[str]) -> types.ModuleType:
    """Import a package and submodules of it, as far as they are here; see `submodules`."""
    package = importlib.import_module(name)
    for each in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(each)
    return package
