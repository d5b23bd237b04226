"""A real Slurm of two nodes for the tests, on one machine: each node is a network namespace.

The nodes `n1` and `n2`, and `login`, where the controller runs, have addresses and host names of
their own on a bridge. `SlurmCluster.env` has a PATH on which `srun`, `squeue` and the others run in
the namespace of `login`, so that a kernel of the tests uses them as on a login node.

It needs root, network namespaces, and Debian's slurmctld, slurmd, slurm-client and munge, whose
services do not run. Everything is ended by its own pid.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from tests.integration import network
from tests.limits import HANG_S

NODES = ("n1", "n2")
CPUS = 4  # of each node, as Slurm counts them
_HOSTS = ("login", *NODES)
_PROGRAMS = ("srun", "squeue", "scancel", "scontrol", "sinfo", "salloc", "sbatch")
_MUNGE_KEY = Path("/etc/munge/munge.key")

_CONF = """\
ClusterName=mini
SlurmctldHost=login
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={d}/munge/socket
StateSaveLocation={d}/state
SlurmdSpoolDir={d}/spool/%n
SlurmctldPidFile={d}/slurmctld.pid
SlurmdPidFile={d}/slurmd.%n.pid
SlurmctldLogFile={d}/slurmctld.log
SlurmdLogFile={d}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
SlurmdParameters=config_overrides
{nodes}
PartitionName=debug Nodes={names} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """Return why there can be no cluster here; empty if there can."""
    if problem := network.missing(*_PROGRAMS, "slurmctld", "slurmd", "munged", "runuser"):
        return problem
    return "" if _MUNGE_KEY.exists() else f"no {_MUNGE_KEY}"


