"""Which libraries a forkserver imports, and whether it may still be forked from afterwards.

Only installed libraries, never the user's own modules, which are read afresh by every rank. And
only libraries that leave the process fit: a thread does not survive a fork, nor does a device's
context.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import signal
import site
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

# A notebook's kernel has these for itself; a rank has no use for them.
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
_PRELUDE = "ddp_magic.prelude."
# torch's own, of version 2.6 for one: written to a temporary directory when it is imported.
_GENERATED = frozenset(["_remote_module_non_scriptable"])
# What CUDA and ROCm open, and do not survive a fork with. Not /dev/nvidiactl: NVML, the driver's
# management library, keeps it open once a library has asked torch.cuda.is_available(), and a fork
# does it no harm.
_DEVICE_FILES = ("/dev/nvidia-uvm", "/dev/kfd")
# Threads that a fork does no harm: jemalloc (pyarrow's, polars's) does its work in the calling
# thread wherever its own is missing.
_HARMLESS_THREADS = frozenset(["jemalloc_bg_thd"])
HANDLES_SIGNALS = "it handles signals"
# What a directory of a project has, whose modules are edited: `pip install -e` of old leaves its
# record among them.
_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")


def library_roots() -> tuple[str, ...]:
    """Return the directories in which libraries are installed, each with a slash at its end.

    The interpreter's own, and every place on the path with a distribution in it: `pip install
    --target`, the modules of clusters, what a `.pth` file or `site.addsitedir` has added.
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


@cache
def _has_distributions(entry: str) -> bool:
    if next(iter(importlib.metadata.distributions(path=[entry])), None) is None:
        return False
    # A project under development: its record lies beside its modules, or below it in `src`.
    places = (Path(entry), Path(entry).parent) if Path(entry).name == "src" else (Path(entry),)
    return not any((place / name).exists() for place in places for name in _PROJECT_FILES)


@cache
def _interpreter_roots() -> tuple[str, ...]:
    places = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    own = str(Path(__file__).resolve().parent)
    return tuple(os.path.join(place, "") for place in (*places, own))  # noqa: PTH118


def libraries(modules: Mapping[str, ModuleType]) -> list[str]:
    """Return the names of installed libraries' modules among `modules`, in their order.

    Args:
        modules: As `sys.modules`, whose order is that in which imports began.
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
        if origin[len(root) :].partition("/")[0] not in _KERNELS_OWN:  # debugpy brings others along
            found.append(name)
    return found


def is_installed(file: str) -> bool:
    """Tell whether a module's file is the interpreter's, a library's or ours."""
    return file.startswith((*library_roots(), *_interpreter_roots()))


def search_path(sys_path: Iterable[str], cwd: str) -> list[str]:
    """Return a module search path without the user's working directory."""
    return [entry for entry in sys_path if entry not in ("", ".", cwd)]


def shadowed(held: Mapping[str, str], sys_path: Iterable[str], cwd: str) -> tuple[str, str] | None:
    """Return (library, directory) of the first library that another directory hides now.

    Args:
        held: File of each library that is preloaded, by its top-level name.
        sys_path: The kernel's.
        cwd: What "" means in it.
    """
    wanted = dict(held)
    for entry in sys_path:
        place = os.path.join(entry or cwd, "")  # noqa: PTH118
        if place in _site_roots():
            return None  # from here on, the libraries come first
        if place in _interpreter_roots() or not os.path.isdir(place):  # noqa: PTH112 -- hot path
            continue
        for name, file in list(wanted.items()):
            spec = PathFinder.find_spec(name, [entry or cwd])
            if spec is not None and spec.origin is not None:
                if os.path.realpath(spec.origin) != os.path.realpath(file):
                    return name, place
                del wanted[name]  # it came from here
    return None


# --- in the forkserver ------------------------------------------------------------------------


def import_library(
    name: str, load: Callable[[str], Any] = importlib.import_module
) -> tuple[str, str]:
    """Import a module.

    Returns:
        Why it could not be imported, and why this process must not be forked from any more; empty
        where that is not so.
    """
    before = set(sys.modules)
    handlers = signal_handlers()
    failed = ""
    try:
        load(name)
    except BaseException as error:  # noqa: BLE001 -- a library's import may raise anything, and exit
        failed = f"{type(error).__name__}: {error}"
    return failed, unfit(set(sys.modules) - before, handlers)


def signal_handlers() -> list[Any]:
    """Return who handles each signal."""
    return [signal.getsignal(number) for number in sorted(signal.valid_signals())]


def unfit(new_modules: Iterable[str] = (), handlers: list[Any] | None = None) -> str:
    """Say why this process must not be forked from; empty if it may be.

    Args:
        new_modules: What an import has brought: none of it may be the user's own.
        handlers: What `signal_handlers` returned before them; None for those of now.
    """
    if _has_threads():
        return "it starts threads"
    if _holds_device():
        return "it opens a device"
    if handlers is not None and handlers != signal_handlers():
        return HANDLES_SIGNALS
    installed = (*library_roots(), *_interpreter_roots())
    for name in set(new_modules) - _GENERATED:
        file = getattr(sys.modules.get(name), "__file__", None)
        if isinstance(file, str) and os.path.isabs(file) and not file.startswith(installed):  # noqa: PTH117
            return f"it imports {name} from {file}, which is not installed"
    return ""


def _has_threads() -> bool:
    threads = os.listdir("/proc/self/task")  # noqa: PTH208 -- hot path
    if len(threads) == 1:
        return False
    names = (_thread_name(thread) for thread in threads if int(thread) != os.getpid())
    return any(name not in _HARMLESS_THREADS for name in names)


def _thread_name(thread: str) -> str | None:
    try:
        with open(f"/proc/self/task/{thread}/comm") as comm:  # noqa: PTH123 -- hot path
            return comm.read().strip()
    except OSError:  # it has ended, or its name is not to be had
        return None


def _holds_device() -> bool:
    for fd in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            if os.readlink(f"/proc/self/fd/{fd}").startswith(_DEVICE_FILES):  # noqa: PTH115
                return True
        except OSError:
            continue  # the listing's own
    return False


def cuda_survives_fork() -> bool:
    """Ask a forked child whether torch could begin CUDA there."""
    pid = os.fork()
    if pid == 0:
        torch = sys.modules.get("torch")
        bad = torch is not None and torch.cuda._is_in_bad_fork()
        os._exit(1 if bad else 0)
    return os.waitpid(pid, 0)[1] == 0


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
    """Return the top-level name of a library whose files are others now; empty if there is none.

    Args:
        held: What `files` returned when it was imported.
    """
    for name, (file, mtime_ns, inode) in held.items():
        try:
            status = os.stat(file)  # noqa: PTH116 -- hot path
        except OSError:
            return name.partition(".")[0]
        if (status.st_mtime_ns, status.st_ino) != (mtime_ns, inode):
            return name.partition(".")[0]
    return ""
