"""What a rank writes down under `--check`, on a real process group of gloo."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ddp_magic.wire.calls import CollectiveCall, read_line
from ddp_magic.worker.watch.call_arguments import OPERATORS, POINT_TO_POINT
from ddp_magic.worker.watch.checked_calls import CallLog, operators, written_to
from tests.unit.worker.groups import leave_group


@pytest.fixture(autouse=True)
def group(tmp_path: Path) -> Iterator[None]:
    store = dist.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    leave_group()


def _calls(path: Path) -> list[CollectiveCall]:
    known: dict[int, CollectiveCall] = {}
    found = []
    for line in path.read_bytes().splitlines():
        number, call = read_line(line)
        known[number] = call or known[number]
        found.append(known[number])
    return found


@pytest.fixture
def watch(tmp_path: Path) -> Callable[[Callable[[], object]], list[CollectiveCall]]:
    """Calls a function, and returns which collectives it has called."""

    def call(function: Callable[[], object]) -> list[CollectiveCall]:
        path = tmp_path / "calls"
        path.unlink(missing_ok=True)
        with written_to(CallLog(path, {__file__: ""})):
            function()
        return _calls(path)

    return call


Watch = Callable[[Callable[[], object]], list[CollectiveCall]]
ONES = torch.ones(2, 3)


def test_a_call_is_described(watch: Watch) -> None:
    (call,) = watch(lambda: dist.all_reduce(ONES.clone(), op=dist.ReduceOp.MAX))
    assert (call.name, call.inputs, call.dtypes, call.reduce_op) == (
        "all_reduce", ((2, 3),), ("float32",), "MAX",
    )  # fmt: skip
    assert (call.ranks, call.device, call.title, call.root) == ((0,), "cpu", "", None)
    assert call.line == test_a_call_is_described.__code__.co_firstlineno + 1
    assert call.via == ""


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("all_reduce", dist.all_reduce),
        ("broadcast", lambda x: dist.broadcast(x, 0)),
        ("reduce", lambda x: dist.reduce(x, 0)),
        ("all_gather", lambda x: dist.all_gather([x.clone()], x)),
        ("all_gather_into_tensor", lambda x: dist.all_gather_into_tensor(x.clone(), x)),
        ("reduce_scatter", lambda x: dist.reduce_scatter(x, [x.clone()])),
        ("reduce_scatter_tensor", lambda x: dist.reduce_scatter_tensor(x.clone(), x)),
        ("gather", lambda x: dist.gather(x, [x.clone()])),
        ("scatter", lambda x: dist.scatter(x, [x.clone()])),
        ("all_to_all_single", lambda x: dist.all_to_all_single(x.clone(), x)),
        ("barrier", lambda _: dist.barrier()),
        ("all_reduce", lambda x: dist.all_reduce(x, async_op=True).wait()),
    ],
)
def test_every_collective_is_seen(watch: Watch, name: str, function: Callable[[Any], None]) -> None:
    """By the name under which a user calls it; in inference mode too."""

    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # newer torch has other names
            try:
                function(torch.ones(2))
            except RuntimeError as error:
                pytest.skip(str(error))  # this gloo does not have it

    for mode in (run, torch.inference_mode()(run)):
        (call,) = watch(mode)
        assert call.name == name
        assert call.inputs == (() if name == "barrier" else ((2,),))


def test_a_root_that_the_group_does_not_have_is_torchs_to_refuse(watch: Watch) -> None:
    """The check goes on."""

    def run() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            dist.broadcast(ONES.clone(), 7)
        dist.barrier()

    assert watch(run)[-1].name == "barrier"


def test_torch_has_no_collective_that_is_not_known() -> None:
    """A new one would be compared by its name only."""
    assert set(operators()) <= OPERATORS.keys() | POINT_TO_POINT


def test_what_ddp_calls_in_backward_is_seen(watch: Watch) -> None:
    def run() -> None:
        model = DistributedDataParallel(torch.nn.Linear(3, 1))
        model(ONES).sum().backward()

    calls = watch(run)
    last = calls[-1]
    assert (last.name, last.inputs) == ("all_reduce", ((4,),))
    assert last.via.endswith("backward")
    assert last.line == test_what_ddp_calls_in_backward_is_seen.__code__.co_firstlineno + 3


def test_a_call_is_written_down_before_it_is_made(tmp_path: Path) -> None:
    """It may kill the process."""
    path = tmp_path / "calls"
    with written_to(CallLog(path, {})):
        with pytest.raises(RuntimeError):
            dist.all_reduce(torch.ones(2), op=dist.ReduceOp.BAND)
        assert [call.name for call in _calls(path)] == ["all_reduce"]


def test_a_repeated_call_takes_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "calls"
    with written_to(CallLog(path, {})):
        for _ in range(100):
            dist.barrier()
    calls = _calls(path)
    assert len(calls) == 100
    assert path.stat().st_size < 1000


def test_results_are_those_of_the_call(watch: Watch) -> None:
    x = torch.tensor([1.0, 2.0])
    out = [torch.zeros(2)]
    watch(lambda: (dist.all_reduce(x), dist.all_gather(out, x)))
    assert out[0].tolist() == x.tolist() == [1.0, 2.0]


def test_nothing_is_seen_afterwards(watch: Watch, tmp_path: Path) -> None:
    watch(dist.barrier)
    size = (tmp_path / "calls").stat().st_size
    dist.barrier()
    assert (tmp_path / "calls").stat().st_size == size
    assert "BackendSelect: registered" not in torch._C._dispatch_dump_table("c10d::barrier")


def test_groups_are_told_apart(watch: Watch) -> None:
    """Also one that is created anew under the name of another."""

    def run() -> None:
        sub = dist.new_group([0], group_desc="tensor")
        dist.barrier(sub)
        dist.barrier()
        leave_group()
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        dist.barrier()

    first, second, third = watch(run)
    assert (first.title, second.title, third.title) == ("tensor", "", "")
    assert first.group != second.group == third.group
    assert (second.generation, third.generation) == (0, 1)


def test_sizes_for_each_rank_are_written_down(watch: Watch) -> None:
    x = torch.ones(4, 2)
    (call,) = watch(lambda: dist.all_to_all_single(x.clone(), x, [4], [4]))
    assert (call.sends, call.receives) == ((8,), (8,))


def test_a_forked_process_writes_nothing(tmp_path: Path) -> None:
    """What it calls is no collective of the rank's."""
    path = tmp_path / "calls"
    log = CallLog(path, {})
    assert dist.group.WORLD is not None
    arguments = {"tensor": ONES, "process_group": dist.group.WORLD.boxed()}
    if (pid := os.fork()) == 0:
        try:
            log.note("barrier", arguments, None)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert _calls(path) == []
    log.note("barrier", arguments, None)
    assert len(_calls(path)) == 1


def test_a_full_disk_ends_the_check_and_not_the_cell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calls"
    log = CallLog(path, {})
    full = os.open("/dev/full", os.O_WRONLY)
    with written_to(log):
        os.dup2(full, log._file or -1)
        dist.barrier()
        dist.barrier()
    os.close(full)
    assert not path.exists()
    assert capsys.readouterr().err.count("No space left on device") == 1


def test_a_call_of_another_thread_is_at_the_line_of_the_main_thread(watch: Watch) -> None:
    """As `backward` on a GPU, whose threads know of no line."""

    def run() -> None:
        thread = threading.Thread(target=dist.barrier)
        thread.start()
        thread.join()

    (call,) = watch(run)
    first = run.__code__.co_firstlineno
    assert call.line in range(first + 1, first + 4)


def test_an_error_of_the_check_is_not_the_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "calls"
    log = CallLog(path, {})
    log.note("barrier", {"process_group": None}, None)
    log.note("barrier", {"process_group": None}, None)
    assert not path.exists()
    assert capsys.readouterr().err.count("--check: ") == 1
