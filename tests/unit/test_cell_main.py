"""What multiprocessing children of a rank get of the cell."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ddp_magic.cell_main import definitions, restore

CELL = """\
import os
SIZE = 8
PATH: str = "x"
model = build()
class Data:
    size = SIZE
def f(): return model
if __name__ == "__main__":
    f()
print("ran")
"""


def test_only_definitions_and_literals() -> None:
    """Imports, functions, classes, constants; nothing that computes."""
    kinds = [type(node).__name__ for node in definitions(CELL).body]
    assert kinds == ["Import", "Assign", "AnnAssign", "ClassDef", "FunctionDef"]
    assert isinstance(definitions("x: int").body, list)
    assert ast.unparse(definitions("x = -1")) == "x = -1"


def test_restored_definitions_have_the_cells_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Functions work, know their file, and the cell has not run."""
    path = tmp_path / "cell.py"
    path.write_text(CELL)
    namespace: dict[str, object] = {"__name__": "__mp_main__"}
    restore(namespace, str(path), [])
    assert namespace["Data"].size == 8  # type: ignore[attr-defined]
    assert namespace["f"].__code__.co_filename == str(path)  # type: ignore[attr-defined]
    assert capsys.readouterr().out == ""


def test_a_definition_that_needs_the_cell_is_explained(tmp_path: Path) -> None:
    """The NameError says what a child gets."""
    path = tmp_path / "cell.py"
    path.write_text("base = make()\nclass A(base): pass")
    with pytest.raises(NameError, match="literal constants, and what the cell took"):
        restore({}, str(path), [])
