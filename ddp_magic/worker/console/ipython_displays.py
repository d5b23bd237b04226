"""IPython's half of a rank's rich output: `display()`, and the value of a last expression.

The methods that are overridden here are the same in IPython 8.18 to 9.18;
tests/unit/worker/test_private_names.py fails where one changes.
"""

from __future__ import annotations

from typing import Any, Protocol

from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher

from ddp_magic.worker.console import streams

WIDGET = "application/vnd.jupyter.widget"
WIDGETS = (
    "{name} is a widget, and ranks cannot show widgets: create it in a cell without %%ddp, and use "
    "its value here. In ranks, use print(), display() and tqdm."
)


class Outlet(Protocol):
    """Where rich output goes (`displays.Displays`)."""

    @property
    def connected(self) -> bool:
        """False in a forked child, which shows rich output as text."""

    def display(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None,
        display_id: str | None,
        *,
        update: bool,
    ) -> None:
        """Show one rich output."""

    def clear_output(self, *, wait: bool) -> None:
        """Remove the output; with `wait`, when something follows."""


class RankDisplayPublisher(DisplayPublisher):
    """`display()`: sends rich outputs to the kernel, and prints plain text."""

    outlet: Outlet | None = None
    has_named_widgets = False  # whether the cell has been told of widgets

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- IPython's
        super().__init__(*args, **kwargs)
        self._ids: set[str] = set()  # of displays of this cell
        self._earlier_ids: set[str] = set()  # of earlier cells of a session

    def begin_cell(self) -> None:
        """Take what was displayed so far for that of earlier cells."""
        self.has_named_widgets = False
        self._earlier_ids |= self._ids
        self._ids = set()

    def publish(
        self,
        data: dict[str, Any],
        metadata: dict[str, Any] | None = None,
        source: object = None,  # noqa: ARG002 -- IPython does not use it either
        *,
        transient: dict[str, Any] | None = None,
        update: bool = False,
        **_kwargs: object,
    ) -> None:
        """Send a MIME bundle to the notebook."""
        display_id = (transient or {}).get("display_id")
        display_id = None if display_id is None else str(display_id)
        formats = {k: v for k, v in data.items() if not k.startswith(WIDGET)}
        if len(formats) < len(data) and not set(formats) - {"text/plain"}:
            self._name_widget(str(data.get("text/plain", "")))
            return
        data = formats
        plain = not set(data) - {"text/plain"} and display_id is None
        if plain or self.outlet is None or not self.outlet.connected:
            streams.print_on_new_line(data.get("text/plain", ""))
        else:
            if display_id is not None:
                # The output of an earlier cell is not this one's: the display is shown again.
                update = update and display_id not in self._earlier_ids
                if not update:
                    self._ids.add(display_id)
                    self._earlier_ids.discard(display_id)
            self.outlet.display(data, metadata, display_id, update=update)

    def _name_widget(self, text: str) -> None:
        """Say once in a cell that a widget is not shown: it needs the kernel that created it."""
        if not self.has_named_widgets:
            self.has_named_widgets = True
            streams.print_on_new_line(WIDGETS.format(name=text.partition("(")[0]))

    def clear_output(self, wait: bool = False) -> None:
        """Remove the rank's output, rich output and text; with `wait`, when something follows."""
        if self.outlet is not None and self.outlet.connected:
            self.outlet.clear_output(wait=wait)


class RankDisplayHook(DisplayHook):
    """The value of a cell's last expression, shown as `display` would show it."""

    source = ""

    def quiet(self) -> bool:
        """Return whether the cell ends in a semicolon."""
        return bool(self.semicolon_at_end_of_expression(self.source))

    def write_output_prompt(self) -> None:
        """Write no prompt: the rank's label is there."""

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:  # noqa: ANN401
        """Show the value."""
        self.shell.display_pub.publish(format_dict, md_dict)

    def log_output(self, format_dict: Any) -> None:  # noqa: ANN401
        """Keep no value as it was shown: a rank has no history."""

    def finish_displayhook(self) -> None:
        """Do not write the blank line that IPython writes in a terminal."""
