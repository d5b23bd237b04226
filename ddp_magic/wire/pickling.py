"""Values as bytes, from the notebook to the ranks and back.

cloudpickle does the work: functions and classes of the notebook travel by value, those of modules
by import. What is ours: arrays, and the memory of CPU tensors, stay out of the stream (`buffers`,
which travel in shared memory); a function of the notebook finds in the rank the cell's own names as
its globals; what cannot work in another process is refused with a reason (`Refused`). Several
values go into one stream, so that an optimizer still points at its model.

Neither torch nor NumPy is imported to write: where they are not yet, there is no tensor or array.
"""

from __future__ import annotations

import ast
import asyncio
import functools
import inspect
import io
import mmap
import os
import pickle
import socket
import subprocess
import sys
import textwrap
import threading
import types
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import cloudpickle
from cloudpickle.cloudpickle import _code_reduce, _extract_code_globals

from ddp_magic.kernel.names import names_in_text

_GRANULARITY = mmap.ALLOCATIONGRANULARITY
_GENERATORS = (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType, asyncio.Future)
# Whatever the notebook calls them (`from sys import stderr`), a rank has its own.
_PROCESS_OWN = ((os, "environ"), (sys, "stdin"), (sys, "stdout"), (sys, "stderr"))
_LOCKS = (
    type(threading.Lock()),
    type(threading.RLock()),
    threading.Condition,
    threading.Semaphore,
    threading.Event,
    threading.Barrier,
)
# By the name of their class, since none of these is imported for a look.
_ONE_PROCESS = {
    "accelerate.accelerator.Accelerator": "make it in the cell: it takes its world from the ranks",
    "accelerate.state.PartialState": "make it in the cell: it takes its world from the ranks",
    "lightning.fabric.fabric.Fabric": "make it in the cell: it takes its world from the ranks",
    "lightning.pytorch.trainer.trainer.Trainer": "make it in the cell",
    "lightning_fabric.fabric.Fabric": "make it in the cell: it takes its world from the ranks",
    "pytorch_lightning.trainer.trainer.Trainer": "make it in the cell",
    "transformers.trainer.Trainer": "make it in the cell",
    "transformers.training_args.TrainingArguments": "make it in the cell: it takes its world from "
    "the ranks",
    "torch.nn.parallel.distributed.DistributedDataParallel": "name its .module, and wrap that in "
    "the cell",
    "torch.distributed.distributed_c10d.ProcessGroup": "make it in the cell",
    "torch.utils.tensorboard.writer.SummaryWriter": "make it in the cell, on rank 0",
    "tensorboardX.writer.SummaryWriter": "make it in the cell, on rank 0",
    "wandb.sdk.wandb_run.Run": "call wandb.init in the cell, on rank 0",
    "mlflow.tracking.fluent.ActiveRun": "start the run in the cell, on rank 0",
    "neptune.metadata_containers.run.Run": "start the run in the cell, on rank 0",
    "comet_ml.experiment.BaseExperiment": "start the experiment in the cell, on rank 0",
}


class Refused(Exception):  # noqa: N818 -- an answer, which its caller turns into an error
    """A value cannot travel; the text says what it is.

    Attributes:
        value: The value.
        remedy: What to do instead, where that is something of its own.
    """

    def __init__(self, value: object, what: str, remedy: str = "") -> None:
        """Say what the value is."""
        super().__init__(what)
        self.value = value
        self.remedy = remedy


