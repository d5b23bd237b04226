"""What a run is asked for, checked and resolved for this machine (`resolve`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddp_magic.kernel.options.declaration import spelling
from ddp_magic.kernel.values.pull import Pull
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.environment import rank_environment
from ddp_magic.system.gpu_locks import GpuLocks
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import RunCell


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a run is asked for; see `%%ddp --help` for each.

    Attributes:
        nproc: Number of ranks, of all nodes together; the most, if the cluster chooses.
        nnodes: Number of nodes; the most, if the cluster chooses.
        min_nodes: The fewest, if the cluster chooses; 0 if it does not.
        engine: What starts them.
        engine_args: Arguments for that, in one text.
        visible: Value for the ranks' CUDA_VISIBLE_DEVICES; None to leave it alone.
        devices: One line that says which devices the ranks run on.
        show: Ranks whose output is shown; None for all.
        quiet: Whether to show no devices, no table and no closing line of a run that goes well.
        pull: What the notebook wants afterwards.
        profile: Whether to show at the end where the time went.
        trace: File for the trace of the run; None for no trace.
        session: Name of the session whose ranks run the cell; empty for ranks of its own.
        check: Compare every collective of the ranks.
        debug: Hold a rank that raises in the debugger.
        call: The cell is ours and calls a function: its lines are of no interest.
        from_python: Python code asked for it, not a magic.
        gpu_locks: The GPUs that its ranks hold; empty for a later cell of a session.
        fixed: What was asked for with the options that a session keeps, by name.
    """

    nproc: int
    nnodes: int = 1
    min_nodes: int = 0
    engine: str = "local"
    engine_args: str = ""
    device: str = "cpu"
    visible: str | None = None
    devices: str = ""
    backend: str | None = None
    timeout_s: float | None = None
    time_limit_s: float | None = None
    init_process_group: bool = True
    show: frozenset[int] | None = None
    quiet: bool = False
    seed: int | None = None
    argv: tuple[str, ...] = ()
    pull: tuple[Pull, ...] = ()
    profile: bool = False
    trace: Path | None = None
    session: str = ""
    check: bool = False
    debug: bool = False
    max_restarts: int = 0
    call: bool = False
    from_python: bool = False
    gpu_locks: GpuLocks = field(default_factory=GpuLocks, compare=False)
    fixed: Mapping[str, object] = field(default_factory=dict)

    @property
    def measures(self) -> bool:
        """Whether the ranks measure where their time goes."""
        return self.profile or self.trace is not None

    def command(
        self,
        *,
        path: str,
        file: str,
        execution_count: int | None,
        prelude: tuple[str, ...],
        shell: dict[str, str],
    ) -> RunCell:
        """Return the command that runs a cell so; for the arguments see `commands.RunCell`."""
        return RunCell(
            path=path,
            file=file,
            execution_count=execution_count,
            prelude=prelude,
            argv=self.argv,
            seed=self.seed,
            shell=shell,
            pull=tuple((pull.path, pull.rank) for pull in self.pull),
            call=self.call,
            check=self.check,
            profile=self.measures,
            debug=self.debug,
        )

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of the agents and ranks, from the kernel's."""
        return rank_environment(env, self.visible, self.nproc_per_node, self.nnodes)

    @property
    def nproc_per_node(self) -> int:
        """Number of ranks on each node."""
        return self.nproc // self.nnodes

    def spelled(self, name: str) -> str:
        """Return an option as it was written: `--time-limit` in a magic, `time_limit` in Python."""
        return name if self.from_python else spelling(name)


def group_of(options: Options, directory: RunDirectory) -> WorkerGroup:
    """Describe the ranks of a run, or of a session by its first run."""
    return WorkerGroup(
        directory,
        nproc=options.nproc,
        nnodes=options.nnodes,
        min_nodes=options.min_nodes,
        device=options.device,
        backend=options.backend,
        timeout_s=options.timeout_s,
        init_process_group=options.init_process_group,
        kept=bool(options.session),
        max_restarts=options.max_restarts,
        gpu_locks=options.gpu_locks,
    )
