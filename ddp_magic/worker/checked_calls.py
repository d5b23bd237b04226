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
tests/unit/worker/test_checked_calls.py fails where one changes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.calls import CollectiveCall, first_line, next_line
from ddp_magic.wire.messages import RunCell
from ddp_magic.worker.flight_recorder import FlightRecorder
from ddp_magic.worker.main_thread import current_place

# By torch's name of the operator: what a user calls it, and its arguments that go in and come out.
_OPERATORS = {
    "allreduce_": ("all_reduce", "tensors", ""),
    "allreduce_coalesced_": ("all_reduce_coalesced", "tensors", ""),
    "broadcast_": ("broadcast", "tensors", ""),
    "reduce_": ("reduce", "tensors", ""),
    "allgather_": ("all_gather", "input_tensors", "output_tensors"),
    "_allgather_base_": ("all_gather_into_tensor", "input_tensor", "output_tensor"),
    "allgather_coalesced_": ("all_gather_coalesced", "input_list", ""),
    "allgather_into_tensor_coalesced_": ("all_gather_into_tensor_coalesced", "inputs", ""),
    "reduce_scatter_": ("reduce_scatter", "input_tensors", "output_tensors"),
    "_reduce_scatter_base_": ("reduce_scatter_tensor", "input_tensor", "output_tensor"),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter_tensor_coalesced", "inputs", ""),
    "gather_": ("gather", "input_tensors", "output_tensors"),
    "scatter_": ("scatter", "input_tensors", "output_tensors"),
    "alltoall_": ("all_to_all", "input_tensors", "output_tensors"),
    "alltoall_base_": ("all_to_all_single", "input", "output"),
    "barrier": ("barrier", "", ""),
    "monitored_barrier_": ("monitored_barrier", "", ""),
}
# Sends and receives concern two ranks, and are not collectives.
_POINT_TO_POINT = frozenset(["send", "recv_", "recv_any_source_"])
_REDUCTIONS = {kind.value: name for name, kind in dist.ReduceOp.RedOpType.__members__.items()}
_SPLITS = ("input_split_sizes", "output_split_sizes")  # of all_to_all_single
_NO_PEER = -1
_BACKEND_SELECT = torch._C.DispatchKey.BackendSelect
_C10D = os.path.join("torch", "distributed", "distributed_c10d.py")  # noqa: PTH118 -- a suffix

Arguments: TypeAlias = Mapping[str, Any]


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
        self._pid = os.getpid()
        self._file: int | None = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._numbers: dict[object, int] = {}  # of the descriptions, by what tells them apart
        self._groups: dict[ProcessGroup, _Group | None] = {}
        self._generations: Counter[tuple[str, tuple[int, ...]]] = Counter()
        recorder = FlightRecorder()
        self._before = recorder.enqueued(recorder.numbers())

    def note(self, operator: str, arguments: Arguments) -> None:
        """Write down a call that is about to be made.

        Args:
            operator: torch's name of the operator.
            arguments: Its arguments, by name.
        """
        name, inputs, outputs = _OPERATORS.get(operator, (operator.strip("_"), "", ""))
        given, taken = _tensors(arguments.get(inputs)), _tensors(arguments.get(outputs))
        device = given[0].device.type if given else _device(arguments)
        group = ProcessGroup.unbox(arguments["process_group"])
        if device == "meta" or os.getpid() != self._pid or self._file is None:
            return  # a trial without data, or a process that the rank has forked
        root, reduce_op = arguments.get("root_rank"), _reduce_op(arguments)
        splits = tuple(tuple(arguments[name]) for name in _SPLITS if name in arguments)
        place = self._place()
        key = (
            operator, group, device, root, reduce_op, splits, place,
            tuple((tensor.shape, tensor.dtype) for tensor in given),
            tuple((tensor.shape, tensor.dtype) for tensor in taken),
        )  # fmt: skip
        if (number := self._numbers.get(key)) is not None:
            self._write(next_line(number))
            return
        if (known := self._group(group)) is None:
            return  # nobody could tell which ranks are its members
        here = group.rank()
        sends, receives = _exchange(name, here, len(known.ranks), root, given, taken, splits)
        file, line = place or (next(iter(self._cells), ""), None)
        main_thread = current_place(file)
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
            root=None if root is None else known.ranks[root],
            sends=sends,
            receives=receives,
            line=main_thread.line if line is None else line,
            cell=self._cells.get(file, ""),
            via="" if main_thread.call == name else main_thread.call,
        )
        number = self._numbers[key] = len(self._numbers)
        self._write(first_line(number, call))

    def close(self) -> None:
        """Write nothing more."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, line: bytes) -> None:
        try:
            written = 0 if self._file is None else os.write(self._file, line)
        except OSError as error:
            self._give_up(str(error))
            return
        if written < len(line):
            self._give_up("the disk is full")

    def _give_up(self, reason: str) -> None:
        self.close()
        # Without the file the kernel knows that this rank is not compared any more.
        self._path.unlink(missing_ok=True)
        print(  # noqa: T201 -- part of the cell's output
            f"--check: the calls of this rank cannot be written to {self._path}: {reason}",
            file=sys.stderr,
        )

    def _place(self) -> tuple[str, int] | None:
        """Return the file and the line of a cell that this thread is in; None if it is in none."""
        frame: FrameType | None = sys._getframe(2)  # Python 3.10 to 3.13
        while frame is not None:
            if frame.f_code.co_filename in self._cells:
                return frame.f_code.co_filename, frame.f_lineno
            frame = frame.f_back
        return None

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
def written(command: RunCell, rank: int, cells: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Write down, in the body of the `with`, which collectives this rank calls, if that is wanted.

    Args:
        command: The cell that runs in the body.
        rank: This rank.
        cells: Files and numbers of the notebook's cells: the code of a function that `launch` calls
            is in one of them.
    """
    if not command.check:
        yield
        return
    path = RunDirectory(Path(command.path).parent).calls(rank)
    others = {file: f"Cell In[{number}]" for file, number in cells}
    with written_to(CallLog(path, others if command.call else {command.name: ""})):
        yield