class Pickler(cloudpickle.Pickler):
    """Writes values into one stream, and their arrays beside it.

    Attributes:
        needs: Global names that the notebook's functions among the values read.
        carried: Names of the notebook's classes and functions among the values: pickle in the rank
            looks for them in `__main__`.
        annotated: Names that annotations of those mention.
        code_files: Files of the code of the functions among the values.
        device_bytes: What has been copied from devices other than the CPU, bytes.
    """

    def __init__(
        self,
        file: io.BytesIO,
        *,
        home: Mapping[str, Any] | None = None,
        on_buffer: Callable[[pickle.PickleBuffer], object],
    ) -> None:
        """Begin a stream.

        Args:
            file: What to write to.
            home: The notebook's namespace, which in the rank is the cell's; None for functions
                that bring their globals along.
            on_buffer: Is given the buffers in their order.
        """
        super().__init__(file, protocol=5, buffer_callback=lambda b: on_buffer(b) and False)
        self.needs: dict[str, None] = {}
        self.carried: dict[str, None] = {}
        self.annotated: dict[str, None] = {}
        self.code_files: dict[str, None] = {}
        self.device_bytes = 0
        self._home = home
        self._storages: dict[int, _Storage] = {}
        self._torch = sys.modules.get("torch")
        self._numpy = sys.modules.get("numpy")

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        """Say how an object is taken apart (pickle's own hook)."""
        if self._numpy is not None and isinstance(obj, self._numpy.ndarray):
            return _reduce_array(obj)
        if self._torch is not None and isinstance(obj, self._torch.Tensor):
            return self._reduce_tensor(obj)
        if isinstance(obj, functools._lru_cache_wrapper) and obj.__module__ == "__main__":
            return _cached, (obj.__wrapped__, obj.cache_parameters())
        if isinstance(obj, type) and obj.__module__ == "__main__":
            return self._reduce_class(obj)
        return self._reduce_other(obj)

    def _reduce_other(self, obj: Any) -> Any:  # noqa: ANN401 -- any object at all
        for module, name in _PROCESS_OWN:
            if obj is getattr(module, name):
                return getattr, (module, name)
        if (reduced := _reduce_of_standard_library(obj)) is not None:
            return reduced
        if isinstance(obj, types.CodeType):  # cloudpickle 3.1.3 takes its file from it
            return _in_file, (obj.co_filename, *_code_reduce(obj))
        refuse(obj)
        if self._home is not None:
            refuse_one_process(obj)
        elif (inner := unwrapped(obj)) is not obj:
            return _same, (inner,)
        return super().reducer_override(obj)

    # --- definitions --------------------------------------------------------------------------

    def _reduce_class(self, kind: type) -> Any:  # noqa: ANN401 -- pickle's
        if self._home is not None:
            self._note_definition(kind)
        reduced = super().reducer_override(kind)
        if "." in kind.__qualname__ and isinstance(reduced, tuple) and len(reduced) > 2:
            # cloudpickle forgets the class that it lies in, where pickle looks for it.
            own, *slots = reduced[2]
            state = ({**own, "__qualname__": kind.__qualname__}, *slots)
            reduced = (*reduced[:2], state, *reduced[3:])
        return reduced

    def _function_getnewargs(self, func: types.FunctionType) -> tuple[Any, ...]:
        code, its_globals, *rest = super()._function_getnewargs(func)
        return (code, _HOME if func.__globals__ is self._home else its_globals, *rest)

    def _dynamic_function_reduce(self, func: types.FunctionType) -> tuple[Any, ...]:
        make, args, state, *rest = super()._dynamic_function_reduce(func)
        self.code_files[func.__code__.co_filename] = None
        if func.__globals__ is self._home:
            self.needs.update(dict.fromkeys(_extract_code_globals(func.__code__)))
            self._note_definition(func)
            slots = {**state[1], "__globals__": {}, **self._defaults(func)}
            state = (state[0], slots)
        return (make, args, state, *rest)

    def _note_definition(self, obj: type | types.FunctionType) -> None:
        """Note what the notebook calls this, and what its annotations mention."""
        name = obj.__qualname__.partition(".")[0]
        if _attribute(self._home or {}, obj.__qualname__) is obj:
            self.carried[name] = None
        self.annotated.update(dict.fromkeys(sorted(annotated_names(obj))))

    def _defaults(self, func: types.FunctionType) -> dict[str, Any]:
        """Let `def f(device=device)` mean the rank's device.

        The notebook's own is the same on all ranks: with several GPUs that would be the first one.
        """
        device = (self._home or {}).get("device")
        if device is None:
            return {}
        # A string may be the same object in other places too: there the source decides.
        named = _defaults_named(func, "device") if isinstance(device, str) else None

        def is_it(parameter: str, value: object) -> bool:
            return value is device and (named is None or parameter in named)

        code = func.__code__
        defaults = func.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        pairs = zip(names, defaults, strict=True)
        positional = tuple(_DEVICE if is_it(name, value) else value for name, value in pairs)
        keywords = {
            name: _DEVICE if is_it(name, value) else value
            for name, value in (func.__kwdefaults__ or {}).items()
        }
        return {"__defaults__": positional or None, "__kwdefaults__": keywords or None}

    # --- tensors ------------------------------------------------------------------------------

    def _reduce_tensor(self, tensor: Any) -> Any:  # noqa: ANN401 -- no torch here
        torch = self._torch
        assert torch is not None  # noqa: S101 -- there is a tensor
        kind = type(tensor)
        if kind.__name__ == "DTensor":
            raise Refused(
                tensor,
                "a sharded tensor (DTensor)",
                "on all ranks, write `full = it.full_tensor()` in the cell, and name that",
            )
        plain = kind in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.is_quantized or tensor.device.type == "meta":
            return NotImplemented
        storage = tensor.untyped_storage()
        known = self._storages.get(storage._cdata)
        if known is None:
            if tensor.device.type != "cpu":
                self.device_bytes += storage.nbytes()
            known = self._storages[storage._cdata] = _Storage(storage)
        attributes = dict(tensor.__dict__) if tensor.__dict__ else None
        return _tensor, (
            known,
            tensor.dtype,
            (tensor.storage_offset(), tuple(tensor.size()), tensor.stride()),
            tensor.requires_grad,
            kind is torch.nn.Parameter,
            (tensor.is_conj(), tensor.is_neg()),
            attributes,
        )


