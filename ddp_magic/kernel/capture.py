"""The notebook's names on their way to the ranks: which ones, how, and what is refused.

`Notebook.capture` follows the names that a cell reads, and those that the functions among them read
in turn, and writes their values into shared memory. `worker.received_values` puts them into the
cell's namespace.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import linecache
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.names import Names
from ddp_magic.kernel.notebook_pickler import NotebookPickler
from ddp_magic.prelude import HOMES
from ddp_magic.wire.memory import Segment, size_words
from ddp_magic.wire.messages import Captured
from ddp_magic.wire.pickling import Refused

RANK_NAMES = frozenset({"rank", "local_rank", "world_size", "device"})
OWN_SEGMENT_BYTES = 2**20  # from here on a name's arrays are kept, in case they have not changed
SAY_BYTES = 100 * 10**6
SAY_S = 1.0
_TYPING = frozenset(["typing", "types", "typing_extensions"])  # whose objects stand for types


@dataclass(frozen=True, kw_only=True)
class Value:
    """A name of the notebook's that a cell has taken along.

    Attributes:
        name: Its name.
        type: Its value's class.
        nbytes: Size of its arrays and tensors, bytes.
    """

    name: str
    type: str
    nbytes: int

    def __str__(self) -> str:
        size = f", {size_words(self.nbytes)}" if self.nbytes else ""
        return f"{self.name} ({self.type}{size})"


@dataclass
class Held:
    """What a session's ranks have already.

    Attributes:
        bound: Names that its cells have bound: never replaced.
        given: What was sent of the notebook's names, in a form that shows a change.
    """

    bound: set[str] = field(default_factory=set)
    given: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Capture:
    """What one cell takes along.

    Attributes:
        values: In the order in which the ranks get them.
        command: What tells the ranks; None if there is nothing.
        segments: Shared memory, by number.
        prelude: Names of the prelude that the cell, or what it takes along, reads.
        notes: What is to be said of it.
    """

    values: list[Value] = field(default_factory=list)
    command: Captured | None = None
    segments: dict[int, Segment] = field(default_factory=dict)
    prelude: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def close(self) -> None:
        """Let go of the memory that no later cell can use."""
        if self.command is not None and self.command.stream in self.segments:
            self.segments.pop(self.command.stream).close()


class Notebook:
    """The notebook's namespace, and what has been made of it for ranks.

    Args:
        names: Its names (IPython's `user_ns`, or a script's globals).
        hidden: Names and values in it that are not the user's.
        cells: Returns the numbers of its cells, by the file names of their code.
    """

    def __init__(
        self,
        names: dict[str, Any],
        hidden: Mapping[str, Any] | None = None,
        cells: Callable[[], Mapping[str, int]] = dict,
    ) -> None:
        """Look at a namespace; it is never written."""
        self.names = names
        self._hidden = hidden or {}
        self._cells = cells
        self._numbers = itertools.count()
        self._kept: dict[str, tuple[int, Segment]] = {}
        self._extra: Mapping[str, Any] = {}
        self._hid: set[tuple[str, int]] = set()  # what has been said to be hidden

    def defines(self, name: str) -> bool:
        """Tell whether the user has defined this name."""
        if name in self._extra:
            return True
        if name not in self.names:
            return False
        return name not in self._hidden or self._hidden[name] is not self.names[name]

    def _value(self, name: str) -> Any:  # noqa: ANN401 -- the user's
        return self._extra[name] if name in self._extra else self.names[name]

    def visible(self) -> dict[str, Any]:
        """Return the user's own names."""
        return {name: value for name, value in list(self.names.items()) if self.defines(name)}

    def capture(
        self,
        cell: Names,
        only: Collection[str] | None = None,
        held: Held | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> Capture:
        """Take along what a cell needs.

        Args:
            cell: The names that it reads and assigns.
            only: Names that may be taken; None for all.
            held: What the ranks have already, if they are a session's; it is brought up to date.
            extra: Names that the cell has beside the notebook's.

        Raises:
            CaptureError: A value cannot travel.
        """
        began = time.monotonic()
        if unknown := [name for name in only or () if not self.defines(name)]:
            raise CaptureError(f"--capture: the notebook defines no `{unknown[0]}`")
        capture = Capture()
        stream = _Stream(self.names)
        kept, held = held is not None, held or Held()
        self._extra = extra or {}
        before = dict(cell.before)
        needs: dict[str, list[str]] = {}
        todo = deque(sorted(cell.reads | cell.perhaps))
        while todo:
            name = todo.popleft()
            if name not in needs:
                perhaps = name in cell.assigns and name not in cell.reads
                needs[name] = self._take(name, only, held, stream, capture, perhaps=perhaps)
            for need in needs[name]:
                certain = before.get(need, before[name]) & before[name]
                if need in certain:
                    continue  # the cell's own, by then
                if need not in needs or certain != before[need]:
                    before[need] = certain
                    todo.append(need)
        self._take_annotations(cell, {*needs, *cell.assigns}, only, held, stream, capture)
        if stream.names:
            self._pack(stream, capture)
            if kept:
                held.given.update({name: self._print(name)[0] for name in stream.names})
            capture.notes += self._say(stream, capture, time.monotonic() - began)
        self._extra = {}  # they are not ours to keep
        return capture

    def _take_annotations(
        self,
        cell: Names,
        seen: set[str],
        only: Collection[str] | None,
        held: Held,
        stream: _Stream,
        capture: Capture,
    ) -> None:
        """Take along the types that annotations mention in strings, and that can travel."""
        todo = deque(sorted(cell.annotated))
        while todo or stream.pickler.annotated.keys() - seen:
            todo.extend(name for name in stream.pickler.annotated if name not in seen)
            name = todo.popleft()
            if name not in seen and self._is_of_annotations(name):
                todo += self._take(name, only, held, stream, capture, perhaps=True)
            seen.add(name)

    def _take(
        self,
        name: str,
        only: Collection[str] | None,
        held: Held,
        stream: _Stream,
        capture: Capture,
        *,
        perhaps: bool,
    ) -> list[str]:
        """Write a name's value, unless it is to stay; return the names that it needs in turn.

        Args:
            name: Which.
            only: Names that may be taken; None for all.
            held: What the ranks have already.
            stream: Where to write.
            capture: Is told what else there is to say.
            perhaps: The cell may well never read it, so that it is left out if it cannot travel.

        Raises:
            CaptureError: It cannot travel.
        """
        if name in held.bound:
            return []
        if name in RANK_NAMES:
            capture.notes += self._hides(name)
            return []
        named = only is None or name in only or name in self._extra
        excluded = not named and name not in stream.pickler.carried  # what travels in a value
        if excluded or not self.defines(name):
            if name in HOMES:
                capture.prelude.add(name)
            return []
        if perhaps and not self._can_travel(name):
            return []
        unchanged, needs = self._compare(name, held)
        return needs if unchanged else stream.write(name, self._value(name))

    def _is_of_annotations(self, name: str) -> bool:
        """Tell whether an annotation that mentions this name may mean the notebook's."""
        if not self.defines(name):
            return False
        kinds = (type, types.ModuleType, types.FunctionType)
        value = self._value(name)
        return isinstance(value, kinds) or type(value).__module__ in _TYPING

    def _can_travel(self, name: str) -> bool:
        try:
            _Stream(self.names).write(name, self._value(name))
        except CaptureError:
            return False
        return True

    def _compare(self, name: str, held: Held) -> tuple[bool, list[str]]:
        """Tell whether the ranks have this value; and return what its functions read."""
        if name not in held.given:
            return False, []
        fingerprint, needs = self._print(name)
        return fingerprint == held.given[name], needs

    def _print(self, name: str) -> tuple[bytes, list[str]]:
        """Return what changes with a value, and the global names that its functions read."""
        alone = _Stream(self.names)
        needs = alone.write(name, self._value(name))
        digest = hashlib.sha1(alone.file.getbuffer(), usedforsecurity=False)
        buffers = alone.buffers[name]
        if _nbytes(buffers) >= OWN_SEGMENT_BYTES and self._unchanged(name, buffers):
            digest.update(str(self._kept[name][0]).encode())  # far quicker than its bytes
        else:
            for buffer in buffers:
                digest.update(buffer)
        return digest.digest(), needs

    def forget_unbound(self) -> None:
        """Give back the memory kept for names that the notebook has no more."""
        for name in [name for name in self._kept if not self.defines(name)]:
            self._kept.pop(name)[1].close()

    def _hides(self, name: str) -> list[str]:
        if not self.defines(name):
            return []
        value = self.names[name]
        if name == "device" and (isinstance(value, str) or type(value).__name__ == "device"):
            return []  # the same thing, if another one
        if (name, id(value)) in self._hid:
            return []
        self._hid.add((name, id(value)))
        return [
            f"`{name}` in the cell is the rank's own; the notebook's ({_short(value)}) is hidden: "
            "give it another name to use it"
        ]

    def _pack(self, stream: _Stream, capture: Capture) -> None:
        """Put everything into shared memory: large names in segments of their own, which stay."""
        small: list[memoryview] = [memoryview(stream.file.getbuffer())]
        parts: list[list[int]] = []
        common = next(self._numbers)
        fresh = {
            name: buffers
            for name, buffers in stream.buffers.items()
            if _nbytes(buffers) >= OWN_SEGMENT_BYTES and not self._unchanged(name, buffers)
        }
        self._check_memory(stream, fresh)
        for name, buffers in stream.buffers.items():
            if _nbytes(buffers) < OWN_SEGMENT_BYTES:
                parts.append([common, len(small), len(buffers)])
                small += buffers
                continue
            if name in fresh:
                self._keep(name, buffers)
            number, segment = self._kept[name]
            capture.segments[number] = segment
            parts.append([number, 0, len(buffers)])
        capture.segments[common] = _segment(small)
        capture.values = [
            Value(name=n, type=type(self._value(n)).__name__, nbytes=_nbytes(stream.buffers[n]))
            for n in stream.names
        ]
        capture.command = Captured(
            names=tuple(stream.names),
            stream=common,
            parts=tuple(parts),
            sources=self._sources(stream.pickler.code_files),
            keep=tuple(number for number, _ in self._kept.values()),
        )

    def _unchanged(self, name: str, buffers: Sequence[memoryview]) -> bool:
        return name in self._kept and self._kept[name][1].holds(buffers)

    def _keep(self, name: str, buffers: Sequence[memoryview]) -> None:
        if name in self._kept:
            self._kept.pop(name)[1].close()
        self._kept[name] = (next(self._numbers), _segment(buffers))

    def _check_memory(self, stream: _Stream, fresh: Mapping[str, Sequence[memoryview]]) -> None:
        """Refuse what does not fit, before the machine begins to kill processes.

        Raises:
            CaptureError: It does not fit.
        """
        needed = sum(map(_nbytes, fresh.values()))
        if needed < OWN_SEGMENT_BYTES or needed < available_bytes():
            return
        for name in [name for name in self._kept if name not in stream.buffers]:
            self._kept.pop(name)[1].close()
        if needed < (free := available_bytes()):
            return
        name = max(fresh, key=lambda name: _nbytes(fresh[name]))
        raise CaptureError(
            f"`{name}` ({type(self._value(name)).__name__}, {size_words(_nbytes(fresh[name]))}) "
            f"needs a copy that all ranks share, and {size_words(free)} of memory are free: "
            "load it in the cell, or as numpy.memmap, which travels as the name of its file"
        )

    def _sources(self, files: Collection[str]) -> dict[str, list[Any]]:
        """Return the text of the notebook's own cells, for tracebacks and `inspect`."""
        cells = self._cells()
        return {
            file: ["".join(linecache.getlines(file)), cells.get(file)]
            for file in files
            if not Path(file).exists()
        }

    def _say(self, stream: _Stream, capture: Capture, seconds: float) -> list[str]:
        notes = []
        total = sum(value.nbytes for value in capture.values)
        if total > SAY_BYTES or seconds > SAY_S:
            largest = sorted(capture.values, key=lambda value: -value.nbytes)[:3]
            words = ", ".join(map(str, largest))
            notes.append(f"captured {size_words(total)} in {seconds:.1f} s: {words}")
        if copied := stream.pickler.device_bytes:
            held = sys.modules["torch"].cuda.memory_allocated()
            notes.append(
                f"{size_words(copied)} of the notebook's tensors were copied from the GPU to the "
                f"CPU; the notebook still holds {size_words(held)} on the GPU"
            )
        return notes


class _Stream:
    """Values written one after the other, each with its buffers."""

    def __init__(self, home: dict[str, Any]) -> None:
        self.file = io.BytesIO()
        self.names: list[str] = []
        self.buffers: dict[str, list[memoryview]] = {}
        self._current: list[memoryview] = []
        self._read_by: dict[str, str] = {}
        self.pickler = NotebookPickler(self.file, home=home, on_buffer=self._take)

    def _take(self, buffer: Any) -> None:  # noqa: ANN401 -- a pickle.PickleBuffer
        self._current.append(buffer.raw())

    def write(self, name: str, value: Any) -> list[str]:  # noqa: ANN401 -- the user's
        """Write a value; return the global names that its functions read, or are found under.

        Raises:
            CaptureError: It cannot travel.
        """
        self._current = self.buffers[name] = []
        before = len(self.pickler.needs), len(self.pickler.carried)
        try:
            self.pickler.dump((name, value))
        except Exception as error:  # a value's own code may raise anything
            raise CaptureError(self._why(name, value, error)) from error
        self.names.append(name)
        needs = list(itertools.islice(self.pickler.needs, before[0], None))
        needs += itertools.islice(self.pickler.carried, before[1], None)
        for need in needs:
            self._read_by.setdefault(need, name)
        return needs

    def _why(self, name: str, value: Any, error: Exception) -> str:  # noqa: ANN401
        by = f", which `{self._read_by[name]}` reads," if name in self._read_by else ""
        what = f"cannot send `{name}` ({type(value).__name__}){by} to the ranks: "
        if isinstance(error, Refused):
            what += f"it {'is' if error.value is value else 'holds'} {error}; "
        else:
            what += f"{type(error).__name__}: {error}; "
        remedy = error.remedy if isinstance(error, Refused) else ""
        return what + (remedy or _import_of(name, value) or "create it in the cell")


def _segment(buffers: Sequence[memoryview]) -> Segment:
    try:
        return Segment.of(buffers)
    except OSError as error:
        size = size_words(_nbytes(buffers))
        raise CaptureError(f"no shared memory for {size}: {error}") from error


def _nbytes(buffers: Sequence[memoryview]) -> int:
    return sum(buffer.nbytes for buffer in buffers)


def available_bytes() -> int:
    """Return the memory that is free, for this process's container too, bytes."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        cache = int((group / "memory.stat").read_text().partition("inactive_file ")[2].split()[0])
    except (OSError, ValueError, IndexError):
        return free
    return free if limit == "max" else min(free, int(limit) - used + cache)


def _import_of(name: str, value: object) -> str:
    """Say how the cell gets what the notebook has imported; empty if it has not."""
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


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- the user's own __repr__
        text = type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
