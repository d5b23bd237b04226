"""Slurm's command line and environment; the cluster itself is in tests/integration."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from pathlib import Path

import pytest

from ddp_magic.engines import Choice, slurm, slurm_options
from tests.limits import HANG_S


def _command(*arguments: str, inside: bool = False) -> list[str]:
    words = slurm_options.command(["python", "-c", "x"], 3, 4, arguments, inside=inside)
    return words[words.index("srun") :]


def test_one_task_on_each_node() -> None:
    """Said in full, and after the user's words: what is inherited says otherwise."""
    words = _command("-p", "gpu")
    assert words.index("gpu") < words.index("-n")
    assert words[words.index("-n") + 1] == words[words.index("-N") + 1] == "3"
    assert "--ntasks-per-node=1" in words
    assert words[-4:] == ["python", "-c", "x", "SLURM_PROCID"]


def test_one_task_on_each_node_of_a_range() -> None:
    """Without a number of tasks, which would be that of the nodes.

    In an allocation, Slurm 22.05's controller dies of a range beside --ntasks-per-node.
    """
    words = slurm_options.command(["python"], 3, 4, [], inside=False, choice=Choice(2))
    assert words[words.index("-N") + 1] == "2-3"
    assert "-n" not in words
    assert not [word for word in words if word.startswith("--ntasks")]


@pytest.mark.parametrize(
    ("own", "excluded"),
    [
        ([], ["--exclude=n2,n3"]),
        (["-p", "gpu", "-x", "n7"], ["--exclude=n7,n2,n3"]),
        (["-xn7"], ["--exclude=n7,n2,n3"]),
        (["--exclude=n7,n8", "-l"], ["--exclude=n7,n8", "--exclude=n7,n8,n2,n3"]),
        (["--exclude", "n7"], ["--exclude=n7,n2,n3"]),
        (["--exclusive"], ["--exclude=n2,n3"]),
        (["-x", "./nodes"], []),
    ],
)
def test_nodes_that_were_lost_are_left_out(own: list[str], excluded: list[str]) -> None:
    """Beside those that the user leaves out; a file of these cannot be added to."""
    words = slurm_options.command(
        ["python"], 3, 4, own, inside=False, choice=Choice(1, ("n2", "n3"))
    )
    assert [word for word in words if word.startswith("--exclude=")] == excluded


@pytest.mark.parametrize("own", ["-c8", "--cpus-per-task=8", "--cpus-per-gpu=4", "--exclusive"])
def test_a_processor_for_each_rank(own: str) -> None:
    """Unless the user says how many, or has an allocation."""
    assert "--cpus-per-task=4" in _command()
    assert "--cpus-per-task=4" not in _command(own)
    assert "--cpus-per-task=4" not in _command(inside=True)


def test_a_step_beside_the_notebook() -> None:
    """In an allocation, whose processors the notebook's own step may hold."""
    assert "--overlap" in _command(inside=True)
    assert "--overlap" in _command("--jobid=3")
    assert "--overlap" not in _command()


def test_what_is_inherited_in_an_allocation() -> None:
    """Its name, and nothing of the step in which the notebook runs."""
    env = {
        "SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0", "SLURM_PARTITION": "x",
        "SLURM_CPUS_PER_TASK": "1", "SLURM_CONF": "/etc/slurm.conf", "PMI_RANK": "0", "HOME": "/h",
    }  # fmt: skip
    kept = {"SLURM_JOB_ID": "7", "SLURM_CONF": "/etc/slurm.conf", "HOME": "/h"}
    assert slurm_options.environment(env, inside=True) == kept


def test_the_users_own_defaults_are_kept() -> None:
    """But not what would tear the streams, or change how many agents there are."""
    env = {
        "SLURM_PARTITION": "gpu", "SLURM_ACCOUNT": "me", "SLURM_UNBUFFEREDIO": "1",
        "SLURM_LABELIO": "1", "SLURM_NNODES": "9", "SLURM_EXPORT_ENV": "NONE",
    }  # fmt: skip
    kept = {"SLURM_PARTITION": "gpu", "SLURM_ACCOUNT": "me"}
    assert slurm_options.environment(env, inside=False) == kept


@pytest.mark.parametrize(("is_step", "ended"), [(False, "15"), (True, "15.3")])
def test_an_srun_that_is_killed_leaves_no_job(tmp_path: Path, is_step: bool, ended: str) -> None:
    """Nor does it end one that was there before."""
    scancel = tmp_path / "scancel"
    scancel.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/ended\n")
    scancel.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    job = slurm.SlurmJob(["sleep", str(2 * HANG_S)], env, lambda _line: None, is_step=is_step)
    job.running("15.3")
    os.kill(job._process.pid, signal.SIGKILL)
    assert job.wait() == -signal.SIGKILL
    assert (tmp_path / "ended").read_text() == f"{ended}\n"


def test_a_queued_job_ends_with_its_srun(tmp_path: Path) -> None:
    scancel = tmp_path / "scancel"
    scancel.write_text(f"#!/bin/sh\necho $* >> {tmp_path}/ended\n")
    scancel.chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    srun = "echo srun: job 7 queued and waiting for resources >&2; kill -9 $$"
    job = slurm.SlurmJob(["sh", "-c", srun], env, lambda _line: None)
    job.wait()
    assert (tmp_path / "ended").read_text() == "7\n"


def test_an_srun_that_is_killed_has_lost_its_job(tmp_path: Path) -> None:
    """Unless the kernel has ended it."""
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    for cancels, fate in ((False, "lost its srun, which was killed by SIGKILL"), (True, "")):
        job = slurm.SlurmJob(["sleep", str(2 * HANG_S)], env, lambda _line: None)
        if cancels:
            job.cancel()
        else:
            os.kill(job._process.pid, signal.SIGKILL)
        job.wait()
        assert job.fate() == fate


def test_the_notebooks_directory_was_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm's srun refuses to start there, so it starts elsewhere, as ranks here do."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    log: list[bytes] = []
    argv = [sys.executable, "-c", "import os, sys; print(os.getcwd(), file=sys.stderr)"]
    assert slurm.SlurmJob(argv, {}, log.append).wait() == 0
    assert log == [f"{os.path.realpath(tempfile.gettempdir())}\n".encode()]