def _attribute(namespace: Mapping[str, Any], qualified_name: str) -> object:
    first, *rest = qualified_name.split(".")
    found = namespace.get(first)
    for name in rest:
        found = getattr(found, name, None)
    return found


def annotated_names(obj: type | types.FunctionType) -> set[str]:
    """Return the names that an object's annotations mention in strings.

    All annotations are strings after `from __future__ import annotations`; who resolves one looks
    its names up.
    """
    if sys.version_info >= (3, 14):  # where they are evaluated only when they are asked for
        import annotationlib

        found = annotationlib.get_annotations(obj, format=annotationlib.Format.STRING)
    else:
        found = inspect.get_annotations(obj)
    return set().union(*map(_names_in, found.values()))


def _names_in(annotation: object, depth: int = 8) -> set[str]:
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str):
        return names_in_text(annotation)
    if depth == 0:
        return set()
    parts = annotation if isinstance(annotation, list) else getattr(annotation, "__args__", ())
    return set().union(*(_names_in(part, depth - 1) for part in parts or ()))


def _defaults_named(func: types.FunctionType, name: str) -> set[str]:
    """Return the parameters whose default is written as this very name."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(func)))
    except (OSError, TypeError, SyntaxError):  # no source; a lambda in the midst of a line
        return set()
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            arguments = [*node.args.posonlyargs, *node.args.args]
            pairs = list(zip(reversed(arguments), reversed(node.args.defaults), strict=False))
            pairs += [
                (argument, default)
                for argument, default in zip(
                    node.args.kwonlyargs, node.args.kw_defaults, strict=True
                )
                if default is not None
            ]
            found |= {a.arg for a, d in pairs if isinstance(d, ast.Name) and d.id == name}
    return found


def load(
    stream: bytes | memoryview, buffers: Iterable[Any], home: dict[str, Any] | None = None
) -> Iterator[Any]:
    """Yield the values of a stream, in their order.

    Args:
        stream: What a `Pickler` has written.
        buffers: Its buffers; arrays are made of them without a copy.
        home: The globals of functions that were the notebook's.

    Raises:
        Exception: Whatever an import or a class's own code raises.
    """
    file = io.BytesIO(stream)
    unpickler = pickle.Unpickler(file, buffers=buffers)  # noqa: S301 -- from a proven end
    size = len(stream)
    while file.tell() < size:
        _resolving.home = home
        yield unpickler.load()


def read_saved(stream: bytes, buffers: list[bytearray]) -> dict[str, Any]:
    """Return the values of a stream that was saved (`results`)."""
    return dict(load(stream, buffers))


def refuse(obj: object) -> None:
    """Refuse what lives in its process.

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
        case threading.Thread() | subprocess.Popen():
            raise Refused(obj, f"a running {type(obj).__name__}")
    kind = type(obj).__name__
    if isinstance(obj, _GENERATORS):
        raise Refused(obj, f"a {kind}", "make it in the cell, or make a list of it")
    if isinstance(obj, _LOCKS):
        raise Refused(obj, f"a lock ({kind})")


def refuse_one_process(obj: object) -> None:
    """Refuse what has taken the notebook's process for the whole world.

    Raises:
        Refused: It has.
    """
    kind: Any = type(obj)
    if remedy := _remedy(kind):
        raise Refused(obj, f"a {type(obj).__name__}, made for a world of one process", remedy)