@contextlib.contextmanager
def written_to(log: CallLog) -> Iterator[None]:
    """Write the collectives that this process calls in the body of the `with` to a log."""
    library: Any = torch.library.Library("c10d", "IMPL")  # type: ignore[no-untyped-call]
    try:
        for operator in _operators():
            library.impl(operator, _kernel(operator, log), "BackendSelect", with_keyset=True)
        yield
    finally:
        library._destroy()
        log.close()


def _operators() -> list[str]:
    """Return the operators of torch.distributed that concern all ranks of a group."""
    names = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    ours = [name for space, _, name in names if space == "c10d" and "." not in name]
    return [name for name in ours if "process_group" in _parameters(name)[1]]


def _parameters(operator: str) -> tuple[Any, list[str]]:
    overload = getattr(torch.ops.c10d, operator).default
    return overload, [argument.name for argument in overload._schema.arguments]


def _kernel(operator: str, log: CallLog) -> Callable[..., Any]:
    overload, names = _parameters(operator)
    after = torch._C._dispatch_keyset_full_after(_BACKEND_SELECT)
    # Not `overload.redispatch`, which would be one frame more in a user's traceback.
    redispatch = overload._handle.redispatch_boxed

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any operator's
        if operator not in _POINT_TO_POINT:
            log.note(operator, dict(zip(names, args, strict=False), **kwargs))
        return redispatch(keys & after, *args, **kwargs)

    return kernel


def _tensors(value: Any) -> list[torch.Tensor]:  # noqa: ANN401 -- a tensor, or lists of lists of them
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value or () for tensor in _tensors(part)]


def _device(arguments: Arguments) -> str:
    for value in arguments.values():
        if isinstance(value, (list, torch.Tensor)):
            for tensor in _tensors(value if isinstance(value, torch.Tensor) else value[:1]):
                return tensor.device.type
    return "cpu"


def _reduce_op(arguments: Arguments) -> str:
    """Return the name of the reduction; empty if there is none, or torch does not tell."""
    found = arguments.get("reduce_op")
    if found is None:
        return ""
    frame = sys._getframe(3)
    if frame.f_code.co_filename.endswith(_C10D) and "op" in frame.f_locals:
        # As Python has called it: torch 2.6 does not tell, and later it takes 20 us to ask.
        kind = frame.f_locals["op"]
        return str(getattr(kind, "op", kind)).rpartition(".")[2]
    return _REDUCTIONS.get(found.op(), "") if hasattr(found, "op") else ""


def _exchange(
    name: str,
    here: int,
    size: int,
    root: int | None,
    given: list[torch.Tensor],
    taken: list[torch.Tensor],
    splits: tuple[tuple[int, ...], ...],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return how many elements go to each rank of the group, and how many are expected from each.

    Args:
        name: The collective.
        here: This rank, in the group.
        size: Number of ranks of the group.
        root: The source or the destination, by its rank in the group.
        given: The inputs.
        taken: The outputs.
        splits: How `all_to_all_single` splits its input and its output.
    """
    to_all, from_all = (tuple(t.numel() for t in tensors) for tensors in (given, taken))
    match name:
        case "all_gather" if len(to_all) == 1:
            return to_all * size, from_all
        case "gather" if root is not None and len(to_all) == 1:
            sends = tuple(to_all[0] if r == root else _NO_PEER for r in range(size))
            return sends, from_all if here == root else ()
        case "scatter" if root is not None and len(from_all) == 1:
            receives = tuple(from_all[0] if r == root else _NO_PEER for r in range(size))
            return to_all if here == root else (), receives
        case "all_to_all":
            return to_all, from_all
        case "all_to_all_single":
            return _split(given[0], splits[0], size), _split(taken[0], splits[1], size)
    return (), ()


def _split(tensor: torch.Tensor, sizes: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Return the number of elements of each part of a tensor that is split along its first axis."""
    rows = tensor.shape[0] if tensor.dim() else 1
    row = tensor.numel() // rows if rows else 0
    return tuple(n * row for n in sizes) or (tensor.numel() // size,) * size
