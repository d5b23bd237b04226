"""Names that a rank uses although they are private, or documented nowhere.

Each is tested for what it is used for, so that the version that changes one fails here. They hold
for torch 2.6 to 2.13, IPython 8.18 to 9.18 and Python 3.10 to 3.13.
"""

from __future__ import annotations

import inspect
import linecache
import multiprocessing
import multiprocessing.util
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import IPython
import pytest
import torch
import torch.distributed as dist
from IPython.core.compilerop import CachingCompiler
from IPython.core.displayhook import DisplayHook
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.ultratb import AutoFormattedTB
from IPython.extensions.autoreload import superreload
from torch import multiprocessing as torch_multiprocessing
from torch.distributed import distributed_c10d

from tests.unit.worker.groups import leave_group

# --- Python -----------------------------------------------------------------------------------


def test_threading_shutdown_waits_for_threads() -> None:
    """`threading._shutdown()`, in a process of its own: it is called once."""
    code = (
        "import threading, time, os\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('ended', flush=True))).start()\n"
        "threading._shutdown()\n"
        "print('after', flush=True)\n"
        "os._exit(0)"
    )
    assert _output(code) == "ended\nafter\n"


def test_multiprocessing_waits_for_children_in_its_exit_function() -> None:
    """`multiprocessing.util._exit_function()`, of its file `util.py`."""
    code = multiprocessing.util._exit_function.__code__  # type: ignore[attr-defined]
    assert code.co_filename.endswith("/multiprocessing/util.py")
    assert code.co_name == "_exit_function"


def test_run_exitfuncs_runs_the_exit_handlers() -> None:
    """`atexit._run_exitfuncs()`: the last one first, and a handler's error does not end it."""
    code = (
        "import atexit, os\n"
        "atexit.register(print, 'first', flush=True)\n"
        "atexit.register(lambda: 1 / 0)\n"
        "atexit.register(print, 'second', flush=True)\n"
        "try:\n    atexit._run_exitfuncs()\nexcept ZeroDivisionError:\n    pass\n"
        "os._exit(0)"
    )
    assert _output(code) == "second\nfirst\n"


def test_current_frames_has_the_main_thread() -> None:
    """`sys._current_frames()`: frames by thread identifier, of any thread."""
    frames: list[types.FrameType | None] = []
    main = threading.main_thread().ident
    assert main is not None
    other = threading.Thread(target=lambda: frames.append(sys._current_frames().get(main)))
    other.start()
    other.join()
    names = []
    frame = frames[0]
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    assert "test_current_frames_has_the_main_thread" in names


def test_getframe_has_the_callers() -> None:
    """`sys._getframe()`: whether torch's launcher has forked this process."""
    assert sys._getframe().f_code is test_getframe_has_the_callers.__code__
    assert sys._getframe().f_back is not None


def test_a_queues_thread_goes_by_its_name() -> None:
    """The thread of a `multiprocessing.Queue` is named QueueFeederThread."""
    queue: Any = multiprocessing.Queue()
    queue.put(1)
    assert "QueueFeederThread" in [thread.name for thread in threading.enumerate()]
    assert queue.get(timeout=60) == 1
    queue.close()
    queue.join_thread()


def test_linecache_holds_the_source_of_a_file_that_does_not_exist() -> None:
    """An entry (size, None, lines, name) is never checked against the disk."""
    linecache.cache["/no/such.py"] = (2, None, ["x\n"], "/no/such.py")
    linecache.checkcache()
    assert linecache.getline("/no/such.py", 1) == "x\n"
    del linecache.cache["/no/such.py"]