@functools.cache
def _remedy(kind: type) -> str:
    names = (f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__)
    return next((_ONE_PROCESS[name] for name in names if name in _ONE_PROCESS), "")


def unwrapped(obj: Any) -> Any:  # noqa: ANN401 -- any object at all
    """Return the module inside DDP and `torch.compile`; anything else as it is.

    Raises:
        Refused: Its parameters lie in pieces on all ranks.
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
                "on all ranks, write `state = "
                "torch.distributed.checkpoint.state_dict.get_model_state_dict(it, options="
                "StateDictOptions(full_state_dict=True, cpu_offload=True))` in the cell, and name "
                "that",
            )
    return obj


# --- arrays ---------------------------------------------------------------------------------------


def _reduce_array(array: Any) -> Any:  # noqa: ANN401 -- of any shape and dtype
    np = sys.modules["numpy"]
    if isinstance(array, np.memmap):
        file = _mapped_file(array)
        if file is not None:
            return _memmap, file
    if type(array) in (np.ndarray, np.memmap) and not array.dtype.hasobject:
        contiguous = array.flags.c_contiguous or array.flags.f_contiguous
        # The reduction of a copy in order: numpy would put the other into the stream.
        plain = np.asarray(array) if contiguous else np.ascontiguousarray(array)
        return plain.__reduce_ex__(5)
    return NotImplemented


def _mapped_file(array: Any) -> tuple[Any, ...] | None:  # noqa: ANN401 -- a numpy.memmap
    """Return the arguments with which `_memmap` opens the same part of the same file."""
    if array._mmap is None or array.filename is None:
        return None
    np = sys.modules["numpy"]
    numpy2 = hasattr(np.lib, "array_utils")
    low, high = (np.lib.array_utils if numpy2 else np).byte_bounds(array)
    whole = np.frombuffer(array._mmap, np.uint8)
    base = whole.__array_interface__["data"][0]
    if not base <= low <= high <= base + whole.size:
        return None  # computed from one, and not a view of it
    begins = array.offset - array.offset % _GRANULARITY  # of the mapping, in the file
    return (
        str(array.filename),
        "r+" if array.mode == "w+" else array.mode,  # which would empty the file
        (begins + (low - base), high - low),
        (array.__array_interface__["data"][0] - low, array.shape, array.dtype, array.strides),
    )


def _memmap(filename: str, mode: Any, span: tuple[int, int], view: tuple[Any, ...]) -> Any:  # noqa: ANN401 -- numpy's own
    import numpy as np

    offset, nbytes = span
    part = np.memmap(filename, np.uint8, mode, offset, (nbytes,))
    first, shape, dtype, strides = view
    array = np.ndarray.__new__(np.memmap, shape, dtype, part, first, strides)
    array.__array_finalize__(part)
    return array


# --- what the stream calls in the other process ---------------------------------------------------


class _Storage:
    """The memory of tensors, which several may share."""

    def __init__(self, storage: Any) -> None:  # noqa: ANN401 -- a torch.UntypedStorage
        self._storage = storage

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401 -- pickle's
        torch = sys.modules["torch"]
        if not self._storage.nbytes():
            return _storage, (b"",)
        flat = torch.empty(0, dtype=torch.uint8).set_(self._storage.cpu())
        return _storage, (pickle.PickleBuffer(flat.numpy()),)


def _storage(buffer: Any) -> Any:  # noqa: ANN401 -- a buffer to a torch.UntypedStorage
    import torch

    if len(buffer) == 0:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    return torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()


def _tensor(
    storage: Any,  # noqa: ANN401 -- torch's, which is not imported here
    dtype: Any,  # noqa: ANN401
    place: tuple[int, tuple[int, ...], tuple[int, ...]],
    requires_grad: bool,
    is_parameter: bool,
    flipped: tuple[bool, bool],
    attributes: dict[str, Any] | None,
) -> Any:  # noqa: ANN401
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, *place)
    conjugated, negated = flipped
    if conjugated:
        tensor = torch._conj(tensor)
    if negated:
        tensor = torch._neg_view(tensor)
    if is_parameter:
        tensor = torch.nn.Parameter(tensor, requires_grad)
    else:
        tensor.requires_grad_(requires_grad)
    if attributes:
        tensor.__dict__.update(attributes)
    return tensor


# --- what of the standard library does not pickle, and means the same elsewhere -------------------

_NAMED = (typing.NewType, typing.ParamSpec, *filter(None, [getattr(typing, "TypeVarTuple", None)]))
_WEAK = (weakref.WeakKeyDictionary, weakref.WeakValueDictionary, weakref.WeakSet)
_OF_A_DISPATCHER = {"register", "dispatch", "registry", "_clear_cache", "__wrapped__"}


def _reduce_of_standard_library(obj: Any) -> Any:  # noqa: ANN401 -- any object at all
    """Return the parts of what is stopped only by a lock or a weak reference inside; else None."""
    if isinstance(obj, functools.cached_property):  # with a lock, up to Python 3.11
        state = {name: value for name, value in vars(obj).items() if name != "lock"}
        return _cached_property, (type(obj),), state
    if isinstance(obj, types.FunctionType) and _is_dispatcher(obj):
        own = {n: v for n, v in vars(obj).items() if n not in _OF_A_DISPATCHER}
        state = {"registry": dict(vars(obj)["registry"]), "own": own}
        return _dispatcher, (obj.__name__,), state, None, None, _fill_dispatcher
    if type(obj) in _WEAK:
        # What only the container knows ends with the reading, as it would here without its owner.
        items = list(obj) if isinstance(obj, weakref.WeakSet) else dict(obj)
        return type(obj), (), items, None, None, _update
    if type(obj) in (weakref.ref, _Reference):
        return _Reference.to, (obj(),)
    if isinstance(obj, _NAMED) and obj.__module__ == "__main__":  # pickle would look for it there
        bound = () if not isinstance(obj, typing.NewType) else (obj.__supertype__,)
        return _named, (type(obj), obj.__name__, *bound)
    return None


def _is_dispatcher(function: types.FunctionType) -> bool:
    """Tell whether it is what `functools.singledispatch` has made of the notebook's function."""
    own = function.__module__ == "__main__" and function.__globals__ is vars(functools)
    return own and vars(function).keys() >= _OF_A_DISPATCHER


