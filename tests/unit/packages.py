"""Packages that add engines, as an installation leaves them."""

from __future__ import annotations

from pathlib import Path

import pytest

_ENGINE = """
START = {}

def problem():
    return ""

def problem_of(arguments):
    return ""
"""


def install_engines(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install two: `mine`, which cannot choose the number of nodes, and `broken`."""
    info = directory / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[ddp_magic.engines]\nmine = my_engine_module\nbroken = no_such_engine_module\n"
    )
    (directory / "my_engine_module.py").write_text(_ENGINE)
    monkeypatch.syspath_prepend(str(directory))
