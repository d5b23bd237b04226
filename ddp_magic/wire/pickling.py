"""Values as bytes, from the notebook to the ranks and back: what both directions share.

cloudpickle does the work: functions and classes of the notebook travel by value, those of modules
by import. Ours is the rest: arrays, and the memory of CPU tensors, stay out of the stream and
travel in shared memory (`wire.arrays`); what cannot work in another process is rejected with a
reason (`Refused`). Several values go into one stream, so that an optimizer still points at its
model.

`kernel.values.notebook_pickler` adds what holds for the notebook's values,
`worker.values.sent_values` what holds for a rank's.

Private names of cloudpickle, used here, in `new_classes` and in `new_enums`, and known to hold for
cloudpickle 3.0 to 3.1 (tests/unit/wire fails where they change): `_code_reduce`,
`_extract_code_globals`, `_make_skeleton_class`, `_class_getstate`, `_get_or_create_tracker_id`,
`_lookup_class_or_track`, `_DYNAMIC_CLASS_TRACKER_BY_ID`, `Pickler._function_getnewargs`,
`Pickler._dynamic_function_reduce`, and the slot `_cloudpickle_submodules` of a function.
"""

from __future__ import annotations

import asyncio
import dis
import enum
import inspect
import io
import pickle
import socket
import subprocess
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _code_reduce, _extract_code_globals

from ddp_magic.wire import arrays, new_classes, new_enums, new_objects, standard_library
from ddp_magic.wire.submodules import of_function

_ASYNCHRONOUS = (types.CoroutineType, types.AsyncGeneratorType, asyncio.Future)
_LOCKS = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Semaphore,
    threading.Event,
    threading.Barrier,
)


