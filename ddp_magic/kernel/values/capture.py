"""`Notebook.capture`: copies the values that a cell needs to shared memory, for its ranks.

`Notebook.capture` follows the names that a cell reads, and those that the functions among them read
in turn (`needed_values`), and copies their values into shared memory (`shared_values`).
`worker.values.received_values` puts them into the cell's namespace.
"""

from __future__ import annotations

import linecache
import re
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.needed_values import Held, NeededValues
from ddp_magic.kernel.values.shared_values import SharedValues, available_bytes
from ddp_magic.kernel.values.value_stream import Extra, nbytes
from ddp_magic.prelude import HOMES, RANK_NAMES
from ddp_magic.wire.commands import Captured
from ddp_magic.wire.memory import Segment, size_words

NOTE_BYTES = 100 * 10**6  # from here on a note tells the size
NOTE_S = 1.0
# IPython's own names in a notebook: results and inputs.
_RESULTS = re.compile(r"_{1,3}|_\d+|_oh|Out|_i{1,3}|_i\d+|_ih|In")


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of the notebook's that was sent to the ranks.

    Attributes:
        name: Its name; that of the parameter for an argument of `launch`.
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
class Capture:
    """What is sent to the ranks of one cell.

    Attributes:
        values: In the order of the stream.
        command: The command for the ranks; None if nothing is sent.
        segments: Shared memory, by number.
        prelude: Names of the prelude that the cell, or a value that is sent, reads.
        notes: Messages to show.
    """

    values: list[Value] = field(default_factory=list)
    command: Captured | None = None
    segments: dict[int, Segment] = field(default_factory=dict)
    prelude: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The text of the notebook's cells whose functions are sent."""
        sources = self.command.sources.values() if self.command is not None else ()
        return [str(source[0]) for source in sources]

    def close(self) -> None:
        """Close the memory; the notebook keeps what later cells can use."""
        for segment in self.segments.values():
            segment.close()
        self.segments = {}