def _cached_property(kind: type) -> Any:  # noqa: ANN401 -- of `kind`
    made: Any = object.__new__(kind)
    if sys.version_info < (3, 12):
        made.lock = threading.RLock()
    return made


def _dispatcher(name: str) -> Any:  # noqa: ANN401 -- a function with attributes
    def nothing(_: object) -> None: ...

    nothing.__name__ = name
    return functools.singledispatch(nothing)


def _fill_dispatcher(function: Any, state: dict[str, Any]) -> None:  # noqa: ANN401
    functools.update_wrapper(function, state["registry"][object])
    for kind, implementation in state["registry"].items():
        function.register(kind, implementation)
    vars(function).update(state["own"])


def _update(container: Any, items: Any) -> None:  # noqa: ANN401 -- a weak container
    container.update(items)


class _Reference(weakref.ref[Any]):
    """A weak reference that keeps its object: what holds that one is still in the other process."""

    obj: Any

    @classmethod
    def to(cls, obj: Any) -> _Reference:  # noqa: ANN401 -- any object at all
        made = cls(set() if obj is None else obj)  # the set is gone at once
        made.obj = obj
        return made


def _named(kind: Any, *args: Any) -> Any:  # noqa: ANN401 -- of `kind`
    made = kind(*args)
    made.__module__ = "__main__"
    return made


def _cached(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:  # noqa: ANN401
    return functools.lru_cache(**parameters)(function)


def _in_file(
    file: str, make: Callable[..., types.CodeType], args: tuple[Any, ...]
) -> types.CodeType:
    """Make code that tracebacks and `inspect` find in `file`."""
    return make(*args).replace(co_filename=file)


def _same(obj: Any) -> Any:  # noqa: ANN401 -- any object at all
    return obj


class _Resolving(threading.local):
    """Whose names a stream is read for."""

    home: dict[str, Any] | None = None


_resolving = _Resolving()


def _home() -> dict[str, Any]:
    return _resolving.home if _resolving.home is not None else {}


def _own(name: str) -> Any:  # noqa: ANN401 -- of any type
    return _home()[name]


class _Call:
    """Stands in the stream for what a function of this module returns in the other process."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:  # noqa: ANN401
        self._reduced = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


_HOME = _Call(_home)
_DEVICE = _Call(_own, "device")
