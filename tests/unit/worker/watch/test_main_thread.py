"""Where the main thread is, as another thread sees it."""

from __future__ import annotations

import asyncio
import dis
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from ddp_magic.system.tracebacks import know_source
from ddp_magic.worker.watch.frame_calls import called_expression, group_of
from ddp_magic.worker.watch.main_thread import MainThread, Place
from tests.limits import HANG_S
from tests.unit.worker.groups import leave_group

CELL = "/run/cell.py"
OTHER = "/tmp/ipykernel_7/3.py"


def _no_modules(_file: str) -> bool:
    """Return False: in a test, `look` is in a module of the user's, as it were."""
    return False


def _run(source: str, *, is_module: Callable[[str], bool] = _no_modules, **names: Any) -> Place:
    """Run a cell that calls `look()` somewhere; return what another thread saw then."""
    seen: list[Place] = []

    def look(*_args: object, **_more: object) -> float:
        def in_thread() -> None:
            main = MainThread(is_module)
            main.look({CELL: ""}, {OTHER: "Cell In[3]"})
            seen.append(main.place)

        thread = threading.Thread(target=in_thread)
        thread.start()
        thread.join()
        return 0.0

    text = textwrap.dedent(source)
    know_source(CELL, text)
    exec(compile(text, CELL, "exec"), {"look": look, **names})
    return seen[0]


class Looking(Dataset[int]):
    """Its items are made while `look` is called."""

    def __init__(self, look: Callable[[], float]) -> None:
        self.look = look

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        self.look()
        return index


def test_a_data_loader_is_named_as_such() -> None:
    place = _run(
        """
        for batch in DataLoader(Looking(look)):
            pass
        """,
        DataLoader=DataLoader,
        Looking=Looking,
    )
    assert (place.line, place.call) == (2, "DataLoader")


def test_a_function_of_torch_distributed_is_named(tmp_path: Path) -> None:
    """Not its wrapper, nor what it calls in turn."""
    source = "\n\ndist.broadcast_object_list([Told(look)])"

    class Told:
        def __init__(self, look: Callable[[], float]) -> None:
            self.look = look

        def __reduce__(self) -> tuple[type, tuple[()]]:
            self.look()
            return (list, ())

    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        place = _run(source, dist=dist, Told=Told)
        dist.barrier()  # torch 2.6 may hang in the next line while gloo lets go of a tensor
    finally:
        leave_group()
    assert (place.line, place.call) == (3, "broadcast_object_list")


def test_a_method_of_a_module_is_named_not_torchs_call() -> None:
    class Net(torch.nn.Module):
        def __init__(self, look: Callable[[], float]) -> None:
            super().__init__()
            self.look = look

        def forward(self) -> float:
            return self.look()

    place = _run("Net(look)()", Net=Net)
    assert place.line == 1
    assert place.call.endswith("forward")


@pytest.mark.skipif(not hasattr((lambda: 0).__code__, "co_positions"), reason="Python 3.11's")
def test_a_function_of_a_module_is_named_as_the_line_calls_it() -> None:
    """Not by its name alone, nor by what wraps it."""
    parameter = type("Parameter", (), {"grad": property(lambda self: self.look() or None)})
    line = "Parameter.look = look; torch.nn.utils.clip_grad_norm_([Parameter()], 1.0)"
    place = _run(line, torch=torch, Parameter=parameter)
    assert place == Place(line=1, call="torch.nn.utils.clip_grad_norm_")
    place = _run("textwrap.indent('x', '', look)", textwrap=textwrap)
    assert place == Place(line=1, call="textwrap.indent")


def test_the_innermost_line_of_the_cell_counts() -> None:
    place = _run("def step():\n    max([1], key=look)\n\nstep()")
    assert place.line == 2


def test_outside_of_the_cell_nothing_is_known() -> None:
    main = MainThread()
    main.look({CELL: ""})
    assert main.place == Place()


@pytest.fixture
def blocked() -> Iterator[Callable[[str], Place]]:
    """Runs a line whose C code waits until it was looked at."""
    done = threading.Event()

    def run(line: str, **names: Any) -> Place:
        seen: list[Place] = []

        def in_thread() -> None:
            main = MainThread(_no_modules)
            while not main.place.line or not main.still_s > 0.05:
                main.look({CELL: ""})
            seen.append(main.place)
            done.set()

        thread = threading.Thread(target=in_thread)
        thread.start()
        know_source(CELL, line)
        lock = threading.Lock()
        lock.acquire()
        release = threading.Thread(target=lambda: (done.wait(60), lock.release()))
        release.start()
        exec(compile(line, CELL, "exec"), {"lock": lock, **names})
        thread.join()
        release.join()
        return seen[0]

    yield run
    done.set()


