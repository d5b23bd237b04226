"""Shows a run again, from its journal: in a notebook, in a terminal."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ddp_magic.display.journal.past_run import PastRun
from ddp_magic.display.labels import as_html, colored, has_place, label, labelled
from ddp_magic.display.outputs import MAX_OUTPUTS, has_colors, is_notebook
from ddp_magic.display.terminal import display_lines
from ddp_magic.system.run_directory import RunDirectory

TEXT_CHARS = 1_000_000  # a Jupyter server drops what comes faster than 1 MB a second
MAX_ENTRIES = MAX_OUTPUTS - 5  # more would be hidden behind a button


def replay(run: PastRun, shell: InteractiveShell | None, rank: int | None = None) -> None:
    """Show all that a run showed: text, figures, its error, its closing line.

    Args:
        run: The run.
        shell: The notebook's shell; None in a script or a terminal, where figures are saved in the
            run's directory.
        rank: Show only the displays of this rank, also if they were not shown; None for all that
            was shown.

    Raises:
        ValueError: That rank has displayed nothing.
    """
    entries = run.outputs() if rank is None else run.displays(rank)
    print(run.title)  # noqa: T201 -- this is the answer
    paint = colored if has_colors(shell) else str
    if is_notebook(shell):
        assert shell is not None  # noqa: S101 -- it is a notebook's
        _publish(entries, run, shell, paint)
    else:
        for entry in merged(entries, run.logs):
            sys.stdout.write(paint(entry.get("text") or _as_text(entry, run)))
    if rank is not None:
        return
    for line in run.error:
        print(line)  # noqa: T201
    print(run.outcome)  # noqa: T201


def _publish(
    entries: list[dict[str, Any]],
    run: PastRun,
    shell: InteractiveShell,
    paint: Callable[[str], str],
) -> None:
    name = uuid.uuid4().hex[:8]
    for number, entry in enumerate(_few(list(_labelled(merged(entries, run.logs))))):
        if "text" in entry:
            sys.stdout.write(paint(entry["text"]))
            continue
        sys.stdout.flush()  # what comes now stands below it
        shell.display_pub.publish(
            entry["display"],
            entry["metadata"],
            transient={"display_id": f"show-{name}-{number}"},
            update=False,
        )


def _rank_to_name(entry: Mapping[str, Any]) -> int | None:
    """Return the rank that a display needs a label of; None if it needs none."""
    ours = entry["metadata"].get("ddp", {})
    return None if ours.get("page") else ours.get("rank")  # a page has labels


def _labelled(entries: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the entries, displays with the labels of their ranks, inside or in a line above."""
    for entry in entries:
        rank = None if "text" in entry else _rank_to_name(entry)
        if rank is None:
            yield entry
        elif has_place(entry["display"]):
            data = labelled(entry["display"], entry["metadata"], rank)
            yield {**entry, "display": data}
        else:
            yield {"text": f"{label([rank])}\n"}
            yield entry


def _few(entries: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the entries, several in one where they are too many: all are to be in sight."""
    each = -(-len(entries) // MAX_ENTRIES)
    for start in range(0, len(entries), max(1, each)):
        group = entries[start : start + each]
        forms = [_as_html(entry) for entry in group]
        if len(group) == 1 or None in forms:
            yield from group
        else:
            data = {"text/html": "".join(filter(None, forms))}
            data["text/plain"] = "".join(
                entry.get("text") or f"{entry['display'].get('text/plain', '')}\n"
                for entry in group
            )
            yield {"display": data, "metadata": {"ddp": {}}}


def _as_html(entry: Mapping[str, Any]) -> str | None:
    """Return an entry as HTML; None if it has no such form."""
    if "text" in entry:
        return as_html(entry["text"])
    data = entry["display"]
    if "text/html" in data:
        return f"<div>{data['text/html']}</div>"
    only_text = data.keys() == {"text/plain"}
    return as_html(data["text/plain"]) if only_text else None


def merged(entries: list[dict[str, Any]], logs: str) -> Iterator[dict[str, Any]]:
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


def _as_text(entry: Mapping[str, Any], run: PastRun) -> str:
    """Return a display as text; a figure is saved, and its file named."""
    data, rank = entry["display"], _rank_to_name(entry)
    lines = display_lines(data, RunDirectory(run.path.parent), rank, entry["id"])
    return "\n".join(lines) + "\n"
