"""The help of the magics and the README's table of options, from their declaration."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence

from ddp_magic.kernel.options.declaration import KEYWORDS, OPTIONS
from ddp_magic.kernel.options.line_magic_options import (
    ATTACH_OPTIONS,
    LOGS_OPTIONS,
    SHOW_OPTIONS,
    STATUS_OPTIONS,
    STOP_OPTIONS,
    WAIT_OPTIONS,
)
from ddp_magic.kernel.options.option import Option

_WIDTH = 88
_COLUMN = 29


def option_lines(options: Sequence[Option]) -> str:
    """Return the options, one or more lines each, as in `python --help`."""
    lines = []
    for option in options:
        head = f"  {_spelled(option)}"
        text = textwrap.wrap(option.help.replace("`", ""), _WIDTH - _COLUMN)
        if len(head) < _COLUMN:
            text[0] = head.ljust(_COLUMN) + text[0]
            lines += [text[0], *(" " * _COLUMN + line for line in text[1:])]
        else:
            lines += [head, *(" " * _COLUMN + line for line in text)]
    return "\n".join(lines)


def keyword_lines(without: Collection[str] = ()) -> str:
    """Return the keywords of `launch` and `run`, for a docstring's section.

    Args:
        without: Those that the function does not take.
    """
    return "\n".join(
        textwrap.fill(
            f"{name}: {option.help.replace('`', '')}",
            _WIDTH,
            initial_indent=" " * 8,
            subsequent_indent=" " * 12,
        )
        for name, option in KEYWORDS.items()
        if name not in without
    )


def markdown_table() -> str:
    """Return the README's table of the options of `%%ddp`."""
    rows = ["| `%%ddp` | |", "| --- | --- |"]
    for option in OPTIONS:
        *short, long = option.flags
        spelled = ", ".join(
            [f"`{flag}`" for flag in short] + [f"`{long} {option.metavar}".rstrip()]
        )
        rows.append(f"| {spelled}` | {option.help} |")
    return "\n".join(rows) + "\n"


def _spelled(option: Option) -> str:
    return f"{', '.join(option.flags)} {option.metavar}".strip()


DDP_HELP = f"""\
Run the cell as a distributed PyTorch program, one process per rank.

Usage: %%ddp [OPTIONS] [-- ARGS]     in the first line of a cell, the program below it

In the cell, `rank`, `local_rank`, `world_size` and `device` are defined, the process group is
initialized, and the names of your notebook and of ddp_magic.prelude are available.
`{{name}}` and `$name` in the line are variables of the notebook. In an option, a list is its items:
--pull {{names}}. After --, each stays one argument, whatever its value.

Options:
{option_lines(OPTIONS)}

`%config DDPMagics.nproc_per_node = 4` sets what a line without -n means; `%config DDPMagics` lists
the options that can be set so. For one cell, --no-quiet turns off --quiet, and so for each flag
that is set; --raise-error turns off --no-raise-error.

Examples:

  %%ddp -n 2
  print(rank, world_size, device)

  %%ddp -n 4 --session lab --pull losses@all -- --lr 0.1
  losses = train(model, data)
"""

STATUS_HELP = f"""\
Show the forkserver, the sessions and every run, newest first.

For each run: state, ranks, and each rank's pid, device, line of the cell, time and memory.

Usage: %ddp_status [OPTIONS] [RUN]

{option_lines(STATUS_OPTIONS)}
"""

STOP_HELP = f"""\
End a session or a background run: ask its ranks to end, wait for them, then kill them.

A cell that runs blocks the notebook; in a subshell console, this stops it as the Stop button does.
A background run of any notebook can be ended by its id.

Usage: %ddp_stop [OPTIONS] [SESSION or RUN]

{option_lines(STOP_OPTIONS)}
"""

WAIT_HELP = f"""\
Follow a background run to its end: its output from the beginning, its values, its error.

The names of its --pull are then in the notebook. Stop ends the wait, not the run.

Usage: %ddp_wait [RUN]

{option_lines(WAIT_OPTIONS)}
"""

ATTACH_HELP = f"""\
Follow a background run of any notebook to its end, as %ddp_wait does.

It works while the run goes on, and for 7 days after its end, also if its notebook has ended.

Usage: %ddp_attach [RUN]

{option_lines(ATTACH_OPTIONS)}
"""

SHOW_HELP = f"""\
Show a run again: its text, its figures, how it ended.

It works after a page reload, in another notebook, and after the end of the run's own notebook.
Runs are kept for 7 days, or until they take 1 GB together.

Usage: %ddp_show [OPTIONS] [RUN]

{option_lines(SHOW_OPTIONS)}
"""

LOGS_HELP = f"""\
Print all that the ranks of a run wrote to stdout and stderr, also what was not shown.

Usage: %ddp_logs [OPTIONS] [RUN]

{option_lines(LOGS_OPTIONS)}
"""
