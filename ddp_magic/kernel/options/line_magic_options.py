"""The options of the line magics, declared once; see `declaration` for those of `%%ddp`."""

from __future__ import annotations

from dataclasses import replace

from ddp_magic.kernel.options import values as read
from ddp_magic.kernel.options.option import HELP, Option

STATUS_OPTIONS = (
    Option(
        name="run",
        metavar="RUN",
        read=read.word,
        what="run id",
        use="the id of a run, or its end",
        help="The id of a run, or its end. Default: all runs.",
    ),
    Option(
        name="stacks",
        flags=("--stacks",),
        default=False,
        help="Show the Python stack of every rank of the runs that go on.",
    ),
    HELP,
)

SHOW_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a run, or its end. Default: the newest run of this notebook, or of any.",
    ),
    Option(
        name="rank",
        flags=("-r", "--rank"),
        metavar="RANK",
        read=read.count,
        what="rank",
        use="0, 1, ...",
        help="Show only what this rank displayed, such as figures, also if --show left it out.",
    ),
    HELP,
)

WAIT_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a background run, or its end. Default: the only one that goes on, or the "
        "newest of this notebook.",
    ),
    HELP,
)

ATTACH_OPTIONS = (
    replace(
        STATUS_OPTIONS[0],
        help="The id of a background run, or its end. Default: the only one that goes on, or the "
        "newest, of any notebook.",
    ),
    HELP,
)

LOGS_OPTIONS = (
    SHOW_OPTIONS[0],
    replace(
        SHOW_OPTIONS[1],
        help="Print what this rank wrote. Default: all ranks, each line with its rank.",
    ),
    Option(
        name="lines",
        flags=("-n", "--lines"),
        metavar="N",
        read=read.count,
        what="number of lines",
        use="0, 1, 2, ...",
        help="Print only the last N lines of each rank.",
    ),
    HELP,
)

STOP_OPTIONS = (
    Option(
        name="session",
        metavar="SESSION",
        read=read.word,
        what="session",
        use="the name of a session, or the id of a run",
        help="The session to end, or the id of a run to stop, or its end. Default: the only "
        "background run.",
    ),
    Option(
        name="all",
        flags=("--all",),
        default=False,
        help="End all sessions and background runs of this notebook.",
    ),
    HELP,
)
