"""Tables and lines as text and as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence

from ddp_magic.display.labels import FONT

WRAP_CHARS = 40  # a longer last column of HTML may have several lines


def grid(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return a table as lines of text, without the columns that are empty."""
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    lines = [[head[i] for i in kept], *([row[i] for i in kept] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(kept))]
    return [
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def html_line(text: str) -> str:
    """Return a line as HTML, in the table's font and margin."""
    return f'<div style="padding:1px 8px;{FONT}">{html.escape(text)}</div>'


def html_grid(
    head: tuple[str, ...], rows: Sequence[tuple[str, ...]], colors: Sequence[str] = ()
) -> str:
    """Return a table as HTML, without the columns that are empty.

    Args:
        head: Names of the columns.
        rows: Their contents.
        colors: The color of each row's first cell; empty for the text's own.
    """
    kept = [i for i in range(len(head)) if any(row[i] for row in rows)]
    style = f"text-align:left;padding:1px 8px;white-space:pre;{FONT}"
    # In a narrow page the end of the last column, such as a bar's loss, is not to be out of sight.
    is_long = any(len(row[i]) > WRAP_CHARS for row in rows for i in kept[-1:])
    wraps = f";white-space:pre-wrap;min-width:{WRAP_CHARS}ch" if is_long else ""
    top = "".join(f'<th style="{style}">{head[i]}</th>' for i in kept)
    body = ""
    for number, row in enumerate(rows):
        color = f";color:{colors[number]}" if colors and colors[number] else ""
        cells = [
            f'<td style="{style}{color * (not i)}{wraps * (i == kept[-1])}">'
            f"{html.escape(row[i])}</td>"
            for i in kept
        ]
        body += f"<tr>{''.join(cells)}</tr>"
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
