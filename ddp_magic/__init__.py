"""ddp_magic: a notebook cell as a real distributed PyTorch program.

General layout, from what the user touches down to the wire; each module imports only from those
below it:

- magics         parse the line of `%%ddp` and the line magics, hand over, raise
- api            `launch` and `run`, for Python
- display        events -> notebook outputs: lines, figures; `tables` has the status tables
- kernel         what outlives a cell: runs, sessions, the forkserver, the notebook's names
- session        ranks that are kept; `options` checks what was asked for
- runs           Run: one cell on one worker group; `stop` ends it, `verdict` says how it ended
- group          WorkerGroup: start, send, interrupt, kill; owns the listening end; `admission`
                 says which messages make sense
- engines        how an agent gets onto a node: `forkserver`, `torchrun` (`--cold`)
- forkserver     the preloaded process, which forks agents; `preload` says what it may import,
                 and `trial` tries it
- torchrun       stands in for the agent with `--cold`: torch.distributed.run, a keeper a rank
- agent          one node's agent, a process of its own; with `elastic` (torch's) and `ranks`
- worker         one rank, a process; with `shell`, `bars`, `process_group`, `interrupts` and
                 `user_modules`
- results        values back to the notebook
- capture        the notebook's names to the ranks; `pickling` and `memory` carry values both ways
- agent_spec     what the kernel tells an agent; `environment` the variables of its ranks
- rank           what is known of one rank
- devices, storage, processes, channel, output, cell, names, cell_main, diagnose, frames: tools,
                 most of them pure
- events         the wire vocabulary
- errors         the tree
- prelude        SAM fine-tuning; stands alone

The notebook's kernel imports neither torch nor anything that imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddp_magic.errors import (
    CaptureError,
    CellSyntaxError,
    DDPMagicError,
    LaunchError,
    ProtocolError,
    PullError,
    RunInterrupted,
    TimeLimitError,
    WorkerError,
    WorkerLostError,
)

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from ddp_magic.api import launch, run

__all__ = [
    "CaptureError",
    "CellSyntaxError",
    "DDPMagicError",
    "LaunchError",
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
        from ddp_magic import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_ipython_extension(shell: InteractiveShell) -> None:
    """`%load_ext ddp_magic`: register the magics."""
    from ddp_magic.magics import DDPMagics

    magics = DDPMagics(shell)
    shell.register_magics(magics)
    shell.events.register("pre_run_cell", magics.note_cell)
    shell.events.register("post_run_cell", magics.follow_notebook)


def unload_ipython_extension(shell: InteractiveShell) -> None:
    """`%unload_ext ddp_magic`: take the magics away. No run is under way: cells run one by one."""
    from ddp_magic.magics import DDPMagics

    magics = shell.magics_manager.registry.pop(DDPMagics.__name__, None)
    if magics is None:
        return
    shell.events.unregister("pre_run_cell", magics.note_cell)
    shell.events.unregister("post_run_cell", magics.follow_notebook)
    shell.configurables.remove(magics)
    magics.close()
    for kind, names in magics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
        shell.magics_manager.magics[kind].update(magics.replaced[kind])
