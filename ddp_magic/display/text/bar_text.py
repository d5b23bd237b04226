"""Shortens the text of a progress bar, and reads how far it is. Pure.

Bars are recognized by `lines` and shown by `display.table`.
"""

from __future__ import annotations

import re

# What bars are drawn with: of tqdm, of rich, in ASCII.
_BAR = re.compile(r"[\u2500-\u259f#=>.\- ]{6,}")
_PERCENT = re.compile(r"(\d+(?:\.\d+)?) ?%")
_COUNT = re.compile(r"(\d+)/(\d+)")
_MIN_BAR_CHARS = 3


def percent_done(bar: str) -> float | None:
    """Return how much of a bar is done, in percent; None if it does not say so."""
    if found := _PERCENT.search(bar):
        return float(found[1])
    if (found := _COUNT.search(bar)) and int(found[2]):
        return 100 * int(found[1]) / int(found[2])
    return None


def shorten_bar(text: str, chars: int) -> str:
    """Return a bar that has so many characters at most.

    The bar itself is drawn shorter. Only if that is not enough, text from the middle goes: the
    description stands at the beginning, the newest numbers, such as the loss, at the end.
    """
    if len(text) <= chars:
        return text
    drawn = max(_BAR.finditer(text), key=lambda found: len(found[0]), default=None)
    if drawn is not None:
        size = len(drawn[0]) - (len(text) - chars)
        size = size if size >= _MIN_BAR_CHARS else 0
        shorter = "".join(drawn[0][i * len(drawn[0]) // size] for i in range(size))
        text = text[: drawn.start()] + shorter + text[drawn.end() :]
    if len(text) <= chars:
        return text
    head = (chars - 1) // 3
    return f"{text[:head]}…{text[len(text) - (chars - 1 - head) :]}"
