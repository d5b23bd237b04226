"""Rich output of the ranks: labelled, in outputs of their own or shared ones; in the journal."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ddp_magic.display.display_places import DisplayPlaces, Place
from ddp_magic.display.journal import Journal
from ddp_magic.display.labels import has_place, label, labelled
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.rank_text import Page, RankText
from ddp_magic.display.record import RunRecord
from ddp_magic.display.terminal import display_lines
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.messages import DisplayData


class RankDisplays:
    """The displays of the ranks of one cell.

    Args:
        outputs: The cell's outputs.
    """

    def __init__(self, outputs: Outputs) -> None:
        self._outputs = outputs
        self._places = DisplayPlaces((), outputs.room)
        self._journal: Journal | None = None
        self._run_id = self._id = ""

    def start(self, record: RunRecord, shown: Sequence[int], journal: Journal | None) -> None:
        """Begin a run.

        Args:
            record: The run.
            shown: The ranks whose output is shown.
            journal: Where every display is kept; None for nowhere.
        """
        self._run_id = self._id = record.id
        # A session's runs share the directory of their logs.
        self._directory = (
            record.log_directory if record.journal is None else RunDirectory(record.journal.parent)
        )
        self._places = DisplayPlaces(shown, self._outputs.room)
        self._journal = journal

    def restart(self, number: int) -> None:
        """Leave what is displayed as it is: what follows is of other processes."""
        self._id = f"{self._run_id}-restart{number}"

    @property
    def promised(self) -> int:
        """Number of outputs that are kept for displays."""
        return self._places.promised()

    def show(self, event: DisplayData, text: RankText) -> None:
        """Show a display of a rank: in a terminal, lines of text.

        Args:
            event: The display.
            text: The state of the rank.
        """
        name, update = self._name(event, text)
        metadata = {**event.metadata, "ddp": {"rank": event.rank}}
        if self._journal is not None:
            self._journal.display(event.data, metadata, name, update=update)
        if not self._outputs.shows_displays:
            lines = display_lines(event.data, self._directory, event.rank, name)
            self._outputs.write("".join(f"{line}\n" for line in lines))
            return
        place = self._places.place(event.rank, name, self._outputs.room)
        data: Mapping[str, Any] = event.data
        if has_place(data):
            data = labelled(data, metadata, event.rank, self._shared_words(place))
        elif not place.update:
            self._outputs.write(f"{label([event.rank])}\n")
        self._outputs.display(data, metadata, place.name, update=place.update)

    def _name(self, event: DisplayData, text: RankText) -> tuple[str, bool]:
        """Return the name of a display, and whether it is new content of an earlier one."""
        update, name = event.update, event.display_id
        if name is not None:
            name = f"{self._id}-{event.rank}-own-{name}"
        elif text.replace_last and text.last_display is not None:
            name, update = text.last_display, True
        else:
            text.displays += 1
            name = f"{self._id}-{event.rank}-{text.displays}"
        text.replace_last = False
        if not update:
            text.last_display = name
        return name, update

    def _shared_words(self, place: Place) -> str:
        if place.shares == 1:
            return ""
        return f"the last of {place.shares} displays; %ddp_show {self._run_id} shows all"

    def show_page(self, rank: int, page: Page) -> None:
        """Show the page of a rank, in the place of its last one."""
        data, metadata = {"text/plain": page.text(rank)}, {"ddp": {"rank": rank, "page": True}}
        name, update = f"{self._id}-{rank}-page", page.shown
        page.changed, page.shown = False, True
        if self._journal is not None:
            self._journal.display(data, metadata, name, update=update)
        place = self._places.place(rank, name, self._outputs.room)
        if words := self._shared_words(place):
            data = {"text/plain": f"{label([rank])} {words}\n{data['text/plain']}"}
        self._outputs.display(data, metadata, place.name, update=place.update)

    def show_profile(self, png: bytes) -> None:
        """Show the figure of `--profile`."""
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "(profile)"}
        name, metadata = f"{self._run_id}-profile", {"ddp": {"profile": True}}
        if self._journal is not None:
            self._journal.display(data, metadata, name, update=False)
        self._outputs.display(data, metadata, name, update=False)