@pytest.mark.skipif(not hasattr((lambda: 0).__code__, "co_positions"), reason="Python 3.11's")
@pytest.mark.parametrize(
    ("line", "call"),
    [
        ("lock.acquire()", "lock.acquire"),
        ("x = lock.acquire(True, 60) or None", "lock.acquire"),
        ("if (ä := [lock.acquire(timeout=60)]): pass", "lock.acquire"),
        ("for x in [0]: lock.acquire()", "lock.acquire"),
        ("[lock][0].acquire()", "[lock][0].acquire"),
        ("dict(lock=lock).pop('lock').acquire()", "dict(...).pop(...).acquire"),
        ("with lock: pass", "lock.__enter__"),
    ],
)
def test_c_code_is_named_as_the_line_calls_it(
    blocked: Callable[[str], Place], line: str, call: str
) -> None:
    """`time.sleep`, `open`, `work.wait` have no frame of their own."""
    assert blocked(line) == Place(line=1, call=call)


def test_it_stands_still_until_it_is_elsewhere() -> None:
    main = MainThread()

    def look() -> None:
        main.look({CELL: ""})

    for _ in range(3):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert main.still_s > 0.0
    threading.Thread(target=look).run()
    assert main.still_s == 0.0


class Working(MainThread):
    """Its thread has used as much time as the test says."""

    used_s = 0.0

    def cpu_s(self) -> float:
        return self.used_s


