"""Sends the values that the notebook pulls: unwrapped from DDP and `torch.compile`.

A value that cannot be sent is saved in the run directory, if possible.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire import pickling
from ddp_magic.wire.memory import Segment, size_words
from ddp_magic.wire.pickling import Pickler, Refused, problem
from ddp_magic.wire.worker_events import Results

UNSET = "was never set"


class ResultPickler(Pickler):
    """Writes a rank's values: modules without DDP and `torch.compile` around them.

    The notebook's classes stay as they are: a rank's have methods that read the rank's names.
    """

    other_classes_only = True

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        """Return the parts of an object (pickle's own hook)."""
        if (inner := unwrapped(obj)) is not obj:
            return pickling.same, (inner,)
        return super().reducer_override(obj)


def unwrapped(obj: Any) -> Any:  # noqa: ANN401 -- any object at all
    """Return the module inside DDP and `torch.compile`; anything else unchanged.

    Raises:
        Refused: Its parameters are sharded over the ranks.
    """
    match f"{type(obj).__module__}.{type(obj).__qualname__}":
        case "torch.nn.parallel.distributed.DistributedDataParallel":
            return unwrapped(obj.module)
        case "torch._dynamo.eval_frame.OptimizedModule":
            return unwrapped(obj._orig_mod)
        case name if name.endswith(".FullyShardedDataParallel"):
            raise Refused(
                obj,
                "a sharded module (FSDP)",
                "call `state = "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(it, options="
                "StateDictOptions(full_state_dict=True, cpu_offload=True))` on all ranks, and use "
                "`state` instead",
            )
    return obj


def send(
    rank: int, paths: Sequence[str], namespace: Mapping[str, Any], directory: RunDirectory
) -> tuple[Results, Segment | None]:
    """Copy the values of these names into shared memory.

    Args:
        rank: This rank.
        paths: Names, dotted or not.
        namespace: The cell's.
        directory: Where values that cannot be sent are saved.

    Returns:
        The event for the kernel, and the shared memory that goes with it.
    """
    failed: dict[str, str] = {}
    values: dict[str, Any] = {}
    for path in paths:
        try:
            values[path] = _look_up(path, namespace)
        except LookupError as error:
            failed[path] = str(error.args[0])
    while values:
        try:
            buffers = _pickle(values)
        except _CannotError as error:
            value = values.pop(error.path)
            saved = _save(value, directory, error.path, rank)
            failed[error.path] = f"cannot be pulled: {error}{saved}"
            continue
        try:
            segment = Segment.of(buffers)
        except OSError as error:
            size = size_words(sum(b.nbytes for b in buffers))
            path, value = max(values.items(), key=lambda item: _size(item[1]))
            del values[path]
            saved = _save(value, directory, path, rank)
            failed[path] = f"cannot be pulled: no memory for {size} ({error}){saved}"
            continue
        names = tuple(values)
        return Results(rank=rank, names=names, sizes=segment.sizes, failed=failed), segment
    return Results(rank=rank, failed=failed), None


def _look_up(path: str, namespace: Mapping[str, Any]) -> Any:  # noqa: ANN401 -- the user's
    """Return the value of a dotted name.

    Raises:
        LookupError: There is none.
    """
    first, *rest = path.split(".")
    if first not in namespace:
        raise LookupError(UNSET)
    value = namespace[first]
    for word in rest:
        try:
            value = getattr(value, word)
        except Exception as error:  # a property's own code
            raise LookupError(f"cannot be read: {problem(error)}") from error
    return value


class _CannotError(Exception):
    def __init__(self, path: str, text: str) -> None:
        super().__init__(text)
        self.path = path


def _pickle(values: Mapping[str, Any]) -> list[memoryview]:
    """Return the stream and its buffers.

    Raises:
        _CannotError: A value cannot be sent.
    """
    file = io.BytesIO()
    buffers: list[memoryview] = []
    pickler = ResultPickler(file, on_buffer=lambda buffer: buffers.append(buffer.raw()))
    for path, value in values.items():
        try:
            pickler.dump((path, value))
        except Refused as error:
            what = "it is" if error.value is value else "it holds"
            remedy = f"; {error.remedy}" if error.remedy else ""
            raise _CannotError(path, f"{what} {error}{remedy}") from error
        except Exception as error:  # the value's own code may raise anything
            raise _CannotError(path, problem(error)) from error
    return [memoryview(file.getbuffer()), *buffers]


def _save(value: Any, directory: RunDirectory, name: str, rank: int) -> str:  # noqa: ANN401 -- the user's
    """Save a value that cannot be sent, or its text; return the words that say where."""
    import torch

    file = directory.saved_value(name, rank, ".pt")
    try:
        if hasattr(value, "state_dict"):  # for a sharded module, this rank's shard
            value = value.state_dict()
        torch.save(value, file)
    except Exception:  # noqa: BLE001 -- whatever the value's own code raises
        try:
            file.unlink(missing_ok=True)
        except OSError:  # a disk that has become read-only
            pass
    else:
        return f"; saved for torch.load: {file}"
    text = directory.saved_value(name, rank, ".txt")
    try:
        text.write_text(repr(value))
    except Exception:  # noqa: BLE001 -- the value's own repr
        return ""
    return f"; its text is in {text}"


def _size(value: Any) -> int:  # noqa: ANN401 -- the user's
    return int(getattr(value, "nbytes", 0))
