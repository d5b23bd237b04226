"""A notebook of plain text, and the scripts of its cells."""

from __future__ import annotations

import contextlib
import io
import itertools
import linecache
import os
import re
import sys
import textwrap
from pathlib import Path
from typing import Any
from unittest.mock import patch

from IPython.core.inputtransformer2 import TransformerManager

from ddp_magic.kernel import cell
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.script.write import write
from ddp_magic.kernel.values.capture import Notebook

_numbers = itertools.count(1)
RANK = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}


class FakeNotebook:
    """Cells that were run, one after the other."""

    def __init__(self, *cells: str) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.files: dict[str, int] = {}
        for text in cells:
            self.run(text)

    def run(self, text: str) -> None:
        """Run a cell, whose text `linecache` then knows, as IPython's."""
        text = textwrap.dedent(text)
        file = f"/notebook/script/{next(_numbers)}.py"
        linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
        self.files[file] = len(self.files) + 1
        exec(compile(text, file, "exec", dont_inherit=True), self.names)

    def write(self, text: str, line: str = "", *, to: Path | str = "s.py") -> list[str]:
        """Write the script of a `%%ddp` cell."""
        notebook = Notebook(self.names, {"__name__": "__main__"}, cells=lambda: self.files)
        ready = cell.prepare(
            textwrap.dedent(text),
            above=["%%ddp " + line],
            filename=lambda: "<cell>",
            transformer=cell.transformer_like(TransformerManager()),
        )
        return write(ready, parse_line("%%ddp", f"--write {to} {line}"), notebook, "--capture")


def run_script(path: Path, *, as_child: bool = False) -> tuple[dict[str, Any], str]:
    """Run a script in this process, as rank 1 of 2; return its names and what it has printed."""
    names: dict[str, Any] = {
        "__name__": "__mp_main__" if as_child else "__main__",
        "__file__": str(path),
    }
    code = compile(path.read_text(encoding="utf-8"), str(path), "exec", dont_inherit=True)
    ours = dict.fromkeys(n for n in sys.modules if re.match(r"ddp_magic\.(?!sam\b)", n))
    with (
        contextlib.redirect_stdout(io.StringIO()) as printed,
        patch.dict(os.environ, RANK),
        patch.dict(sys.modules, ours),  # a script needs no ddp_magic
    ):
        exec(code, names)
    return names, printed.getvalue()
