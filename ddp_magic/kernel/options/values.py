"""Reads the value of one option: text from the magic's line, or what a Python caller passes.

Each function returns the value, or raises `InvalidValueError`; the option's declaration has the
words of the message.
"""

from __future__ import annotations

import keyword
import numbers
import os
import re
from collections.abc import Iterable

from ddp_magic.kernel.values import pull
from ddp_magic.kernel.values.pull import Pull

DEVICE_COUNTS = ("gpu", "cpu", "auto")  # torchrun's words for --nproc-per-node
LAST_RANK = 99_999  # --show 0-999999999 must not fill the memory
_MAX_S = 1e9  # 31 years: torch counts in integers of smaller units
_SEEDS = range(-(2**63), 2**64)  # torch.manual_seed takes these
_GPU = re.compile(r"[0-9]+|(GPU|MIG)-\S+")
_NOT_LISTED = re.compile(r"none|free(:0*[1-9][0-9]*)?")


class InvalidValueError(ValueError):
    """Not a value of this option. `Option.value` writes the message."""


def integer(value: object) -> int:
    """Read an integer: no bool, no float."""
    if not isinstance(value, bool) and isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]+", value):
        return int(value)
    raise InvalidValueError


def rank_count(value: object) -> int | str:
    """Read what follows `-n`."""
    if isinstance(value, str) and value in DEVICE_COUNTS:
        return value
    if (count := integer(value)) < 1:
        raise InvalidValueError
    return count


def node_count(value: object) -> int | tuple[int, int]:
    """Read what follows `-N`: a number, or torchrun's `1:2`, the fewest and the most."""
    if isinstance(value, str) and ":" in value:
        least, most = map(integer, value.split(":", 1))
        if not 1 <= least <= most:
            raise InvalidValueError
        return most if least == most else (least, most)
    if (count := integer(value)) < 1:
        raise InvalidValueError
    return count


def text(value: object) -> str:
    """Read any text: another program checks it."""
    if not isinstance(value, str):
        raise InvalidValueError
    return value


def count(value: object) -> int:
    """Read a number from 0 on."""
    if (number := integer(value)) < 0:
        raise InvalidValueError
    return number


def gpus(value: object) -> str:
    """Read what follows `-g`; which GPUs exist is checked later."""
    text = value if isinstance(value, str) else ",".join(map(str, _items(value)))
    entries = [entry.strip() for entry in text.split(",")]
    listed = all(_GPU.fullmatch(entry) for entry in entries)
    if not listed and not _NOT_LISTED.fullmatch(text.strip()):
        raise InvalidValueError
    return ",".join(entries)


def seconds(value: object) -> float:
    """Read a positive number of seconds that torch takes."""
    if isinstance(value, bool) or not isinstance(value, (str, numbers.Real)):
        raise InvalidValueError
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise InvalidValueError from None
    if not 0 < number <= _MAX_S:
        raise InvalidValueError
    return number


def seed(value: object) -> int:
    """Read a seed that torch takes."""
    if (number := integer(value)) not in _SEEDS:
        raise InvalidValueError
    return number


def ranks(value: object) -> frozenset[int]:
    """Read a set of ranks: `0,2-3`, or an iterable of numbers."""
    found: set[int] = set()
    for part in value.split(",") if isinstance(value, str) else _items(value):
        if isinstance(part, str) and (match := re.fullmatch(r"\s*(\d+)-(\d+)\s*", part)):
            first, last = integer(match[1]), integer(match[2])
        else:
            first = last = integer(part.strip() if isinstance(part, str) else part)
        if not 0 <= first <= last <= LAST_RANK:
            raise InvalidValueError
        found.update(range(first, last + 1))
    return frozenset(found)


def name(value: object) -> str:
    """Read one Python name."""
    if not (isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)):
        raise InvalidValueError
    return value


def names(value: object) -> frozenset[str]:
    """Read names: `a,b`, `none`, or an iterable of names."""
    if value == "none":
        return frozenset()
    items = value.split(",") if isinstance(value, str) else _items(value)
    return frozenset(name(item.strip() if isinstance(item, str) else item) for item in items)


def pulls(value: object) -> tuple[Pull, ...]:
    """Read what follows `--pull`, or an iterable of such parts."""
    if isinstance(value, str):
        return pull.parse(value)
    parts = [str(part) if isinstance(part, (str, Pull)) else name(part) for part in _items(value)]
    return pull.parse(",".join(parts)) if parts else ()


def word(value: object) -> str:
    """Read one word that torch checks: a backend may come from a plugin."""
    if not (isinstance(value, str) and re.fullmatch(r"\S+", value)):
        raise InvalidValueError
    return value


def file(value: object) -> str:
    """Read the name of a file; whether it can be written is checked later."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not (isinstance(value, str) and value.strip() and "\0" not in value):
        raise InvalidValueError
    return value


def flag(value: object) -> bool:
    """Read an option without a value."""
    if not isinstance(value, bool):
        raise InvalidValueError
    return value


def arguments(value: object) -> tuple[str, ...]:
    """Read the cell's `sys.argv[1:]`. A string would become its characters."""
    if isinstance(value, str):
        raise InvalidValueError
    items = tuple(_items(value))
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) < len(items):
        raise InvalidValueError
    return texts


def _items(value: object) -> Iterable[object]:
    if not isinstance(value, Iterable) or isinstance(value, (bytes, dict)):
        raise InvalidValueError
    return value
