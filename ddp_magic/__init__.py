"""ddp_magic: a notebook cell as a real distributed PyTorch program.

In a notebook, load the extension once, then begin a cell with `%%ddp`::

    %load_ext ddp_magic

    %%ddp -n 4
    print(rank, world_size, device)

It runs on 4 ranks; `%%ddp --help` lists the options. The cell finds `rank`, `local_rank`,
`world_size` and `device`, an initialized process group, and the names of the notebook that it
uses. `%ddp_status` lists the runs, `%ddp_show` and `%ddp_logs` show one again, `%ddp_stop` ends
one, or a session; `%ddp_wait` and `%ddp_attach` follow one that goes on in the background. In
Python, `ddp_magic.launch(function, ...)` and `ddp_magic.run(cell, ...)` do the same as the magic.

Map of the package. A folder says which process its lines run in, and imports only from folders
below it::

    kernel     the notebook's process: magics, runs, sessions. Its rooms: notebook (the magics),
               execution (one run), options, values (to the ranks and back), worker_group, watch
               (hangs, profiles), background (the host), machine (GPUs, limits)
    display    what a person sees: outputs and tables. Its rooms: text, journal (shown again),
               diagnosis (how a run ended, why ranks wait), profiles
    engines    how one agent gets onto each node: the forkserver, torchrun, Slurm, Ray
    node       beside the ranks: the forkserver, the agent (torch elastic), the ranks' processes,
               the relay of a node of several
    worker     one rank. Its rooms: console (text, displays, questions), values, watch
    ----------
    wire       what travels between processes: messages, channels, values
    system     processes, environment, run directories, installed libraries
    ----------
    errors     the tree of errors
    prelude    the names that a cell finds ready, and where each comes from
    sam        the SAM library; useful without the rest

`kernel` imports `display` and `engines`; those, `node` and `worker` do not know each other.
The notebook's process imports neither torch nor anything that imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddp_magic.errors import (
    CaptureError,
    CellSyntaxError,
    DDPMagicError,
    HostLostError,
    LaunchError,
    MismatchError,
    ProtocolError,
    PullError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ddp_magic.kernel.api import launch, run

_OLDEST_IPYTHON = (8, 18)  # as in pyproject.toml

__all__ = [
    "CaptureError",
    "CellSyntaxError",
    "DDPMagicError",
    "HostLostError",
    "LaunchError",
    "MismatchError",
    "ProtocolError",
    "PullError",
    "RunInterrupted",
    "TimeLimitError",
    "WorkerError",
    "WorkerLostError",
    "launch",
    "load_ipython_extension",
    "run",
    "unload_ipython_extension",
]


def __getattr__(name: str) -> object:
    """Import `launch` and `run` on their first use: a rank that imports ddp_magic needs neither."""
    if name in ("launch", "run"):
        from ddp_magic.kernel import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the names that TAB offers: `launch` and `run` too, before their first use."""
    return sorted({*globals(), *__all__})


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext ddp_magic`: register the magics.

    Raises:
        UsageError: The IPython of this kernel is too old. pip may have updated it on disk since the
            kernel started, as on Colab, whose own is IPython 7.
    """
    import IPython
    from IPython.core.error import UsageError

    if IPython.version_info < _OLDEST_IPYTHON:
        needed = ".".join(map(str, _OLDEST_IPYTHON))
        raise UsageError(
            f"ddp_magic needs IPython {needed} or later, and this kernel runs IPython "
            f"{IPython.__version__}: restart the kernel if it has just been updated, or run "
            "pip install -U ipython, and restart"
        )
    from ddp_magic.kernel.notebook.magics import register

    register(shell)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext ddp_magic`, `%reload_ext ddp_magic`: take the magics away.

    The sessions, the background runs and the forkserver end, and it says which.
    """
    from ddp_magic.kernel.notebook.magics import unregister

    if ended := unregister(shell):
        print("\n".join(ended))  # noqa: T201 -- the answer
