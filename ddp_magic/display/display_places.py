"""Which output of a cell shows a rank's display: one of its own while there is room. Pure.

The first displays of each rank have outputs of their own. When they are used up, the last one shows
the rank's further displays, one after the other; the journal has all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

OWN_DISPLAYS = 3  # of each rank, whatever the others do
# The display, and the text that follows it.
OUTPUTS_EACH = 2


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a display is shown.

    Attributes:
        name: The display id of the output.
        update: Whether the output is there already.
        shares: Number of displays that the output has shown, with this one.
    """

    name: str
    update: bool
    shares: int


class DisplayPlaces:
    """The outputs that show the displays of a cell.

    Args:
        ranks: The ranks that are shown.
        room: Number of outputs that the cell has for everything.
    """

    def __init__(self, ranks: Collection[int], room: int) -> None:
        self._ranks = ranks
        self._promised = max(1, min(OWN_DISPLAYS, room // (OUTPUTS_EACH * max(1, len(ranks)))))
        self._own: Counter[int] = Counter()  # outputs of each rank
        self._places: dict[str, str] = {}  # display -> output
        self._last: dict[int, str] = {}  # the newest output of each rank
        self._others = ""  # the output of all ranks that have none
        self._shares: Counter[str] = Counter()

    def promised(self, without: int | None = None) -> int:
        """Return the number of outputs that are kept for the ranks' first displays.

        Args:
            without: A rank that does not count.
        """
        missing = (max(0, self._promised - self._own[r]) for r in self._ranks if r != without)
        return OUTPUTS_EACH * sum(missing)

    def knows(self, display: str) -> bool:
        """Return whether a display of this name is shown."""
        return display in self._places

    def place(self, rank: int, display: str, room: int) -> Place:
        """Return where a display is shown.

        Args:
            rank: Whose it is.
            display: Its name; that of an earlier display means its new content.
            room: Number of outputs that may follow.
        """
        output = self._places.get(display)
        is_new = output is None
        if output is None:
            output = display if self._has_room(rank, room) else self._shared(rank, display)
            self._places[display] = output
            self._shares[output] += 1
        is_there = not is_new or self._shares[output] > 1
        if not is_there and output != self._others:
            self._own[rank] += 1
            self._last[rank] = output
        return Place(name=output, update=is_there, shares=self._shares[output])

    def _has_room(self, rank: int, room: int) -> bool:
        if self._own[rank] < self._promised:
            return room >= OUTPUTS_EACH
        return room - OUTPUTS_EACH >= self.promised(without=rank)

    def _shared(self, rank: int, display: str) -> str:
        """Return the output of displays that have none of their own."""
        if rank in self._last:
            return self._last[rank]
        self._others = self._others or display
        return self._others
