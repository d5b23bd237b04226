"""Places in the text of a rank: where Python names a cell's file, a person reads the cell's name.

IPython does this in its own tracebacks. Those of threads, destructors and `multiprocessing`
children are written by Python, as are warnings; the file that they name does not exist.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FRAME = re.compile(r'File "([^"]+)", line (\d+)')
_WARNING = re.compile(r"^(.+?\.py):(\d+): (?=\w+: )")


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
    if (found := _WARNING.match(line)) and found[1] in labels:
        return f"{labels[found[1]]}, line {found[2]}: {line[found.end() :]}"
    return line