class SlurmCluster:
    """A running cluster.

    Attributes:
        env: Variables for a process on the login node: PATH, SLURM_CONF, TMPDIR; also of jobs.
        prefix: Words before its command: none.
        temporary: Where its jobs put temporary files.
    """

    prefix: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="slurm-cluster-"))
        self._network = network.Network("s", _HOSTS, self.directory)
        self._processes: list[subprocess.Popen[bytes]] = []
        self.env: dict[str, str] = {}
        self.temporary = self.directory / "t"
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def _start(self) -> None:
        self._network.start()
        self._write_files()
        self._start_munge()
        conf = str(self.directory / "slurm.conf")
        self._spawn("login", ["slurmctld", "-D", "-i", "-f", conf])
        for node in NODES:
            self._spawn(node, ["slurmd", "-D", "-N", node, "-f", conf])
        self.wait_until_idle()

    # --- files --------------------------------------------------------------------------------

    def address(self, host: str) -> str:
        """Return a host's address."""
        return self._network.address(host)

    def _write_files(self) -> None:
        d = self.directory
        d.chmod(0o755)  # munged runs as its own user
        self.temporary.mkdir()
        for name in ("state", "spool", "bin", "munge", *(f"spool/{node}" for node in NODES)):
            (d / name).mkdir(parents=True)
        nodes = "\n".join(
            f"NodeName={n} NodeAddr={self.address(n)} CPUs={CPUS} RealMemory=8000 State=UNKNOWN"
            for n in NODES
        )
        (d / "slurm.conf").write_text(_CONF.format(d=d, nodes=nodes, names=",".join(NODES)))
        for name in _PROGRAMS:
            program = d / "bin" / name
            program.write_text(self._wrapper(name))
            program.chmod(0o755)
        self.env = {
            "PATH": f"{d / 'bin'}:{os.environ['PATH']}",
            "SLURM_CONF": str(d / "slurm.conf"),
            "TMPDIR": str(self.temporary),
        }

    def _wrapper(self, name: str) -> str:
        words = shlex.join(self._network.inside("login", [shutil.which(name) or name]))
        return f'#!/bin/sh\nexec {words} "$@"\n'

    # --- processes ----------------------------------------------------------------------------

    def _start_munge(self) -> None:
        home = self.directory / "munge"
        shutil.chown(home, "munge", "munge")
        home.chmod(0o755)
        argv = ["runuser", "-u", "munge", "--", "munged", "-F", f"--key-file={_MUNGE_KEY}"]
        argv += [f"--{kind}-file={home / kind}" for kind in ("pid", "log", "seed")]
        self._processes.append(
            subprocess.Popen(
                [*argv, f"--socket={home / 'socket'}"],
                stdin=subprocess.DEVNULL,
                stdout=(self.directory / "munged.out").open("wb"),
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        )
        self._wait((home / "socket").exists, "munged")

    def _spawn(self, host: str, argv: Sequence[str]) -> None:
        with (self.directory / f"{host}.out").open("wb") as output:
            self._processes.append(
                subprocess.Popen(
                    self._network.inside(host, argv),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env={**os.environ, "SLURM_CONF": str(self.directory / "slurm.conf")},
                )
            )

    def wait_until_idle(self) -> None:
        """Wait until all nodes are there and free."""

        def idle() -> bool:
            return self.run("sinfo", "-h", "-N", "-o", "%T").split() == ["idle"] * len(NODES)

        self._wait(idle, "Slurm")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + HANG_S
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text()[-2000:] for p in self.directory.glob("*.out"))
                raise TimeoutError(f"{what} did not start:\n{logs}")
            time.sleep(0.05)

    def run(self, *argv: str) -> str:
        """Run a program of Slurm's on the login node; return what it prints."""
        done = subprocess.run(
            [str(self.directory / "bin" / argv[0]), *argv[1:]],
            capture_output=True,
            text=True,
            timeout=HANG_S,
            check=False,
            env={**os.environ, **self.env},
        )
        return done.stdout

    def jobs(self, states: str = "PENDING,RUNNING,COMPLETING") -> list[str]:
        """Return the ids of the jobs in these states."""
        return self.run("squeue", "-h", "-t", states, "-o", "%i").split()

    def steps(self) -> list[str]:
        """Return the ids of the steps that run."""
        return self.run("squeue", "-h", "-s", "-o", "%i").split()

    def allocate(self) -> str:
        """Make an allocation of both nodes, as `salloc` does; return its id."""
        self.run("salloc", "--no-shell", "-N", str(len(NODES)), "-n", str(len(NODES)), "-J", "held")
        return self.run("squeue", "-h", "-n", "held", "-o", "%i").split()[0]

    def variables_of(self, job: str) -> dict[str, str]:
        """Return what `salloc` sets for the processes in an allocation."""
        count = str(len(NODES))
        names = {"SLURM_JOB_ID": job, "SLURM_JOBID": job, "SLURM_NNODES": count}
        names |= {"SLURM_JOB_NUM_NODES": count, "SLURM_NODELIST": "n[1-2]"}
        return names | {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_TASKS_PER_NODE": "1(x2)"}

    def processes(self) -> list[psutil.Process]:
        """Return every process of it, of its jobs, and of those that use it, but this one."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get("SLURM_CONF") == self.env.get("SLURM_CONF", "-"):
                    found.append(process)
        return [process for process in found if process.pid != os.getpid()]

    def stop(self) -> None:
        """End every process of it, and remove the network."""
        for process in reversed(self._processes):
            try:
                own = psutil.Process(process.pid)
                tree = [own, *own.children(recursive=True)]
            except psutil.NoSuchProcess:
                tree = []
            for each in tree:
                try:
                    each.send_signal(signal.SIGKILL)
                except psutil.NoSuchProcess:
                    continue
            process.wait(timeout=HANG_S)
        for process in self.processes():  # slurmstepd leaves the tree of slurmd
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._network.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


if __name__ == "__main__":  # runs a command as on the login node of a cluster
    _cluster = SlurmCluster()
    try:
        _env = {**os.environ, **_cluster.env}
        sys.exit(subprocess.run(sys.argv[1:], env=_env, check=False).returncode)
    finally:
        _cluster.stop()