@pytest.mark.parametrize(
    ("works", "calls"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_a_loop_around_one_long_call_does_not_stand_still(*, works: bool, calls: bool) -> None:
    """It works, and there are new calls: while it waits, another thread may call something."""
    main = Working()

    def look() -> None:
        for number in range(3):
            main.used_s += works
            main.look({}, called=number if calls else 0)
            still_s.append(main.still_s)
            time.sleep(0.01)

    still_s: list[float] = []
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()  # the main thread is here all the time
    assert (still_s[-1] == 0.0) == (works and calls)


def test_a_receive_waits_for_a_rank() -> None:
    """The frame's own argument says for which."""
    file = "/x/torch/distributed/distributed_c10d.py"
    code = compile("def recv(look, src):\n    look()", file, "exec")
    names: dict[str, Any] = {}
    exec(code, names)
    place = _run("recv(look, 3)", recv=names["recv"])
    assert place == Place(line=1, call="recv", peer=3)


def _other_cell(source: str, file: str = OTHER) -> dict[str, Any]:
    """Return the names that another cell of the notebook, or a module, defines."""
    text = textwrap.dedent(source)
    know_source(file, text)
    names: dict[str, Any] = {"max": max}
    exec(compile(text, file, "exec"), names)
    return names


def test_a_line_of_another_cell_is_named_with_what_it_calls() -> None:
    """Most notebooks define their functions in other cells."""
    train = _other_cell(
        """
        def train(look):
            for _ in range(3):
                look()
        """
    )["train"]
    place = _run("\ntrain(look)", train=train)
    assert (place.line, place.inner) == (2, "Cell In[3], line 4")


def test_a_line_of_a_module_is_named() -> None:
    train = _other_cell("def train(look):\n    look()", "/home/me/project/train.py")["train"]
    place = _run("train(look)", is_module=lambda file: "project" in file, train=train)
    assert (place.line, place.inner) == (1, "train.py, line 2")


def test_a_line_of_the_cell_that_a_function_of_another_one_calls_counts() -> None:
    names = _other_cell("def call(f):\n    f()")
    place = _run("def f():\n    look()\n\ncall(f)", call=names["call"])
    assert (place.line, place.inner) == (2, "")


@pytest.mark.parametrize(
    ("cell", "call"),
    [
        ("time.sleep(1)", "time.sleep"),
        ("os.fsync(\n    f.fileno()\n)", "os.fsync"),
        ("x = [os.write(\n  fd,\n  'ä' * 3,\n), 1]", "os.write"),
        ("f(" + "\n" * 99 + ")", ""),
    ],
)
@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no columns")
def test_a_call_may_have_several_lines(cell: str, call: str) -> None:
    code = compile(cell, CELL, "exec")
    know_source(CELL, cell)
    calls = [i for i in dis.get_instructions(code) if i.opname.startswith("CALL")]
    frame = SimpleNamespace(f_code=code)
    assert called_expression(frame, calls[-1].offset) == call  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ranks", "call"),
    [
        ("[0, 2]", "new_group of ranks 0, 2"),
        ("range(9)", "new_group of ranks 0, 1, 2, 3, 4, 5, 6, 7, ..."),
        ("None", "new_group"),
    ],
)
def test_a_group_that_is_created_is_named_by_its_members(ranks: str, call: str) -> None:
    names = _other_cell(
        "def new_group(look, ranks):\n    look()",
        "/x/torch/distributed/distributed_c10d.py",
    )
    place = _run(f"new_group(look, {ranks})", new_group=names["new_group"])
    assert place.call == call


@pytest.mark.skipif(not hasattr((lambda: 0).__code__, "co_positions"), reason="Python 3.11's")
@pytest.mark.parametrize(
    ("source", "line", "call"),
    [
        ("async def f():\n    await asyncio.sleep(1000)", 2, "asyncio.sleep"),
        ("async def g():\n    await event.wait()\nasync def f():\n    await g()", 2, "Event.wait"),
    ],
)
def test_a_coroutine_that_waits_is_seen(source: str, line: int, call: str) -> None:
    """Its frames are not on the stack: the event loop waits there."""
    event = asyncio.Event()
    seen: list[Place] = []

    def look() -> None:
        while not seen or seen[-1].line is None:
            main = MainThread(_no_modules)
            main.look({CELL: ""})
            seen.append(main.place)
            time.sleep(0.01)
        loop.call_soon_threadsafe(task.cancel)

    know_source(CELL, source)
    names: dict[str, Any] = {"asyncio": asyncio, "event": event}
    exec(compile(source, CELL, "exec"), names)
    loop = asyncio.new_event_loop()
    task = loop.create_task(names["f"]())
    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    loop.call_later(HANG_S, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        loop.run_until_complete(task)
    thread.join(HANG_S)
    loop.close()
    assert (seen[-1].line, seen[-1].call) == (line, call)


@pytest.mark.parametrize(
    ("function", "arguments", "root"),
    [
        ("broadcast(look, src=None, group_src=None)", "src=2", "from rank 2"),
        ("gather(look, dst=None, group_dst=None)", "group_dst=1", "to rank 1 of the group"),
        ("broadcast(look, src=None, group_src=None)", "", ""),
        ("all_reduce(look, src=None)", "src=2", ""),
    ],
)
def test_a_collective_has_its_root(function: str, arguments: str, root: str) -> None:
    name = function.partition("(")[0]
    names = _other_cell(f"def {function}:\n    look()", "/x/torch/distributed/distributed_c10d.py")
    assert _run(f"{name}(look, {arguments})", **{name: names[name]}).root == root


def test_a_command_of_the_shell_is_named_as_it_was_written() -> None:
    names = _other_cell(
        "def system_piped(cmd, look):\n    look()", "/x/IPython/core/interactiveshell.py"
    )
    place = _run("run('sleep 1000', look)", run=names["system_piped"])
    assert place.call == "!sleep 1000"


@pytest.mark.skipif(not hasattr((lambda: 0).__code__, "co_positions"), reason="Python 3.11's")
def test_open_is_named_as_such(blocked: Callable[..., Place]) -> None:
    """IPython has its own in its place."""
    names = _other_cell(
        "def _modified_open(lock):\n    lock.acquire()", "/x/IPython/core/interactiveshell.py"
    )
    assert blocked("open(lock)", open=names["_modified_open"]).call == "open"


def _frames(file: str, source: str, *args: object) -> list[FrameType]:
    """Return the frames of a function `f` of a file that is called with these arguments."""
    names: dict[str, Any] = {"sys": sys}
    exec(compile(textwrap.dedent(source), file, "exec"), names)
    frame: FrameType = names["f"](*args)
    return [frame]


@pytest.mark.parametrize(
    ("file", "source", "group"),
    [
        ("/x/torch/distributed/distributed_c10d.py", "all_reduce(tensor, group)", "7"),
        ("/x/torch/distributed/distributed_c10d.py", "recv(tensor, group)", ""),
        ("/x/torch/distributed/distributed_c10d.py", "get_rank(tensor, of)", ""),
        ("/x/mine.py", "all_reduce(tensor, group)", ""),
    ],
)
def test_the_group_of_a_collective_is_an_argument(file: str, source: str, group: str) -> None:
    """Not that of a send or a receive, of which the other end is told."""
    name = source.partition("(")[0]
    text = f"def {source}:\n    return sys._getframe()\nf = {name}"
    assert group_of(_frames(file, text, None, SimpleNamespace(group_name="7"))) == group


def test_a_backward_may_be_in_a_collective_of_the_default_group(tmp_path: Path) -> None:
    frames = _frames("/x/torch/autograd/graph.py", "def f():\n    return sys._getframe()")
    assert group_of(frames) == ""
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        assert group_of(frames) == "0"
        assert group_of([]) == ""
    finally:
        leave_group()


@pytest.mark.parametrize(
    ("place", "words", "with_call"),
    [
        (Place(), "", ""),
        (Place(line=7), "line 7", "line 7"),
        (Place(line=7, cell="Cell In[3]"), "Cell In[3], line 7", "Cell In[3], line 7"),
        (Place(line=7, call="time.sleep"), "line 7", "line 7, in time.sleep"),
        (Place(call="time.sleep"), "", "in time.sleep"),
    ],
)
def test_a_place_in_words(place: Place, words: str, with_call: str) -> None:
    assert place.words() == words
    assert place.words(with_call=True) == with_call