class Refused(Exception):  # noqa: N818 -- an answer, which its caller turns into an error
    """A value cannot be sent; the text says what it is.

    Attributes:
        value: The value.
        remedy: What to do instead; empty for the usual remedy.
    """

    def __init__(self, value: object, what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.value = value
        self.remedy = remedy


class Pickler(cloudpickle.Pickler):
    """Writes values into one stream, and their arrays beside it.

    Args:
        file: What to write to.
        on_buffer: Is called with each buffer, in the order of the stream; None to write
            them into it.

    Attributes:
        other_classes_only: Whether the process that has defined a class keeps it as it is; may be
            overridden.
        device_bytes: What has been copied from devices other than the CPU, bytes.
    """

    other_classes_only = False

    def __init__(
        self, file: io.BytesIO, *, on_buffer: Callable[[pickle.PickleBuffer], object] | None
    ) -> None:
        beside = None if on_buffer is None else lambda buffer: on_buffer(buffer) and False
        super().__init__(file, protocol=5, buffer_callback=beside)
        self.device_bytes = 0
        self._storages: dict[int, arrays.Storage] = {}
        self._cells: dict[int, tuple[types.CellType, types.CellType]] = {}
        self._torch = sys.modules.get("torch")
        self._numpy = sys.modules.get("numpy")

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        """Return the parts of an object (pickle's own hook)."""
        if self._numpy is not None and isinstance(obj, self._numpy.ndarray):
            return arrays.reduce_array(obj)
        if self._torch is not None and isinstance(obj, self._torch.Tensor):
            return self._reduce_tensor(obj)
        if isinstance(obj, types.CodeType):  # cloudpickle 3.1.3 drops the name of its file
            return in_file, (obj.co_filename, *_code_reduce(obj))
        return self.reduce_other(obj)

    def reduce_other(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        """Return the parts of an object that has no memory beside the stream, and is no code.

        Raises:
            Refused: It works only in its own process.
        """
        if isinstance(obj, type) and obj.__module__ == "__main__":
            return self._reduce_class(obj)
        if reduced := standard_library.reduce(obj) or new_objects.reduce(obj):
            return reduced
        refuse(obj)
        return super().reducer_override(obj)

    def function_globals(self, func: types.FunctionType, usual: object) -> object:  # noqa: ARG002
        """Return what stands in the stream for the globals of a function; may be overridden."""
        return usual

    def function_slots(self, func: types.FunctionType, slots: dict[str, Any]) -> dict[str, Any]:  # noqa: ARG002
        """Return the attributes that the reader sets on a function; may be overridden."""
        return slots

    def _reduce_class(self, kind: type) -> Any:  # noqa: ANN401 -- pickle's
        if issubclass(kind, enum.Enum):
            return new_enums.reduced(kind, others_only=self.other_classes_only)
        reduced = super().reducer_override(kind)
        if not isinstance(reduced, tuple) or len(reduced) <= 2:
            return reduced
        return new_classes.reduced(kind, reduced, others_only=self.other_classes_only)

    def _function_getnewargs(self, func: types.FunctionType) -> tuple[Any, ...]:
        code, its_globals, *rest, closure = super()._function_getnewargs(func)
        if closure is not None:  # functions that share a variable share it in the reading process
            pairs = zip(func.__closure__ or (), closure, strict=True)
            closure = tuple(self._cells.setdefault(id(own), (own, new))[1] for own, new in pairs)
        return (code, self.function_globals(func, its_globals), *rest, closure)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple[Any, ...]:
        make, args, state, *rest = super()._dynamic_function_reduce(func)
        attributes, slots = state
        slots = {**slots, "_cloudpickle_submodules": of_function(func)}  # cloudpickle: not nested
        return (make, args, (attributes, self.function_slots(func, slots)), *rest)

    def _reduce_tensor(self, tensor: Any) -> Any:  # noqa: ANN401 -- no torch here
        if type(tensor).__name__ == "DTensor":
            raise Refused(
                tensor,
                "a sharded tensor (DTensor)",
                "call `full = it.full_tensor()` on all ranks, and use `full` instead",
            )
        if not arrays.has_plain_storage(tensor):
            return NotImplemented
        key = arrays.storage_key(tensor)
        known = self._storages.get(key)
        if known is None:
            storage = tensor.untyped_storage()
            if tensor.device.type != "cpu":
                self.device_bytes += storage.nbytes()
            known = self._storages[key] = arrays.Storage(storage)
        return arrays.reduce_tensor(tensor, known)


def global_names(code: types.CodeType) -> Iterable[str]:
    """Return the global names that a function's code uses, nested functions included."""
    names = dict.fromkeys(_extract_code_globals(code))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_names_of_a_class(constant))
    return names


def _names_of_a_class(code: types.CodeType) -> Iterable[str]:
    """Return the names that the bodies of classes in a function read."""
    if not code.co_flags & inspect.CO_OPTIMIZED:
        loads = ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
        yield from (each.argval for each in dis.get_instructions(code) if each.opname in loads)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_of_a_class(constant)


def refuse(obj: object) -> None:
    """Reject what works only in its own process.

    Raises:
        Refused: It does.
    """
    match obj:
        case io.BytesIO() | io.StringIO():
            return
        case io.IOBase():
            raise Refused(obj, "an open file")
        case socket.socket():
            raise Refused(obj, "a socket")
        case threading.Thread():
            raise Refused(obj, f"a thread ({type(obj).__name__})")
        case subprocess.Popen():
            raise Refused(obj, f"a subprocess ({type(obj).__name__})")
        case types.GeneratorType():
            raise Refused(obj, "a generator", "convert it to a list")
        case weakref.WeakMethod():
            raise Refused(obj, "a weak reference to a method", "use the method itself")
    if isinstance(obj, _ASYNCHRONOUS):
        generator = isinstance(obj, types.AsyncGeneratorType)
        remedy = "collect its items in a list" if generator else "await it, and use its result"
        raise Refused(obj, f"an asynchronous object ({type(obj).__name__})", remedy)
    if isinstance(obj, _LOCKS):
        kind = type(obj).__name__
        raise Refused(obj, "a lock" if kind == "lock" else f"a lock ({kind})")


def problem(error: BaseException) -> str:
    """Return in one line what a value's own code has raised."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 -- its own `__str__`
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


# --- the process that reads -----------------------------------------------------------------------


def load(
    stream: bytes | memoryview, buffers: Iterable[Any], home: dict[str, Any] | None = None
) -> Iterator[Any]:
    """Yield the values of a stream, in their order.

    Args:
        stream: What a `Pickler` has written.
        buffers: Its buffers; arrays use them without a copy.
        home: The globals of the notebook's functions.

    Raises:
        Exception: Whatever an import or a class's own code raises.
    """
    file = io.BytesIO(stream)
    unpickler = pickle.Unpickler(file, buffers=buffers)  # noqa: S301 -- from a proven end
    size = len(stream)
    while file.tell() < size:
        _reading.home = home
        yield unpickler.load()


def read_saved(stream: bytes, buffers: list[bytearray]) -> dict[str, Any]:
    """Return the values of a stream that was saved (`kernel.values.pull`)."""
    return dict(load(stream, buffers))


class _Reading(threading.local):
    """The namespace for which this thread reads a stream."""

    home: dict[str, Any] | None = None


_reading = _Reading()


# --- called by the stream, in the process that reads it -------------------------------------------


def in_file(
    file: str, make: Callable[..., types.CodeType], args: tuple[Any, ...]
) -> types.CodeType:
    """Make code that tracebacks and `inspect` find in `file`."""
    return make(*args).replace(co_filename=file)


def same(obj: Any) -> Any:  # noqa: ANN401 -- any object at all
    """Return the object."""
    return obj


def reader_namespace() -> dict[str, Any]:
    """Return the namespace that `load` was called with."""
    return _reading.home if _reading.home is not None else {}


def reader_value(name: str) -> Any:  # noqa: ANN401 -- of any type
    """Return a value of that namespace."""
    return reader_namespace()[name]


class Call:
    """Stands in the stream for what a function of this module returns in the reading process."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401
        self._reduced = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced
