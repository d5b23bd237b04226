"""Shows a run again, from its journal: in a notebook, in a terminal."""

from __future__ import annotations

import base64
import sys
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.journal import PastRun
from ddp_magic.display.screen import is_notebook

TEXT_CHARS = 1_000_000  # a Jupyter server drops what comes faster than 1 MB a second
_FIGURES = {"image/png": ".png", "image/jpeg": ".jpg", "image/svg+xml": ".svg"}


def replay(run: PastRun, shell: InteractiveShell | None) -> None:
    """Show all that a run showed: text, figures, its error, its closing line.

    Args:
        run: The run.
        shell: The notebook's shell; None in a script or a terminal, where figures are saved in the
            run's directory.
    """
    print(run.title)  # noqa: T201 -- this is the answer
    name = uuid.uuid4().hex[:8]
    for number, entry in enumerate(_merged(run.outputs(), run.logs)):
        if "text" in entry:
            sys.stdout.write(entry["text"])
        elif is_notebook(shell):
            assert shell is not None  # noqa: S101 -- it is a notebook's
            shell.display_pub.publish(
                entry["display"],
                entry["metadata"],
                transient={"display_id": f"show-{name}-{number}"},
                update=False,
            )
        else:
            print(_as_text(entry["display"], run.path.parent, number))  # noqa: T201
    for line in run.error:
        print(line)  # noqa: T201
    print(run.outcome)  # noqa: T201


def _merged(entries: list[dict[str, Any]], logs: str) -> Iterator[dict[str, Any]]:
    """Yield the entries, neighboring texts as one, without the middle of very long text."""
    total = sum(len(entry["text"]) for entry in entries if "text" in entry)
    text, seen = "", 0
    for entry in [*entries, {}]:
        if "text" not in entry:
            if text:
                yield {"text": text}
            text = ""
            if entry:
                yield entry
            continue
        for line in entry["text"].splitlines(keepends=True):
            before, seen = seen, seen + len(line)
            if min(before, total - seen) < TEXT_CHARS // 2:
                text += line
            elif before - len(line) < TEXT_CHARS // 2:
                text += f"... long output is left out here; all of it is in {logs}\n"


def _as_text(data: Mapping[str, Any], folder: Path, number: int) -> str:
    """Return a display as text; a figure is saved, and its file named."""
    for kind, suffix in _FIGURES.items():
        if kind in data:
            content = str(data[kind])
            raw = content.encode() if suffix == ".svg" else base64.b64decode(content)
            path = folder / f"figure{number}{suffix}"
            path.write_bytes(raw)
            return f"figure: {path}"
    return str(data.get("text/plain", ""))
