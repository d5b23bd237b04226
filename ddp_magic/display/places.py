"""Places in the text of a rank: where Python names a cell's file, a person reads the cell's name.

IPython does this in its own tracebacks. Those of threads, destructors and `multiprocessing`
children are written by Python, as are warnings; the file that they name does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_WARNING = re.compile(r"\.py:(\d+): (?=\w+: )")
_BEFORE = " :([\"'"  # what may stand before a file, such as the name of a logger


def with_cell_names(line: str, labels: Mapping[str, str]) -> str:
    """Return a line with the names of cells in place of their files.

    Args:
        line: A line of a rank's text.
        labels: The cells' names, by the files of their code.
    """
    if ".py" not in line:
        return line

    def renamed(found: re.Match[str]) -> str:
        label = labels.get(found[1])
        return found[0] if label is None else f"{label}, line {found[2]}"

    line = _FRAME.sub(renamed, line)
    if found := _WARNING.search(line):
        end = found.start() + len(".py")
        for file, label in labels.items():
            start = end - len(file)
            if line.endswith(file, 0, end) and (start == 0 or line[start - 1] in _BEFORE):
                return f"{line[:start]}{label}, line {found[1]}: {line[found.end() :]}"
    return line
