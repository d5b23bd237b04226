"""The help, from the declaration of the options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from ddp_magic.kernel import api
from ddp_magic.kernel.notebook.magics import begin_with_magic
from ddp_magic.kernel.options.declaration import KEYWORDS, OPTIONS
from ddp_magic.kernel.options.help import (
    ATTACH_HELP,
    DDP_HELP,
    LOGS_HELP,
    SHOW_HELP,
    STATUS_HELP,
    STOP_HELP,
    WAIT_HELP,
)
from ddp_magic.kernel.options.line_magic_options import (
    ATTACH_OPTIONS,
    LOGS_OPTIONS,
    SHOW_OPTIONS,
    STATUS_OPTIONS,
    STOP_OPTIONS,
    WAIT_OPTIONS,
)
from ddp_magic.kernel.options.option import Option


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (DDP_HELP, OPTIONS),
        (STATUS_HELP, STATUS_OPTIONS),
        (SHOW_HELP, SHOW_OPTIONS),
        (LOGS_HELP, LOGS_OPTIONS),
        (STOP_HELP, STOP_OPTIONS),
        (WAIT_HELP, WAIT_OPTIONS),
        (ATTACH_HELP, ATTACH_OPTIONS),
    ],
)
def test_help_lists_every_option(text: str, options: tuple[Option, ...]) -> None:
    for option in options:
        assert " ".join([", ".join(option.flags), option.metavar]).strip() in text


@pytest.mark.parametrize(
    ("function", "without"), [(api.run, set()), (api.launch, {"pull", "write"})]
)
def test_docstrings_list_every_keyword(function: Callable[..., Any], without: set[str]) -> None:
    """`launch?` and `help(launch)` show what it takes, and nothing else."""
    listed = re.findall(
        r"^        (\w+): ", str(function.__doc__).split("Options:")[1], re.MULTILINE
    )
    assert listed == [name for name in KEYWORDS if name not in without]


def test_lines_fit_a_notebook() -> None:
    whole = DDP_HELP + STATUS_HELP + SHOW_HELP + LOGS_HELP + STOP_HELP + WAIT_HELP + ATTACH_HELP
    for line in whole.splitlines():
        assert len(line) <= 100


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["%%ddp\n"], ["%%ddp\n", "\n"]),
        (["%%ddp --help"], ["%%ddp --help\n", "\n"]),
        (["%%ddp -n 2\n", "x\n"], ["%%ddp -n 2\n", "x\n"]),
        (["%%ddp?\n"], ["%%ddp?\n"]),
        (["%%ddpx\n"], ["%%ddpx\n"]),
        ([], []),
        (["# Train.\n", "\n", "  # x\n", "%%ddp -n 2\n", "x\n"], ["%%ddp -n 2\n", "x\n"]),
        (["%%ddp\t-n 2\n", "x\n"], ["%%ddp -n 2\n", "x\n"]),
        (["%%ddp\u00a0-n 2\n", "x\n"], ["%%ddp -n 2\n", "x\n"]),
        (["# Help.\n", "%%ddp -h"], ["%%ddp -h\n", "\n"]),
        (["x = 1\n", "%%ddp\n", "x\n"], ["x = 1\n", "%%ddp\n", "x\n"]),
        (["# %%ddp\n"], ["# %%ddp\n"]),
        (["%%time\n", "%%ddp\n", "x\n"], ["%%time\n", "%%ddp\n", "x\n"]),
    ],
)
def test_a_cell_without_a_body_gets_an_empty_one(lines: list[str], kept: list[str]) -> None:
    assert begin_with_magic(lines) == kept
