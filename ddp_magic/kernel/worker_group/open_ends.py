"""What a group reads from: its listening socket, its connections and its ranks' text pipes."""

from __future__ import annotations

import selectors
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeAlias

from ddp_magic.wire.channel import Channel, Listener
from ddp_magic.wire.kernel_events import RunEvent

End: TypeAlias = Channel | Listener | int  # an int is a descriptor


class OpenEnds:
    """Waits for the open ends, and reads those that are readable.

    Args:
        order: Returns a lower number for an end that must be read before others.
    """

    def __init__(self, order: Callable[[End], int]) -> None:
        self._order = order
        self._selector = selectors.DefaultSelector()
        self._reads = 0
        self._watched_fd = -1

    def __iter__(self) -> Iterator[Any]:
        return iter([key.fileobj for key in self._selector.get_map().values()])

    def add(self, end: End, read: Callable[[Any], list[RunEvent]]) -> None:
        """Read an end with this function, which is called with it and returns what it read."""
        self._selector.register(end, selectors.EVENT_READ, read)

    def remove(self, end: End) -> None:
        """Forget an end, before it is closed."""
        self._selector.unregister(end)

    def watch(self, fd: int) -> None:
        """Let `read` return when this descriptor becomes readable; -1 for no descriptor."""
        if fd == self._watched_fd:
            return
        if self._watched_fd >= 0:
            self.remove(self._watched_fd)
        if fd >= 0:
            self.add(fd, lambda _fd: [])
        self._watched_fd = fd

    def read(self, timeout_s: float, only: Collection[End] | None = None) -> list[RunEvent]:
        """Read what is readable, after waiting at most `timeout_s` for something to be.

        Args:
            timeout_s: Longest wait, in seconds.
            only: Ends to read; None for all.
        """
        events: list[RunEvent] = []
        self._reads += 1
        number = self._reads
        readable = self._readable(timeout_s, only)
        for key in sorted(readable, key=lambda key: self._order(key.fileobj)):
            if self._is_open(key):  # reading another one may have closed it
                events += key.data(key.fileobj)
            if self._reads != number:  # it has read other ends: they may not be readable any more
                break
        return events

    def pending(self) -> bool:
        """Return whether an end is readable."""
        return bool(self._selector.select(0))

    def close(self) -> None:
        """Forget all ends."""
        self._selector.close()

    def _readable(self, timeout_s: float, only: Collection[End] | None) -> list[Any]:
        if only is None:
            return [key for key, _ in self._selector.select(timeout_s)]
        with selectors.DefaultSelector() as selector:
            for key in self._selector.get_map().values():
                if key.fileobj in only:
                    selector.register(key.fileobj, key.events, key.data)
            return [key for key, _ in selector.select(timeout_s)]

    def _is_open(self, key: selectors.SelectorKey) -> bool:
        try:
            return key.fileobj in self._selector.get_map()
        except ValueError:  # it was closed
            return False