def _output(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout


# --- torch ------------------------------------------------------------------------------------


@pytest.fixture
def group() -> Iterator[Any]:
    """A default process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    if dist.is_initialized():
        leave_group()


def test_a_group_counts_its_collectives(group: Any) -> None:
    """`ProcessGroup._get_sequence_number_for_group()`: whether a cell has used our group."""
    before = group._get_sequence_number_for_group()
    dist.all_reduce(torch.ones(1))
    assert group._get_sequence_number_for_group() > before == 0


def test_the_world_lists_its_groups(group: Any) -> None:
    """`_world.pg_map` and `_world.pg_names`: what is kept alive, and what is shut down."""
    other = dist.new_group([0])
    world = distributed_c10d._world
    assert {group, other} <= set(world.pg_map)
    assert {group, other} <= set(world.pg_names)


def test_a_group_whose_name_is_forgotten_is_not_shut_down(group: Any) -> None:
    """What a forked child drops is its parent's."""
    distributed_c10d._world.pg_names.clear()
    leave_group()
    assert not dist.is_initialized()
    assert group.size() == 1


def test_init_calls_the_helper_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_new_process_group_helper`: replaced, to see which sockets a group opens."""
    called = []
    helper = distributed_c10d._new_process_group_helper

    def replaced(*args: Any, **kwargs: Any) -> Any:
        called.append(1)
        return helper(*args, **kwargs)

    monkeypatch.setattr(distributed_c10d, "_new_process_group_helper", replaced)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    dist.new_group([0])
    leave_group()
    assert len(called) == 2


def test_a_rendezvous_looks_up_its_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """`_rendezvous_handlers`, by scheme: generators of (store, rank, world size)."""
    handlers = sys.modules["torch.distributed.rendezvous"]._rendezvous_handlers
    given = []
    monkeypatch.setitem(handlers, "env", lambda url, **_: given.append(url) or iter([1]))
    assert next(dist.rendezvous("env://")) == 1
    assert next(dist.rendezvous("env://", rank=1, world_size=3)) == 1
    assert given[0] == "env://"
    assert given[1].endswith("?rank=1&world_size=3")


def test_the_barrier_over_a_store() -> None:
    """`_store_based_barrier(rank, store, name, world size, timeout)`."""
    distributed_c10d._store_based_barrier(0, dist.HashStore(), "x", 1, timedelta(seconds=60))


def test_abort_takes_no_argument() -> None:
    """`_abort_process_group()`: of the default group; what it does needs NCCL."""
    inspect.signature(distributed_c10d._abort_process_group).bind()


def test_init_takes_its_arguments_in_this_order() -> None:
    """Ours hands them on by position."""
    parameters = list(inspect.signature(dist.init_process_group).parameters)
    assert parameters[:6] == ["backend", "init_method", "timeout", "world_size", "rank", "store"]


def test_the_launcher_is_a_function() -> None:
    """`start_processes`, whose code a forked child looks for among its callers."""
    assert isinstance(torch_multiprocessing.start_processes.__code__, types.CodeType)


def test_a_parameter_counts_its_writes() -> None:
    """`Tensor._version`: whether a model of the notebook's was trained."""
    weight = torch.nn.Parameter(torch.zeros(1))
    before = weight._version
    with torch.no_grad():
        weight.add_(1)
    assert weight._version > before


def test_the_timeout_of_a_backend_can_be_changed(group: Any) -> None:
    """What lets collectives wait for a person; NCCL's backend has the same names."""
    backend = group._get_backend(group._device_types[0])
    assert backend.options._timeout == timedelta(minutes=30)
    backend._set_default_timeout(timedelta(days=1))
    assert backend.options._timeout == timedelta(days=1)
    assert group._get_backend(group._device_types[0]) is backend


# --- IPython ----------------------------------------------------------------------------------


def test_what_the_shell_overrides() -> None:
    """Methods of IPython's classes, with their arguments."""
    for owner, name, arguments in [
        (CachingCompiler, "get_code_name", ["raw_code", "transformed_code", "number"]),
        (CachingCompiler, "format_code_name", ["name"]),
        (DisplayHook, "quiet", []),
        (DisplayHook, "write_output_prompt", []),
        (DisplayHook, "write_format_data", ["format_dict", "md_dict"]),
        (DisplayHook, "log_output", ["format_dict"]),
        (DisplayHook, "finish_displayhook", []),
        (InteractiveShell, "init_prompts", []),
        (
            InteractiveShell,
            "showtraceback",
            ["exc_tuple", "filename", "tb_offset", "exception_only", "running_compiled_code"],
        ),
        (InteractiveShell, "showsyntaxerror", ["filename", "running_compiled_code"]),
        (InteractiveShell, "atexit_operations", []),
    ]:
        assert list(inspect.signature(getattr(owner, name)).parameters) == ["self", *arguments]


@pytest.mark.skipif(IPython.version_info < (9,), reason="IPython 8 keeps no text")
def test_what_keeps_a_cells_text() -> None:
    assert list(inspect.signature(InteractiveShell._tee).parameters) == ["self", "channel"]


def test_semicolons_are_found() -> None:
    """`DisplayHook.semicolon_at_end_of_expression(source)`."""
    ends = DisplayHook.semicolon_at_end_of_expression
    assert (ends("x;  # no"), ends("x  # ;")) == (True, False)


def test_tracebacks_are_formatted_from_a_given_frame() -> None:
    """`structured_traceback(class, error, traceback, tb_offset=0)`."""
    inspect.signature(AutoFormattedTB.structured_traceback).bind(
        None, ValueError, ValueError(), None, tb_offset=0
    )


def test_superreload_takes_its_record() -> None:
    """`superreload(module, old_objects=...)` of IPython's `%autoreload`."""
    inspect.signature(superreload).bind(types.ModuleType("m"), old_objects={})
