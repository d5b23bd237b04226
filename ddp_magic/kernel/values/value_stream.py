"""One pickle stream of several values, by `notebook_pickler`; says why one cannot be sent."""

from __future__ import annotations

import io
import itertools
import sys
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.values.notebook_pickler import NotebookPickler
from ddp_magic.wire.pickling import Refused, problem


@dataclass(frozen=True, kw_only=True)
class Extra:
    """A value that a cell has beside the notebook's: of `launch`, the function, an argument.

    Attributes:
        name: Its name in lists: `loader`.
        label: What an error calls it: "argument 2 (`loader`)".
    """

    value: Any
    name: str
    label: str


class ValueStream:
    """Values written one after the other, each with its buffers.

    Args:
        home: The notebook's namespace.
        extra: Names that the cell has beside the notebook's.

    Attributes:
        file: The stream.
        types: The class of each value, by its name, in the order of the stream.
        buffers: The buffers of each value, by its name.
        pickler: What writes the values; it knows what their functions use.
        read_by: The value whose functions read a global name, by that name.
    """

    def __init__(self, home: Mapping[str, Any], extra: Mapping[str, Extra] | None = None) -> None:
        self.file = io.BytesIO()
        self.types: dict[str, str] = {}
        self.buffers: dict[str, list[memoryview]] = {}
        self.pickler = NotebookPickler(self.file, home=home, on_buffer=self._add_buffer)
        self._current: list[memoryview] = []
        self.read_by: dict[str, str] = {}
        self._extra = extra or {}

    def _add_buffer(self, buffer: Any) -> None:  # noqa: ANN401 -- a pickle.PickleBuffer
        self._current.append(buffer.raw())

    def write(self, name: str, value: Any) -> list[str]:  # noqa: ANN401 -- the user's
        """Write a value; return the global names that its functions read, or are found under.

        Raises:
            CaptureError: It cannot be sent.
        """
        self._current = self.buffers[name] = []
        before = len(self.pickler.needs), len(self.pickler.carried)
        try:
            self.pickler.dump((name, value))
        except Exception as error:  # a value's own code may raise anything
            raise CaptureError(self._reason(name, value, error)) from error
        self.types[name] = type(value).__name__
        needs = list(itertools.islice(self.pickler.needs, before[0], None))
        needs += itertools.islice(self.pickler.carried, before[1], None)
        for need in needs:
            self.read_by.setdefault(need, name)
        return needs

    def _reason(self, name: str, value: Any, error: Exception) -> str:  # noqa: ANN401
        reader = self.read_by.get(name)
        by = f", which {self._label(reader)} reads," if reader else ""
        what, remedy = problem(error), ""
        if isinstance(error, Refused):
            what = f"it {'is' if error.value is value else 'holds'} {error}"
            remedy = error.remedy
        alias = self._extra[name].name if name in self._extra else name
        remedy = remedy or _import_line(alias, value) or "create it in the cell"
        if self._extra:  # the cell is ours: what it does is call a function
            remedy = remedy.replace("in the cell", "in the function")
        whole = f"{self._label(name)} ({type(value).__name__})"
        return f"cannot send {whole}{by} to the ranks: {what}; {remedy}"

    def _label(self, name: str) -> str:
        return self._extra[name].label if name in self._extra else f"`{name}`"


def _import_line(name: str, value: object) -> str:
    """Return what to do where the notebook has imported the value; empty if it has not."""
    places = [
        (attribute != name, module.count("."), len(module), module, attribute)
        for module, there in list(sys.modules.items())
        if module not in ("__main__", "__mp_main__") and isinstance(there, types.ModuleType)
        for attribute, other in list(vars(there).items())
        if other is value and attribute.isidentifier()
    ]
    if not places:
        return ""
    *_, module, attribute = min(places)
    alias = "" if attribute == name else f" as {name}"
    return f"import it in the cell: from {module} import {attribute}{alias}"


def nbytes(buffers: Sequence[memoryview]) -> int:
    """Return the size of buffers together, bytes."""
    return sum(buffer.nbytes for buffer in buffers)
