"""Execute a notebook in place and show what its cells print as it comes.

    python notebooks/execute.py notebooks/sam_finetune.ipynb

`jupyter execute --inplace` does the same, but silently: its first sign of life is its end.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

QUIET_S = 10.0  # after so long without a line, a table that is updated in place is shown


class LiveClient(NotebookClient):
    """A notebook client that prints every output when it arrives.

    Tables that cells update in place, several times a second, are shown while nothing else comes,
    and once more at the end of their cell.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._shown = time.monotonic()
        self._table = ""  # the last state that has not been shown

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        """Show a message of the kernel's, then do with it what nbclient does."""
        content = msg["content"]
        match msg["msg_type"]:
            case "execute_input":
                self._show_cell(cell, cell_index)
            case "stream":
                self._show(content["text"])
            case "display_data" | "update_display_data" | "execute_result":
                text = content["data"].get("text/plain", "") + "\n"
                if (content.get("transient") or {}).get("display_id"):
                    self._keep_table(text)
                else:
                    self._show(text)
            case "status" if content["execution_state"] == "idle":
                self._show(self._table)
        return super().process_message(msg, cell, cell_index)

    def _show_cell(self, cell: Any, cell_index: int) -> None:
        code = [i for i, c in enumerate(self.nb.cells) if c.cell_type == "code"]
        line = cell.source.strip().partition("\n")[0]
        self._show(f"\n--- cell {code.index(cell_index) + 1} of {len(code)}: {line}\n")

    def _keep_table(self, text: str) -> None:
        self._table = text
        if time.monotonic() - self._shown > QUIET_S:
            self._show(text)

    def _show(self, text: str) -> None:
        if text:
            print(text, end="", flush=True)
            self._shown = time.monotonic()
        if text == self._table:
            self._table = ""


def main(path: Path) -> None:
    """Execute a notebook in its own folder, and write it if no cell has failed."""
    notebook = nbformat.read(path, as_version=4)
    client = LiveClient(
        notebook, timeout=None, resources={"metadata": {"path": str(path.resolve().parent)}}
    )
    try:
        client.execute()
    except CellExecutionError as error:
        sys.exit(f"\n{error}")
    nbformat.write(notebook, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python notebooks/execute.py NOTEBOOK.ipynb")
    main(Path(sys.argv[1]))
