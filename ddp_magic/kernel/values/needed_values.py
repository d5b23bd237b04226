"""Decides which names are sent: those that the cell reads, and those that these read in turn."""

from __future__ import annotations

import hashlib
import itertools
import types
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ddp_magic.errors import CaptureError
from ddp_magic.kernel.values.names import Names
from ddp_magic.kernel.values.shared_values import SharedValues
from ddp_magic.kernel.values.value_stream import Extra, ValueStream
from ddp_magic.prelude import HOMES, RANK_NAMES

_TYPING = frozenset(["typing", "types", "typing_extensions"])  # whose objects stand for types


class Namespace(Protocol):
    """A namespace, and which of its names are the user's."""

    names: dict[str, Any]

    def defines(self, name: str) -> bool:
        """Return whether the user has defined this name."""


@dataclass
class Held:
    """What a session's ranks have already.

    Attributes:
        bound: Names that its cells have bound: never replaced.
        given: Fingerprints of the notebook's values that were sent, by name.
    """

    bound: set[str] = field(default_factory=set)
    given: dict[str, bytes] = field(default_factory=dict)


class NeededValues:
    """Follows the names that one cell reads, and writes their values into a stream.

    Args:
        notebook: The notebook's namespace.
        shared: The shared memory of earlier cells.
        only: Names that may be sent; None for all.
        held: What the ranks have already.
        extra: Names that the cell has beside the notebook's.

    Attributes:
        stream: The values.
        prelude: Names of the prelude that are read.
        rank_names: Names of the rank's own that are read, in their order.
    """

    def __init__(
        self,
        notebook: Namespace,
        shared: SharedValues,
        only: Collection[str] | None,
        held: Held,
        extra: Mapping[str, Extra],
    ) -> None:
        self.stream = ValueStream(notebook.names, extra)
        self.prelude: set[str] = set()
        self.rank_names: list[str] = []
        self._notebook = notebook
        self._shared = shared
        self._only = only
        self._held = held
        self._extra = extra

    def follow(self, cell: Names) -> None:
        """Write the values that a cell needs.

        Raises:
            CaptureError: One cannot be sent.
        """
        self.stream.pickler.words = {*self.stream.pickler.words, *cell.words}
        before = dict(cell.before)
        needs: dict[str, list[str]] = {}
        todo = deque(sorted(cell.reads | cell.perhaps))
        while todo:
            name = todo.popleft()
            if name not in needs:
                needs[name] = self._add(name, name in cell.assigns and name not in cell.reads)
            for need in needs[name]:
                certain = before.get(need, before[name]) & before[name]
                if need in certain:
                    continue  # the cell has assigned it by then
                if need not in needs or certain != before[need]:
                    before[need] = certain
                    todo.append(need)
        self._follow_annotations(cell, {*needs, *cell.assigns})
        if codes := self.stream.pickler.runs_code:
            # A class that other values hold too was written with the first of them.
            written = [self._written(code)[1] for code in codes]
            written += [found for name, found in needs.items() if not self._is_definition(name)]
            self._write_in_order(written)

    def fingerprint(self, name: str) -> tuple[bytes, list[str]]:
        """Return bytes that change with a value, and the global names that its functions read."""
        alone, needs = self._written(self._value(name), name)
        digest = hashlib.sha1(alone.file.getbuffer(), usedforsecurity=False)
        buffers = alone.buffers[name]
        number = self._shared.number(name, buffers)
        if number is not None:
            digest.update(str(number).encode())  # far quicker than its bytes
        else:
            for buffer in buffers:
                digest.update(buffer)
        return digest.digest(), needs

    def _follow_annotations(self, cell: Names, seen: set[str]) -> None:
        """Write the types that annotations mention in strings, and that can be sent."""
        annotated = self.stream.pickler.annotated
        todo = deque(sorted(cell.annotated))
        while todo or annotated.keys() - seen:
            todo.extend(name for name in annotated if name not in seen)
            name = todo.popleft()
            if name not in seen and self._is_type(name):
                todo += self._add(name, optional=True)
            seen.add(name)

    def _write_in_order(self, needs: Iterable[Iterable[str]]) -> None:
        """Write the values again, if code that runs in the ranks while they are read needs others.

        Args:
            needs: Names that this code reads.
        """
        names = list(self.stream.types)
        read = self.stream.types.keys() & self.stream.pickler.needs.keys()
        ordered: dict[str, None] = {}
        seen: set[str] = set()

        def add(name: str) -> None:
            if name in seen or name not in read:
                return
            seen.add(name)
            for need in self._written(self._value(name))[1]:
                add(need)
            ordered[name] = None

        for name in itertools.chain.from_iterable(needs):
            add(name)
        if list(ordered) != names[: len(ordered)]:
            again = ValueStream(self._notebook.names, self._extra)
            again.pickler.words, again.read_by = self.stream.pickler.words, self.stream.read_by
            for name in ordered | dict.fromkeys(names):
                again.write(name, self._value(name))
            self.stream = again

    def _written(self, value: Any, name: str = "") -> tuple[ValueStream, list[str]]:  # noqa: ANN401
        """Write a value into a stream of its own; return the names that it reads, too."""
        alone = ValueStream(self._notebook.names, self._extra)
        alone.pickler.words = self.stream.pickler.words
        return alone, alone.write(name, value)

    def _add(self, name: str, optional: bool) -> list[str]:
        """Write a name's value, if the ranks need it; return the names that it needs in turn.

        Args:
            name: Which.
            optional: The cell may never read it: it is left out if it cannot be sent.

        Raises:
            CaptureError: It cannot be sent.
        """
        if name in self._held.bound:
            return []
        if name in RANK_NAMES:
            self.rank_names.append(name)
            return []
        allowed = self._only is None or name in self._only or name in self._extra
        excluded = not allowed and name not in self.stream.pickler.carried  # part of a value
        if excluded or not self._defines(name):
            if name in HOMES:
                self.prelude.add(name)
            return []
        if optional and not self._can_be_sent(name):
            return []
        if name in self._held.given and name not in self._extra:  # each call gets its own copy
            fingerprint, needs = self.fingerprint(name)
            if fingerprint == self._held.given[name]:
                return needs
        return self.stream.write(name, self._value(name))

    def _defines(self, name: str) -> bool:
        return name in self._extra or self._notebook.defines(name)

    def _value(self, name: str) -> Any:  # noqa: ANN401 -- the user's
        return self._extra[name].value if name in self._extra else self._notebook.names[name]

    def _is_type(self, name: str) -> bool:
        """Return whether an annotation that mentions this name may mean the notebook's."""
        if not self._defines(name):
            return False
        return self._is_definition(name) or type(self._value(name)).__module__ in _TYPING

    def _is_definition(self, name: str) -> bool:
        kinds = (type, types.ModuleType, types.FunctionType)
        return self._defines(name) and isinstance(self._value(name), kinds)

    def _can_be_sent(self, name: str) -> bool:
        try:
            ValueStream(self._notebook.names).write(name, self._value(name))
        except CaptureError:
            return False
        return True
