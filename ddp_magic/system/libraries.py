"""Which modules are installed libraries, as opposed to the user's own, and whether they changed.

Only installed libraries are preloaded. Each rank imports the user's own modules itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# Imported by a notebook's kernel for itself; ranks do not need them.
_KERNELS_OWN = frozenset(
    [
        "comm",
        "debugpy",
        "ipykernel",
        "jedi",
        "jupyter_client",
        "jupyter_core",
        "nest_asyncio",
        "parso",
        "tornado",
        "zmq",
    ]
)
_PRELUDE = "ddp_magic.sam."
# These mark a project under development, whose modules are edited. Old versions of `pip install -e`
# leave its record among them.
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


def library_roots() -> tuple[str, ...]:
    """Return the directories in which libraries are installed, each ending in a slash.

    These are the interpreter's own, and every entry of the path that has a distribution in it, as
    `pip install --target`, a cluster's modules, `.pth` files and `site.addsitedir` add them.
    """
    more = (entry for entry in sys.path if entry not in ("", ".") and _has_distributions(entry))
    return tuple(dict.fromkeys((*_site_roots(), *map(_with_slash, more))))


@cache
def _site_roots() -> tuple[str, ...]:
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    places.append(site.getusersitepackages())
    return tuple(map(_with_slash, places))


def _with_slash(place: str) -> str:
    return os.path.join(os.path.abspath(place), "")  # noqa: PTH100, PTH118 -- Path drops the slash


# By directory: when it was changed, and what is in it. A search for each library costs 3 ms a cell.
_names: dict[str, tuple[int, frozenset[str]]] = {}


@cache
def _has_distributions(entry: str) -> bool:
    if next(iter(importlib.metadata.distributions(path=[entry])), None) is None:
        return False
    # A project under development: its record lies beside its modules, or below it in `src`.
    places = (Path(entry), Path(entry).parent) if Path(entry).name == "src" else (Path(entry),)
    return not any((place / name).exists() for place in places for name in _PROJECT_FILES)


@cache
def interpreter_roots() -> tuple[str, ...]:
    """Return the directories of the standard library and of ddp_magic, each ending in a slash."""
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    own = str(Path(__file__).resolve().parents[1])
    return tuple(os.path.join(place, "") for place in (*places, own))  # noqa: PTH118


def libraries(modules: Mapping[str, ModuleType]) -> list[str]:
    """Return the names of installed libraries' modules, in their order.

    Args:
        modules: As `sys.modules`, which is in the order in which imports began.
    """
    found = []
    roots = library_roots()
    for name, module in list(modules.items()):
        spec = getattr(module, "__spec__", None)
        origin = getattr(spec, "origin", None)
        if spec is None or spec.name != name or not isinstance(origin, str):
            continue
        root = next((root for root in roots if origin.startswith(root)), None)
        if name.startswith(_PRELUDE):
            found.append(name)  # ours, wherever it lies
        if root is None or name.partition(".")[0] == "ddp_magic":
            continue
        if (
            origin[len(root) :].partition("/")[0] not in _KERNELS_OWN
        ):  # by place: debugpy has copies
            found.append(name)
    return found


def is_installed(file: str) -> bool:
    """Return whether a module's file belongs to the interpreter, a library or ddp_magic."""
    return file.startswith((*library_roots(), *interpreter_roots()))


def current_directory() -> str:
    """Return the working directory; empty if it has been removed."""
    try:
        return str(Path.cwd())
    except FileNotFoundError:
        return ""


def search_path(sys_path: Iterable[str], cwd: str) -> list[str]:
    """Return a module search path without the user's working directory."""
    return [entry for entry in sys_path if entry not in ("", ".", cwd)]


def shadowed(held: Mapping[str, str], sys_path: Iterable[str], cwd: str) -> tuple[str, str] | None:
    """Return (library, directory) of the first library that another directory now hides.

    Args:
        held: File of each preloaded library, by its top-level name.
        sys_path: The kernel's module search path.
        cwd: What "" means in it.
    """
    wanted = dict(held)
    for entry in sys_path:
        place = os.path.join(entry or cwd, "")  # noqa: PTH118
        if place in _site_roots():
            return None  # the libraries precede the rest of the path
        if place in interpreter_roots():
            continue
        names = _names_in(place)
        for name, file in [(n, f) for n, f in wanted.items() if n in names]:
            spec = PathFinder.find_spec(name, [entry or cwd])
            if spec is not None and spec.origin is not None:
                if os.path.realpath(spec.origin) != os.path.realpath(file):
                    return name, place
                del wanted[name]  # it was imported from here
    return None


def _names_in(place: str) -> frozenset[str]:
    """Return the names that may be imported from a directory, and others; empty if it is none."""
    try:
        changed = os.stat(place).st_mtime_ns  # noqa: PTH116 -- hot path
        if (known := _names.get(place)) is None or known[0] != changed:
            entries = frozenset(entry.partition(".")[0] for entry in os.listdir(place))  # noqa: PTH208
            known = _names[place] = changed, entries
    except OSError:
        return frozenset()
    return known[1]


def files(modules: Mapping[str, ModuleType]) -> dict[str, list[Any]]:
    """Return (file, mtime in ns, inode) of every package and top-level module of a library."""
    found = {}
    for name in libraries(modules):
        module = modules[name]
        file = module.__spec__.origin  # type: ignore[union-attr]  # `libraries` has seen it
        if hasattr(module, "__path__") or "." not in name or name.startswith(_PRELUDE):
            try:
                status = os.stat(file)  # type: ignore[arg-type]  # noqa: PTH116
            except OSError:
                continue
            found[name] = [file, status.st_mtime_ns, status.st_ino]
    return found


def changed(held: Mapping[str, list[Any]]) -> str:
    """Return the top-level name of a library whose files have changed; empty if there is none.

    Args:
        held: What `files` returned when they were imported.
    """
    for name, (file, mtime_ns, inode) in held.items():
        try:
            status = os.stat(file)  # noqa: PTH116 -- hot path
        except OSError:
            return name.partition(".")[0]
        if (status.st_mtime_ns, status.st_ino) != (mtime_ns, inode):
            return name.partition(".")[0]
    return ""
