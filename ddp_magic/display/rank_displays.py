"""Rich output of the ranks: labelled, in outputs of their own or shared ones; in the journal."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from ddp_magic.display.display_places import DisplayPlaces, Place
from ddp_magic.display.journal.journal import Journal
from ddp_magic.display.labels import has_place, label, labelled
from ddp_magic.display.outputs import Outputs
from ddp_magic.display.record import RunRecord
from ddp_magic.display.terminal import display_lines
from ddp_magic.display.text.page import Page
from ddp_magic.display.text.rank_text import RankText
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.worker_events import DisplayData

PAGE_S = 0.25  # between two updates of a page
MANY_PAGES = 8  # of more ranks, the pages are updated more rarely


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
        self._last_pages = 0.0
        self._late: dict[str, str] = {}  # of displays, in a terminal
        self._unlabelled: set[str] = set()  # names of displays that have no label inside

    def start(self, record: RunRecord, shown: Sequence[int], journal: Journal | None) -> None:
        """Begin a run.

        Args:
            record: The run.
            shown: The ranks whose output is shown.
            journal: Where every display is kept; None for nowhere.
        """
        # A session's runs share the directory of their logs.
        directory = (
            record.log_directory if record.journal is None else RunDirectory(record.journal.parent)
        )
        self._journal = journal
        self.begin(record.id, directory, shown)

    def begin(self, run_id: str, directory: RunDirectory, shown: Sequence[int]) -> None:
        """Begin a run, or to follow one.

        Args:
            run_id: Name of the run.
            directory: Its directory.
            shown: The ranks whose output is shown.
        """
        self._run_id = self._id = run_id
        self._directory = directory
        self._places = DisplayPlaces(shown, self._outputs.room)

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
        if text.page is not None:
            self._show_in_page(event, text.page)
            return
        name = self._name(event, text)
        update = self._places.knows(name)
        if event.update and not update:
            return  # as in a notebook: there is nothing to update
        metadata = {**event.metadata, "ddp": {"rank": event.rank}}
        if self._journal is not None:
            self._journal.display(event.data, metadata, name, update=update)
        self.put(event.data, metadata, name)

    def keep(self, event: DisplayData, text: RankText) -> None:
        """Keep a display of a rank that is not shown, for `%ddp_show -r`."""
        if self._journal is not None:
            metadata = {**event.metadata, "ddp": {"rank": event.rank}}
            name = self._name(event, text)
            self._journal.display(event.data, metadata, name, update=event.update, hidden=True)

    def drop_kept(self, rank: int) -> None:
        """Drop what was kept of a rank that is not shown."""
        if self._journal is not None:
            self._journal.clear(rank)

    def put(self, data: Mapping[str, Any], metadata: Mapping[str, Any], name: str) -> None:
        """Show a display, or the new content of the one of this name, as the journal has it."""
        ours = metadata.get("ddp", {})
        rank = ours.get("rank")
        if rank is None:
            update = name in self._unlabelled
            self._unlabelled.add(name)
            place = Place(name=name, update=update, shares=1)
        else:
            update = self._places.knows(name)
            place = self._places.place(rank, name, self._outputs.room)
        if not self._outputs.shows_displays:
            self._write_lines(data, None if ours.get("page") else rank, name, update=update)
            return
        if rank is not None and not ours.get("page"):  # a page has labels
            if has_place(data):
                data = labelled(data, metadata, rank, self._shared_words(place))
            elif not place.update:
                self._outputs.write(f"{label([rank])}\n")
        self._outputs.display(data, metadata, place.name, update=place.update)

    def _write_lines(
        self, data: Mapping[str, Any], rank: int | None, name: str, *, update: bool
    ) -> None:
        """Show a display as lines; its updates at the end, where only the last one counts."""
        lines = display_lines(data, self._directory, rank, name)
        text = "".join(f"{line}\n" for line in lines)
        if update:
            self._late[name] = text
        else:
            self._outputs.write(text)

    def end(self) -> None:
        """Show the last updates of displays, which a terminal cannot show in their places."""
        late, self._late = self._late, {}
        for text in late.values():
            self._outputs.write(text)

    def _show_in_page(self, event: DisplayData, page: Page) -> None:
        data: Mapping[str, Any] = event.data
        if has_place(data):
            data = labelled(data, event.metadata, event.rank)
        elif not event.update:
            page.add([""])  # the label
        page.display(data, event.metadata, event.display_id, update=event.update)

    def _name(self, event: DisplayData, text: RankText) -> str:
        if event.display_id is not None:
            return f"{self._id}-{event.rank}-own-{event.display_id}"
        text.displays += 1
        return f"{self._id}-{event.rank}-{text.displays}"

    def _shared_words(self, place: Place) -> str:
        if place.shares == 1:
            return ""
        return f"the last of {place.shares} displays; %ddp_show {self._run_id} shows all"

    def show_pages(
        self,
        pages: Mapping[int, Page],
        now: float,
        *,
        at_once: bool = False,
        final: bool = False,
    ) -> None:
        """Show what has changed in the pages of the ranks, unless that was done just now.

        Args:
            pages: The pages, by rank.
            now: Time, in seconds.
            at_once: Show it anyway.
            final: Whether nothing more comes for them.
        """
        soon = now - self._last_pages < PAGE_S * max(1, len(pages) / MANY_PAGES)
        if soon and not (at_once or final):
            return
        self._last_pages = now
        for rank, page in pages.items():
            self._show_page(rank, page, final=final)

    def _show_page(self, rank: int, page: Page, *, final: bool) -> None:
        for content in page.changes(final=final):
            metadata = {**content.metadata, "ddp": {"rank": rank, "page": True}}
            name = f"{self._id}-{rank}-page{content.place}"
            if self._journal is not None:
                self._journal.display(content.data, metadata, name, update=content.update)
            place = self._places.place(rank, name, self._outputs.room)
            data = dict(content.data)
            if (words := self._shared_words(place)) and data.get("text/plain"):
                data["text/plain"] = f"{label([rank])} {words}\n{data['text/plain']}"
            self._outputs.display(data, metadata, place.name, update=place.update)

    def show_profile(self, png: bytes) -> None:
        """Show the figure of `--profile`."""
        data = {"image/png": base64.b64encode(png).decode(), "text/plain": "(profile)"}
        name, metadata = f"{self._run_id}-profile", {"ddp": {"profile": True}}
        if self._journal is not None:
            self._journal.display(data, metadata, name, update=False)
        self._outputs.display(data, metadata, name, update=False)
