"""The names by which one process starts another."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import ddp_magic
from ddp_magic.system import entry_points

PACKAGE = Path(ddp_magic.__file__).parent


@pytest.mark.parametrize("name", entry_points.ALL)
def test_every_entry_point_exists(name: str) -> None:
    """Its module can be imported, and has the function."""
    assert callable(entry_points.resolve(name))


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.stem)
def test_every_module_named_in_a_string_exists(file: Path) -> None:
    """No import shows that such a module was moved."""
    found = re.findall(r"""["'](ddp_magic(?:\.[a-z_]+)+)[.:]?[\w.]*["']""", file.read_text())
    assert [name for name in found if not find_spec(name)] == []
