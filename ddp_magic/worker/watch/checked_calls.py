"""Records every collective that a rank calls, for `--check`: before it begins, with its arguments.

All collectives of torch.distributed, also those that C++ calls (DDP in `backward`, FSDP2), are
operators of torch's dispatcher, `c10d::allreduce_` and so on. While a cell is checked, each has a
kernel of ours at the dispatch key `BackendSelect`, which every call passes before it comes to its
backend. It writes the call down and passes it on, unchanged. So the ranks do not wait for each
other more than they do without it, and the Flight Recorder sees the same operations.

Not used here: TORCH_DISTRIBUTED_DEBUG=DETAIL. Its wrapper of process groups crashes the constructor
of DDP (torch 2.13: `Logger.set_construction_data_and_log`, also with `set_debug_level` and whatever
the level is later), lets ranks wait for each other in front of collectives that would not wait, and
compares neither the reduction nor the root.

The names of torch that this file uses are known to work in torch 2.6 and 2.13;
tests/unit/worker/watch/test_checked_calls.py fails where one changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from os import close, getpid, write  # bound here: a cell may replace the module's
from pathlib import Path
from sys import _current_frames, _getframe
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.calls import CollectiveCall, first_line, next_line
from ddp_magic.wire.commands import RunCell
from ddp_magic.worker.watch.call_arguments import (
    OPERATORS,
    POINT_TO_POINT,
    Arguments,
    device_type,
    exchange,
    reduction,
    splits,
    tensors,
)
from ddp_magic.worker.watch.flight_recorder import FlightRecorder
from ddp_magic.worker.watch.main_thread import current_place


@dataclass(frozen=True)
class _Group:
    """A process group that the cell uses; see `CollectiveCall`."""

    name: str
    title: str
    ranks: tuple[int, ...]
    generation: int
    before: Mapping[str, int]  # by device


class CallLog:
    """Writes the calls of one cell to a file.

    Args:
        path: The file.
        cells: What a person calls the cells in whose code to look for the line of a call, by the
            file of their code; empty for the cell that runs.
    """

    def __init__(self, path: Path, cells: Mapping[str, str]) -> None:
        self._path = path
        self._cells = cells
        self._pid = getpid()
        self._main_thread = threading.main_thread().ident or 0
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers: dict[object, int] = {}  # of the descriptions, by what tells them apart
        self._groups: dict[ProcessGroup, _Group | None] = {}
        self._generations: Counter[tuple[str, tuple[int, ...]]] = Counter()
        self._before = FlightRecorder().enqueued()

    def note(self, operator: str, arguments: Arguments, caller: FrameType | None) -> None:
        """Write down a call that is about to be made.

        Args:
            operator: torch's name of the operator.
            arguments: Its arguments, by name.
            caller: The Python frame that calls it, or C++ code that does.
        """
        if self._file is None or getpid() != self._pid:
            return  # a process that the rank has forked
        try:
            line = self._line(operator, arguments, caller)
            if line and write(self._file, line) < len(line):
                self._give_up("the disk is full")
        except Exception as error:  # noqa: BLE001 -- a cell that is right must not fail of its check
            self._give_up(f"{type(error).__name__}: {error}")

    def _line(self, operator: str, arguments: Arguments, caller: FrameType | None) -> bytes:
        """Return the line of a call; empty if it cannot be compared."""
        name, inputs, outputs = OPERATORS.get(operator, (operator.strip("_"), "", ""))
        given, taken = tensors(arguments.get(inputs)), tensors(arguments.get(outputs))
        device = given[0].device.type if given else device_type(arguments)
        group = ProcessGroup.unbox(arguments["process_group"])
        root, parts = arguments.get("root_rank"), splits(arguments)
        reduce_op, place = reduction(arguments, caller), self._place(caller)
        key = (
            operator, group, device, root, reduce_op, parts, place,
            tuple((tensor.shape, tensor.dtype) for tensor in given),
            tuple((tensor.shape, tensor.dtype) for tensor in taken),
        )  # fmt: skip
        if (number := self._numbers.get(key)) is not None:
            return next_line(number)
        # A trial without data; a group whose members nobody could tell.
        if device == "meta" or (known := self._group(group)) is None:
            return b""
        sends, receives = exchange(name, group.rank(), len(known.ranks), root, given, taken, parts)
        file, line = place
        via = current_place(file).call
        call = CollectiveCall(
            name=name,
            group=known.name,
            generation=known.generation,
            title=known.title,
            ranks=known.ranks,
            device=device,
            before=known.before.get(device, 0),
            inputs=tuple(tuple(tensor.shape) for tensor in given),
            outputs=tuple(tuple(tensor.shape) for tensor in taken),
            dtypes=tuple(str(tensor.dtype).removeprefix("torch.") for tensor in given or taken),
            reduce_op=reduce_op,
            root=_member(root, known.ranks),
            sends=sends,
            receives=receives,
            line=line,
            cell=self._cells.get(file, ""),
            via="" if via == name else via,
        )
        number = self._numbers[key] = len(self._numbers)
        return first_line(number, call)

    def close(self) -> None:
        """Write nothing more."""
        if self._file is not None:
            close(self._file)
            self._file = None

    def _give_up(self, reason: str) -> None:
        self.close()
        # Without the file the kernel knows that this rank is not compared any more.
        self._path.unlink(missing_ok=True)
        print(  # noqa: T201 -- part of the cell's output
            f"--check: the calls of this rank cannot be written to {self._path}: {reason}",
            file=sys.stderr,
        )

    def _place(self, caller: FrameType | None) -> tuple[str, int | None]:
        """Return the file and the line of the cell that calls.

        If it is in another thread, as `backward` on a GPU, where the main thread is.
        """
        for innermost in (caller, _current_frames().get(self._main_thread)):
            frame = innermost
            while frame is not None:
                if frame.f_code.co_filename in self._cells:
                    return frame.f_code.co_filename, frame.f_lineno
                frame = frame.f_back
        return "", None

    def _group(self, group: ProcessGroup) -> _Group | None:
        if group not in self._groups:
            self._groups[group] = self._describe(group)
        return self._groups[group]

    def _describe(self, group: ProcessGroup) -> _Group | None:
        name = str(group.group_name)
        try:
            ranks = tuple(dist.get_process_group_ranks(group))
        except (KeyError, ValueError, RuntimeError):  # torch does not know it: a library made it
            return None
        title = "" if group is dist.group.WORLD else str(group.group_desc)
        if title in ("", "undefined") and group is not dist.group.WORLD:
            title = name
        generation = self._generations[name, ranks]
        self._generations[name, ranks] += 1
        backends = {"cpu": "gloo", "cuda": "nccl"}
        # A group that the cell has created has the name of one before it, and counts from 1.
        before = {
            device: self._before.get(f"{backend}:{name}", 0) if generation == 0 else 0
            for device, backend in backends.items()
        }
        return _Group(name, title, ranks, generation, before)


@contextlib.contextmanager
def written(command: RunCell, rank: int, labels: dict[str, str]) -> Iterator[None]:
    """Write down, in the body of the `with`, which collectives this rank calls, if that is wanted.

    Args:
        command: The cell that runs in the body.
        rank: This rank.
        labels: What a person calls the notebook's cells, by file: the code of a function that
            `launch` calls is in one of them, or in a file of its own.
    """
    if not command.check:
        yield
        return
    path = RunDirectory(Path(command.path).parent).calls(rank)
    with written_to(CallLog(path, labels if command.call else {command.name: ""})):
        yield


@contextlib.contextmanager
def written_to(log: CallLog) -> Iterator[None]:
    """Write the collectives that this process calls in the body of the `with` to a log."""
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    try:
        for operator in operators():
            library.impl(operator, _kernel(operator, log), "BackendSelect", with_keyset=True)
        yield
    finally:
        library._destroy()
        log.close()


def operators() -> list[str]:
    """Return the operators of torch.distributed that concern all ranks of a group."""
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    ours = [name for space, _, name in names if space == "c10d" and "." not in name]
    return [name for name in ours if "process_group" in _parameters(name)[1]]


def _parameters(operator: str) -> tuple[Any, list[str]]:
    overload = getattr(torch.ops.c10d, operator).default
    return overload, [argument.name for argument in overload._schema.arguments]


def _kernel(operator: str, log: CallLog) -> Callable[..., Any]:
    overload, names = _parameters(operator)
    after = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
    # Not `overload.redispatch`, which would be one frame more in a user's traceback.
    redispatch = overload._handle.redispatch_boxed

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any operator's
        if operator not in POINT_TO_POINT:
            # Python 3.10 to 3.13
            log.note(operator, dict(zip(names, args, strict=False), **kwargs), _getframe().f_back)
        return redispatch(keys & after, *args, **kwargs)

    return kernel


def _member(root: int | None, ranks: tuple[int, ...]) -> int | None:
    """Return the rank of a group's member; what it is not, torch refuses afterwards."""
    return root if root is None or root >= len(ranks) else ranks[root]
