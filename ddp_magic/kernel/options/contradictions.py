"""Options that contradict each other, on any machine."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

from ddp_magic.kernel.options.option import OptionError

# What a script for torchrun cannot do.
NOT_WRITTEN = frozenset(
    {
        *("session", "pull", "out", "show", "quiet", "bg", "detach", "time_limit", "profile"),
        *("trace", "cold", "engine", "engine_args", "debug", "no_raise_error"),
    }
)


def check(asked: SimpleNamespace) -> None:
    """Check a run's options against each other.

    Raises:
        OptionError: They contradict each other.
    """
    if asked.no_init:
        for name in ("backend", "timeout"):
            if getattr(asked, name) is not None:
                problem = f"{name} has no effect without a process group: omit one of the two"
                raise OptionError("no_init", problem)
    if asked.out is not None and asked.out in [pull.name for pull in asked.pull]:
        raise OptionError("out", f"{asked.out!r} is pulled too: use another name for the run")


def check_written(asked: SimpleNamespace, defaults: Mapping[str, object]) -> None:
    """Check that a script (`--write`) can do what is asked for.

    Args:
        asked: The options' values.
        defaults: The options' defaults, by their names.

    Raises:
        OptionError: It cannot.
    """
    check(asked)
    for name in sorted(asked.given & NOT_WRITTEN):
        if getattr(asked, name) != defaults[name]:
            problem = "a script for torchrun has no equivalent: omit this option or --write"
            raise OptionError(name, problem)
    if (asked.gpus or "").startswith("free"):
        problem = "a script does not choose idle GPUs: name them, such as 0,2"
        raise OptionError("gpus", problem)


def check_ranks(asked: SimpleNamespace, nproc: int) -> None:
    """Check that the ranks which `--pull` and `--show` name exist, and may be restarted.

    Raises:
        OptionError: One does not, or they may not.
    """
    if asked.session and asked.max_restarts:
        problem = (
            "restarted ranks would not have the variables of a session: omit this option or the "
            "session"
        )
        raise OptionError("max_restarts", problem)
    _check_background(asked)
    shown = asked.show or () if "show" in asked.given else ()
    for name, ranks in (("pull", [p.rank or 0 for p in asked.pull]), ("show", shown)):
        if (last := max(ranks, default=0)) >= nproc:
            there = f"ranks 0 to {nproc - 1}" if nproc > 1 else "only rank 0"
            raise OptionError(name, f"invalid rank {last}: this run has {there}")


def _check_background(asked: SimpleNamespace) -> None:
    """Check that nothing is asked of a background run that only a notebook's own process can do."""
    if asked.bg and asked.detach:
        problem = "a detached run is in the background already: omit this option"
        raise OptionError("bg", problem)
    if not (asked.bg or asked.detach):
        return
    name = "bg" if asked.bg else "detach"
    if asked.session:
        problem = (
            "the ranks of a session are the notebook's, and run its cells one by one: omit this "
            "option or the session"
        )
        raise OptionError(name, problem)
    if asked.debug:
        raise OptionError(name, "nobody could answer the debugger: omit this option or --debug")