class Notebook:
    """The notebook's namespace, which is never written, and the shared memory of its values.

    Args:
        names: Its names (IPython's `user_ns`, or a script's globals).
        hidden: Names and values in it that are not the user's.
        cells: Returns the numbers of its cells, by the file names of their code.
        free_bytes: Returns the free memory, bytes.
    """

    def __init__(
        self,
        names: dict[str, Any],
        hidden: Mapping[str, Any] | None = None,
        cells: Callable[[], Mapping[str, int]] = dict,
        free_bytes: Callable[[], int] = available_bytes,
    ) -> None:
        self.names = names
        self._hidden = hidden or {}
        self._cells = cells
        self._shared = SharedValues(free_bytes)
        self._reported_hidden: set[tuple[str, int]] = set()
        self._lock = threading.Lock()  # several threads may capture at once

    def defines(self, name: str) -> bool:
        """Return whether the user has defined this name."""
        if name not in self.names:
            return False
        return name not in self._hidden or self._hidden[name] is not self.names[name]

    def visible(self) -> dict[str, Any]:
        """Return the user's own names."""
        return {name: value for name, value in list(self.names.items()) if self.defines(name)}

    def forget_unbound(self) -> None:
        """Give back the memory of names that the notebook no longer defines."""
        with self._lock:
            self._shared.free([n for n in self._shared.kept_names() if not self.defines(n)])

    def capture(
        self,
        cell: Names,
        only: Collection[str] | None = None,
        held: Held | None = None,
        extra: Mapping[str, Extra] | None = None,
        option: str = "--capture",
    ) -> Capture:
        """Copy the values that a cell needs into shared memory.

        Args:
            cell: The names that it reads and assigns.
            only: Names that may be sent; None for all.
            held: What the ranks have already, if they are a session's; it is brought up to date.
            extra: Names that the cell has beside the notebook's.
            option: What messages call `only`.

        Raises:
            CaptureError: A value cannot be sent.
        """
        with self._lock:
            self._check_defined(only or (), extra or {}, option)
            return self._capture(cell, only, held, extra or {})

    def needed(
        self, cell: Names, only: Collection[str] | None = None, option: str = "--capture"
    ) -> NeededValues:
        """Find the values that a cell needs, without copying them; for the arguments see `capture`.

        Raises:
            CaptureError: A value cannot be sent.
        """
        with self._lock:
            self._check_defined(only or (), {}, option)
            needed = NeededValues(self, self._shared, only, Held(), {})
            needed.follow(cell)
        return needed

    def cell_files(self) -> list[str]:
        """Return the files of its cells' code, oldest first; of a plain script its own."""
        cells = self._cells()
        own = self.names.get("__file__")
        return sorted(cells, key=cells.__getitem__) or ([own] if isinstance(own, str) else [])

    def _check_defined(
        self, names: Collection[str], extra: Mapping[str, Extra], option: str
    ) -> None:
        if unknown := [n for n in names if n not in extra and not self.defines(n)]:
            there = unknown[0] in RANK_NAMES or unknown[0] in HOMES
            advice = "omit it, since it is in every cell" if there else "define it, or omit it"
            raise CaptureError(f"{option}: `{unknown[0]}` is not defined in the notebook: {advice}")

    def _capture(
        self,
        cell: Names,
        only: Collection[str] | None,
        held: Held | None,
        extra: Mapping[str, Extra],
    ) -> Capture:
        began = time.monotonic()
        needed = NeededValues(self, self._shared, only, held or Held(), extra)
        needed.follow(cell)
        stream = needed.stream
        capture = Capture(prelude=needed.prelude)
        capture.notes += self.hidden_notes(needed.rank_names)
        if stream.types:
            sources = self._sources(stream.pickler.code_files)
            capture.command, capture.segments = self._shared.pack(stream, sources)
            capture.values = [
                Value(
                    name=extra[name].name if name in extra else name,
                    type=kind,
                    nbytes=nbytes(stream.buffers[name]),
                )
                for name, kind in stream.types.items()
            ]
            if held is not None:
                held.given |= {name: needed.fingerprint(name)[0] for name in stream.types}
            capture.notes += _size_notes(
                capture.values, stream.pickler.device_bytes, time.monotonic() - began
            )
        return capture

    def hidden_notes(self, names: Collection[str]) -> list[str]:
        """Say once of each value of the notebook's that a rank's own name hides it."""
        notes = []
        for name in names:
            value = self.names.get(name)
            if not self.defines(name) or (name, id(value)) in self._reported_hidden:
                continue
            if name == "device" and (isinstance(value, str) or type(value).__name__ == "device"):
                continue  # it means the same, even if it is another device
            self._reported_hidden.add((name, id(value)))
            notes.append(
                f"`{name}` in the cell is the rank's own; the notebook's ({_short(value)}) is "
                "hidden: rename it to use it in the cell"
            )
        return notes

    def results_left(self, cell: Names) -> list[str]:
        """Say that a cell reads IPython's own names (`_`, `Out`), which are not sent."""
        read = cell.reads - cell.assigns  # not the `_` of `for _ in range(3)`
        names = sorted(name for name in read if _RESULTS.fullmatch(name))
        names = [name for name in names if name in self.names and not self.defines(name)]
        if not names:
            return []
        return [
            f"`{names[0]}` in the cell is the rank's own: the notebook's results are not sent to "
            "the ranks; give the value a name in the notebook, and use that"
        ]

    def _sources(self, files: Collection[str]) -> dict[str, list[Any]]:
        """Return the text of the notebook's own cells, for tracebacks and `inspect`."""
        cells = self._cells()
        return {
            file: ["".join(linecache.getlines(file)), cells.get(file)]
            for file in files
            if not Path(file).exists()
        }


def _size_notes(values: Collection[Value], device_bytes: int, seconds: float) -> list[str]:
    """Say what was sent, where it is much or took long."""
    notes = []
    total = sum(value.nbytes for value in values)
    if total > NOTE_BYTES or seconds > NOTE_S:
        largest = sorted(values, key=lambda value: -value.nbytes)[:3]
        names = ", ".join(map(str, largest))
        notes.append(f"captured {size_words(total)} in {seconds:.1f} s: {names}")
    if device_bytes:
        held = sys.modules["torch"].cuda.memory_allocated()
        notes.append(
            f"copied {size_words(device_bytes)} of the notebook's tensors from the GPU to the CPU; "
            f"the notebook still holds {size_words(held)} on the GPU"
        )
    return notes


def _short(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 -- the user's own __repr__
        text = type(value).__name__
    return text if len(text) <= 40 else text[:37] + "..."
