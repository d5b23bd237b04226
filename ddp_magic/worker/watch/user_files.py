"""Which files are the user's."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch

_PACKAGE = str(Path(__file__).parents[2]) + "/"
_LIBRARIES = (
    _PACKAGE,
    str(Path(torch.__file__).parent) + "/",  # perhaps built from a checkout
    *{sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib")},
)
_INSTALLED = ("/site-packages/", "/dist-packages/", "/torchinductor_")  # the last: torch.compile's


def is_users_file(file: str) -> bool:
    """Return whether a file is the user's: the cell, a module beside the notebook; no library."""
    installed = any(name in file for name in _INSTALLED)
    return not (installed or file.startswith(("<", *_LIBRARIES)))
