"""The profile and the trace of a run that has ended, from what its ranks have written."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddp_magic.display.profiles.figure import figure_png
from ddp_magic.display.profiles.profile import Code, Profile, summarize
from ddp_magic.display.profiles.trace import trace_of
from ddp_magic.kernel.execution.run_code import RunCode
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.profile import Place, RankProfile, read

# torch reads it when an NCCL group is made: its records then have the times of collectives, from
# CUDA events.
ENVIRONMENT = {"TORCH_NCCL_ENABLE_TIMING": "1"}


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured in a run, and how it is shown.

    Attributes:
        profile: Where the time went; None if no rank has measured anything.
        lines: What to show at the end.
        figure: A figure to show at the end, as PNG; None for none.
    """

    profile: Profile | None
    lines: tuple[str, ...] = ()
    figure: bytes | None = None


class Profiling:
    """What the ranks of a run measure (`--profile`, `--trace`).

    Args:
        options: Of the run.
        directory: Of the run; the ranks write there.
        code: The run's.
    """

    def __init__(self, options: Options, directory: RunDirectory, code: RunCode) -> None:
        self._options = options
        self._directory = directory
        self._code = code

    def environment(self) -> dict[str, str]:
        """Return the environment variables that the ranks need to measure."""
        return dict(ENVIRONMENT) if self._options.measures else {}

    def begin_attempt(self) -> None:
        """Forget what the ranks have measured: restarted, they begin their own files."""
        for rank in range(self._options.nproc):
            with contextlib.suppress(OSError):  # there is none
                self._directory.profile(rank).unlink()

    def finish(self, *, nproc: int, restarts: int) -> Measured | None:
        """Return what the ranks have measured, and write the trace; None if nothing was asked for.

        Args:
            nproc: Number of ranks.
            restarts: How often the ranks were restarted.
        """
        options, title = self._options, self._code.cell.label
        if not options.measures:
            return None
        hidden = self._code.file if options.call else ""
        profiles = take_profiles(self._directory, nproc, hidden)
        code = self._code.profiled()
        profile = profile_of(profiles, nproc, code, restarts=restarts)
        lines, figure = shown(profile) if options.profile else ((), None)
        if options.trace is not None:
            lines = (*lines, write_trace(options.trace, profiles, code, title))
        return Measured(profile=profile, lines=lines, figure=figure)


def take_profiles(directory: RunDirectory, nproc: int, hidden: str = "") -> list[RankProfile]:
    """Return what the ranks have measured, in their order, and remove their files.

    Args:
        directory: The run's.
        nproc: Number of ranks.
        hidden: File of code whose lines are not the user's.
    """
    found = []
    for rank in range(nproc):
        path = directory.profile(rank)
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                profile = read(file)
            path.unlink()
        except OSError:  # there is none
            continue
        if profile is not None:
            profile.places = [Place() if p.file == hidden else p for p in profile.places]
            found.append(profile)
    return found


def profile_of(
    profiles: Sequence[RankProfile], nproc: int, code: Code, *, restarts: int = 0
) -> Profile | None:
    """Return where the time of a run went; None if no rank has measured anything.

    Args:
        profiles: What the ranks have measured, in their order.
        nproc: Number of ranks.
        code: The names of files.
        restarts: How often the ranks were restarted; only the last attempt is measured.
    """
    found = summarize(profiles, nproc, code)
    if found is None or not restarts:
        return found
    note = f"only the time since the {'last ' if restarts > 1 else ''}restart is measured"
    return replace(found, notes=(note, *found.notes))


def shown(profile: Profile | None) -> tuple[tuple[str, ...], bytes | None]:
    """Return the lines and the figure that show a profile."""
    if profile is None:
        return ("there is no profile: no rank ran its cell for long enough",), None
    return tuple(profile.text.splitlines()), figure_png(profile)


def write_trace(path: Path, profiles: Sequence[RankProfile], code: Code, title: str) -> str:
    """Write the trace of a run.

    Returns:
        A line that says where it is, or why there is none.
    """
    if not profiles:
        return f"no trace was written to {path}: no rank has measured anything"
    text = json.dumps(trace_of(profiles, code, title))
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        return f"the trace could not be written to {path}: {error.strerror or error}"
    return f"trace: {path} (open it at https://ui.perfetto.dev)"
