"""Importing a library in the forkserver, and whether the process may be forked afterwards.

A thread does not survive a fork, nor does a device's context.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

from ddp_magic.system.libraries import interpreter_roots, library_roots

# Of torch (2.6, for one), which writes it to a temporary directory when it is imported.
_GENERATED = frozenset(["_remote_module_non_scriptable"])
# What CUDA and ROCm open; neither survives a fork. Not /dev/nvidiactl: NVML, the driver's
# management library, keeps it open once a library has called torch.cuda.is_available(), and
# survives a fork.
_DEVICE_FILES = ("/dev/nvidia-uvm", "/dev/kfd")
# Threads that may be missing after a fork: jemalloc (of pyarrow, of polars) then does its work in
# the calling thread.
_HARMLESS_THREADS = frozenset(["jemalloc_bg_thd"])
HANDLES_SIGNALS = "it handles signals"


def import_library(
    name: str, load: Callable[[str], Any] = importlib.import_module
) -> tuple[str, str]:
    """Import a module.

    Returns:
        Why it could not be imported, and why this process must not be forked any more; each empty
        if that is not so.
    """
    before = set(sys.modules)
    handlers = signal_handlers()
    failed = ""
    try:
        load(name)
    except BaseException as error:  # noqa: BLE001 -- a library's import may raise anything, and exit
        failed = f"{type(error).__name__}: {error}"
    return failed, fork_obstacle(set(sys.modules) - before, handlers)


def signal_handlers() -> list[Any]:
    """Return the handler of each signal."""
    return [signal.getsignal(number) for number in sorted(signal.valid_signals())]


def fork_obstacle(new_modules: Iterable[str] = (), handlers: list[Any] | None = None) -> str:
    """Return why this process must not be forked; empty if it may be.

    Args:
        new_modules: Modules that an import has brought. None of them may be the user's own.
        handlers: What `signal_handlers` returned before the import; None not to compare.
    """
    if _has_threads():
        return "it starts threads"
    if _holds_device():
        return "it opens a device"
    if handlers is not None and handlers != signal_handlers():
        return HANDLES_SIGNALS
    installed = (*library_roots(), *interpreter_roots())
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
    except OSError:  # it has ended, or its name cannot be read
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
    """Return whether torch could still begin CUDA in a fork of this process.

    A fork of this process is asked. `_is_in_bad_fork` is private; it is the same in torch 2.6 to
    2.13 (tests/unit/node/test_imports.py).
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return True
    pid = os.fork()
    if pid == 0:
        bad = True
        try:
            bad = torch.cuda._is_in_bad_fork()
        finally:
            os._exit(1 if bad else 0)
    return os.waitpid(pid, 0)[1] == 0
