"""Stacks that faulthandler has written, as a person reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.system.tracebacks import is_ours
from ddp_magic.wire.kernel_events import StackDumped

DUMPED_CHARS = 500  # of a file name in a stack dump of faulthandler


@dataclass(frozen=True)
class CellCode:
    """The code of a cell, as the ranks name it and as a person does.

    Attributes:
        file: Its file name in the ranks.
        label: What a person calls it: "Cell In[5]".
        functions: What a person calls the notebook's other cells, by their code's file name.
        is_call: Whether it only calls a function, and nobody has seen it.
    """

    file: str
    label: str
    functions: Mapping[str, str] = field(default_factory=dict)
    is_call: bool = False


def stack(dump: str, code: CellCode, limit: int = 8) -> list[str]:
    """Return the frames of the thread that runs the cell, innermost first.

    Args:
        dump: One or more dumps of faulthandler; the last one is used.
        code: The cell's.
        limit: Most frames to return.
    """
    threads: list[list[str]] = []
    for line in dump.splitlines():
        if re.match(r"(Current thread|Thread) 0x", line):
            threads.append([])
        elif threads and line.strip().startswith("File "):
            threads[-1].append(line.strip())
    place = f'"{_as_dumped(code.file)}"'
    in_cell = [frames for frames in threads if any(place in frame for frame in frames)]
    if not in_cell:
        return []
    frames = [frame for frame in in_cell[-1] if not is_ours(frame.split('"')[1])]
    last = max(i for i, frame in enumerate(frames) if place in frame)
    shown = frames[: last if code.is_call else last + 1][:limit]
    labels = {**code.functions, code.file: code.label}
    names = {f'File "{_as_dumped(file)}"': label for file, label in labels.items()}
    return [_as_python(_renamed(frame, names)) for frame in shown]


def _renamed(frame: str, names: Mapping[str, str]) -> str:
    file, comma, rest = frame.partition(", line ")
    return f"{names.get(file, file)}{comma}{rest}"


def _as_python(frame: str) -> str:
    """Return a frame of faulthandler's as Python's tracebacks have it."""
    return re.sub(r", line (\d+) in (?=\S+$)", r", line \1, in ", frame)


def _as_dumped(path: str) -> str:
    """Return a file name as faulthandler writes it, in ASCII."""
    text = ""
    for char in path[:DUMPED_CHARS]:
        code = ord(char)
        if " " <= char <= "~":
            text += char
        elif code <= 0xFF:
            text += f"\\x{code:02x}"
        else:
            text += f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
    return text + ("..." if len(path) > DUMPED_CHARS else "")


def cell_line(frames: Sequence[str], code: CellCode) -> tuple[int | None, str]:
    """Return the innermost line of the cell in frames from `stack`; None if there is none.

    Returns:
        The line, and the cell's name unless it is the one that runs.
    """
    labels = set(code.functions.values()) if code.is_call else {code.label}
    for frame in frames:
        label, _, rest = frame.partition(", line ")
        if label in labels and (found := re.match(r"\d+", rest)):
            return int(found[0]), label if code.is_call else ""
    return None, ""


def read_stack(
    directory: RunDirectory, rank: int, code: CellCode, limit: int = 8
) -> StackDumped | None:
    """Return a rank's last stack dump; None if there is none.

    Args:
        directory: Directory of the run, or of its session.
        rank: Which rank.
        code: The cell's.
        limit: Most frames to return.
    """
    try:
        dump = directory.stacks(rank).read_text(errors="replace")
    except OSError:
        return None
    frames = tuple(stack(dump, code, limit))
    line, cell = cell_line(frames, code)
    return StackDumped(rank=rank, frames=frames, line=line, cell=cell)
