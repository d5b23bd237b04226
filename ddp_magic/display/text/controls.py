"""The control characters and escape sequences that progress bars use."""

from __future__ import annotations

import re

_MAX_PARAMETERS = 10_000  # most digits in an escape sequence; a longer one is text
_DIGITS = f"[0-9]{{0,{_MAX_PARAMETERS}}}"
# What progress bars use: return, newline, backspace, cursor up (A, F), down (B, E) and to a column
# (G), erase in line (K) and below (J), modes, such as "show cursor" and "hide cursor".
CONTROL = re.compile(
    rf"\r+|\n|\x08+|\x1b\[(?P<count>{_DIGITS})(?P<name>[ABEFGJK])"
    rf"|\x1b\[\?(?P<mode>(?=[0-9]){_DIGITS})(?P<on>[hl])"
)
# A possible beginning of one of those.
_BEGINNING = re.compile(rf"\x1b(?:\[\??{_DIGITS})?\Z")
_MANY_DIGITS = 6  # more rows than any screen has


def begins_at(text: str) -> int:
    """Return where a sequence begins whose end has not come yet; the text's length if none does."""
    # Search only the end: a regular expression would scan all of the text.
    last = text.rfind("\x1b", max(0, len(text) - _MAX_PARAMETERS - 3))
    return last if last >= 0 and _BEGINNING.match(text, last) else len(text)


def rows_of(digits: str) -> int:
    """Return how many rows the cursor moves: at least one, as in terminals."""
    digits = digits.lstrip("0")
    return int(digits or 1) if len(digits) <= _MANY_DIGITS else 10**_MANY_DIGITS
