"""What `input()` and `breakpoint()` do in a rank, which cannot read from the keyboard."""

from __future__ import annotations

import builtins
import os
import sys
from typing import NoReturn


def install() -> None:
    """Let `input()` and `breakpoint()` raise an error that says what to do instead."""
    builtins.input = _input
    sys.breakpointhook = _breakpoint


def _input(prompt: object = "") -> NoReturn:
    asked = repr(str(prompt)) if prompt else ""
    raise RuntimeError(
        f"rank {os.environ['RANK']} called input({asked}): ranks cannot read from the keyboard. "
        "Ask in an ordinary cell and pass the answer after `--`: the cell finds it in sys.argv[1:]"
    )


def _breakpoint(*_args: object, **_kwargs: object) -> NoReturn:
    raise RuntimeError(
        f"rank {os.environ['RANK']} called breakpoint(): ranks cannot read from the keyboard. "
        "Use print, or run the cell without %%ddp to debug it"
    )
