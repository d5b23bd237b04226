"""The imports of a script: where a value is imported from, and under which name. Pure."""

from __future__ import annotations

import itertools
import os
import sys
import types
from collections.abc import Mapping, Sequence

Home = tuple[str, str | None]  # module and attribute; None: the module itself

_BY_NAME = (type, types.FunctionType, types.BuiltinFunctionType)


class Imports:
    """Collects the imports of a script.

    Args:
        taken: What the names of the cell and the notebook mean: where they are imported from, None
            for anything else.
    """

    def __init__(self, taken: Mapping[str, Home | None]) -> None:
        self._taken = taken
        self._found: dict[str, set[str]] = {}  # what of a module, as it is written; "" for itself

    def add(self, home: Home, name: str) -> str:
        """Import under exactly this name, and return it. `import a.b` has the name `a`."""
        module, what = _written(home, name)
        self._found.setdefault(module, set()).add(what)
        return name

    def use(self, home: Home, name: str) -> str:
        """Import for a line of ours; return the name, which is another one if this is taken."""
        while self._taken.get(name, home) != home:
            name = f"_{name}"
        return self.add(home, name)

    def free(self, name: str) -> str:
        """Return a name for a line of ours, which is another one if this is taken."""
        return self.free(f"_{name}") if name in self._taken else name

    def builtin(self, name: str) -> str:
        """Return the name of a builtin, imported if its own name is taken."""
        return self.use(("builtins", name), name) if name in self._taken else name

    def modules(self) -> set[str]:
        """Return the top-level modules that are imported."""
        return {module.split()[0].partition(".")[0] for module in self._found}

    def text(self, between: str = "") -> str:
        """Return the lines, sorted: the standard library, then others.

        Args:
            between: Lines that must run before the others are imported.
        """
        groups: dict[bool, list[tuple[bool, str]]] = {False: [], True: []}
        for module, found in self._found.items():
            top = module.split()[0].partition(".")[0]
            lines = groups[top not in sys.stdlib_module_names]
            if "" in found:
                lines.append((False, f"import {module}"))
            if names := sorted(found - {""}, key=str.lower):
                lines.append((True, _from(module, names)))
        own, others = (
            "\n".join(
                line for _, line in sorted(group, key=lambda kind: (kind[0], kind[1].lower()))
            )
            for group in groups.values()
        )
        return "\n\n".join(filter(None, [own, between, others]))


def _written(home: Home, name: str) -> tuple[str, str]:
    """Return how an import names its module, and what of it; empty for the module itself."""
    module, attribute = home
    package, _, last = module.rpartition(".")
    if attribute is None and package and name == last:
        module, attribute = package, last  # from torch import nn
    if attribute is None:
        return (module if name == module.partition(".")[0] else f"{module} as {name}"), ""
    return module, attribute if attribute == name else f"{attribute} as {name}"


def _from(module: str, names: Sequence[str]) -> str:
    line = f"from {module} import {', '.join(names)}"
    if len(line) <= 88:
        return line
    return f"from {module} import (\n    " + ",\n    ".join(names) + ",\n)"


def home_of(value: object) -> Home | None:
    """Return where a module, function or class is imported from; None if it is the notebook's."""
    if isinstance(value, types.ModuleType):
        name = value.__name__ if value is not os.path else "os.path"
        return (name, None) if name != "__main__" and sys.modules.get(name) is value else None
    attribute = _name_of(value)
    if attribute is None or "." in attribute:
        return None
    module: str = getattr(value, "__module__", None) or "numpy"  # a ufunc has none
    for place in itertools.accumulate(module.split("."), "{}.{}".format):  # the most public one
        if place != "__main__" and vars(sys.modules.get(place, object)).get(attribute) is value:
            return place, attribute
    return None


def value_at(home: Home) -> object:
    """Return what is imported from there."""
    module, attribute = home
    there = sys.modules.get(module)
    return there if attribute is None else vars(there or object).get(attribute)


def _name_of(value: object) -> str | None:
    """Return the name under which a module has a value."""
    if isinstance(value, _BY_NAME):
        return value.__qualname__
    if type(value).__module__ in ("typing", "typing_extensions"):  # Optional, Any
        return getattr(value, "_name", None)
    return value.__name__ if type(value).__name__ == "ufunc" else None  # type: ignore[attr-defined]
