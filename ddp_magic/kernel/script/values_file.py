"""The pickles beside a script: all values that are neither imported nor written out.

One pickler, so that an optimizer still points at its model. Functions and classes that the script
defines are in it by name, other ones of the notebook by value; their globals are the script's.
"""

from __future__ import annotations

import functools
import io
import operator
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from ddp_magic.wire.new_classes import from_pickles
from ddp_magic.wire.pickling import Call, Pickler

# How the script reads pickles that refer to its definitions.
UNPICKLER = """\
class {name}({pickle}.Unpickler):
    def persistent_load(self, name):  # a definition above
        return {eval}(name)"""

_OURS = "ddp_magic.wire."  # whose functions make values where a pickle is read: not by import
_GLOBALS = object()


class ScriptPickler(Pickler):
    """Writes values for a script.

    Args:
        file: What to write to.
        home: The notebook's namespace.
        defined: Names of the functions and classes that the script defines.
        written: The name by which the script writes each list, set or dictionary, by its id.

    Attributes:
        refers: Whether the pickle refers to the script's definitions or globals.
        met: Names of `written` that have been met: they are no longer the same object.
    """

    def __init__(
        self,
        file: io.BytesIO,
        *,
        home: Mapping[str, Any],
        defined: Mapping[str, object],
        written: Mapping[int, str],
    ) -> None:
        super().__init__(file, on_buffer=None)
        self.refers = False
        self.met: set[str] = set()
        self._home = home
        self._paths = {id(v): path for n, value in defined.items() for path, v in _paths(n, value)}
        self._paths[id(_GLOBALS)] = "globals()"
        self._written = written
        # The memory of tensors, as bytes, by its number in torch, and the original: kept, so that
        # its number stays its own.
        self._memory: dict[int, tuple[Any, Any]] = {}
        self._bytes: set[int] = set()

    def persistent_id(self, obj: Any) -> str | None:  # noqa: ANN401 -- any object at all
        """Return what stands for an object in the pickle; None for itself (pickle's own hook)."""
        if name := self._written.get(id(obj)):
            self.met.add(name)
        path = self._paths.get(id(obj))
        self.refers |= path is not None
        return path

    def reducer_override(self, obj: Any) -> Any:  # noqa: ANN401 -- as above
        """Return the parts of an object (pickle's own hook)."""
        torch: Any = self._torch
        if torch is not None and isinstance(obj, torch.UntypedStorage):
            # As the bytes' TypedStorage, which is what torch reads for a tensor of uint16.
            return operator.itemgetter(0), ((self._bytes_of(obj, torch),),)
        if torch is not None and isinstance(obj, torch.storage.TypedStorage):
            return self._reduce_storage(obj, torch)
        if obj is from_pickles:
            return weakref.WeakSet, ()  # that of the script's process
        if isinstance(obj, types.FunctionType) and f"{obj.__module__}".startswith(_OURS):
            return self._dynamic_function_reduce(obj)
        return self.reduce_other(obj)

    def function_globals(self, func: types.FunctionType, usual: object) -> object:
        """Let the notebook's functions find the script's names."""
        return _GLOBALS if func.__globals__ is self._home else usual

    def function_slots(self, func: types.FunctionType, slots: dict[str, Any]) -> dict[str, Any]:
        """Leave out the globals, which the script has."""
        return {**slots, "__globals__": {}} if func.__globals__ is self._home else slots

    def _reduce_storage(self, storage: Any, torch: Any) -> Any:  # noqa: ANN401 -- torch's
        if id(storage) in self._bytes:
            return NotImplemented  # torch's own way, which does not know what shares its memory
        whole = self._bytes_of(storage._untyped_storage, torch)
        memory = Call(operator.attrgetter("_untyped_storage"), whole)
        settings: dict[str, Any] = {"wrap_storage": memory, "dtype": storage.dtype}
        return functools.partial(storage.__class__, **settings, _internal=True), ()

    def _bytes_of(self, storage: Any, torch: Any) -> Any:  # noqa: ANN401 -- torch's
        """Return the memory of tensors, the same for all that share it, from whatever device."""
        key = storage._cdata
        if key not in self._memory:
            made = torch.storage.TypedStorage(
                wrap_storage=storage.cpu(), dtype=torch.uint8, _internal=True
            )
            self._memory[key] = made, storage
            self._bytes.add(id(made))
        return self._memory[key][0]


def _paths(path: str, value: object) -> Iterator[tuple[str, object]]:
    """Yield a function or class, and the classes in it, with what the script calls them."""
    yield path, value
    outer = f"{value.__qualname__}." if isinstance(value, type) else ""
    for name, inner in vars(value).items() if outer else ():
        if isinstance(inner, type) and inner.__qualname__ == outer + name:
            yield from _paths(f"{path}.{name}", inner)
