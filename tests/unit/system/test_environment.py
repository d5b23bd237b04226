"""The environments of ranks and forkservers, and what tells them apart."""

from __future__ import annotations

import pytest

from ddp_magic.system.environment import (
    POOL_VARIABLES,
    early_differences,
    forkserver_environment,
    rank_environment,
    threads_wanted,
)


def test_the_ranks_environment() -> None:
    """Launchers' variables go, the user's stay, threads are as torchrun sets them."""
    env = {
        "RANK": "1",
        "TORCHELASTIC_X": "1",
        "MASTER_PORT": "1",
        "PET_STANDALONE": "1",
        "SLURM_JOB_ID": "5",
        "A": "b",
    }
    ours = rank_environment(env, None, 2)
    assert {"SLURM_JOB_ID", "A"} < set(ours)
    assert not {
        "RANK",
        "TORCHELASTIC_X",
        "MASTER_PORT",
        "PET_STANDALONE",
        "CUDA_VISIBLE_DEVICES",
    } & set(ours)
    assert ours["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in rank_environment(env, None, 1)
    assert rank_environment({"OMP_NUM_THREADS": "4"}, "", 2)["OMP_NUM_THREADS"] == "4"
    assert rank_environment(env, "2,0", 2)["CUDA_VISIBLE_DEVICES"] == "2,0"


def test_torchs_recorder_keeps_few_operations() -> None:
    """Unless the user has said how many."""
    assert rank_environment({}, None, 2)["TORCH_FR_BUFFER_SIZE"] == "64"
    own = rank_environment({"TORCH_FR_BUFFER_SIZE": "5000"}, None, 2)
    assert own["TORCH_FR_BUFFER_SIZE"] == "5000"


@pytest.mark.parametrize(
    "name", ["MPLBACKEND", "PROGRESSBAR_IS_TERMINAL"], ids=["figures", "progressbar2"]
)
def test_libraries_draw_as_in_a_notebook(name: str) -> None:
    """Unless the user wants it otherwise: a rank is no kernel to them, nor a terminal."""
    assert rank_environment({"JPY_PARENT_PID": "5"}, None, 2)[name]
    assert rank_environment({name: "mine"}, None, 2)[name] == "mine"


def test_ranks_speak_over_the_loopback_interface() -> None:
    """Whatever interface a cluster's settings name: all ranks are on this machine."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        for env in ({}, {name: "eth0"}):
            assert rank_environment(env, None, 2)[name] in ("lo", "lo0")


def test_a_forkserver_has_no_threads() -> None:
    """Every pool is held at one, whatever the ranks are to have."""
    env = forkserver_environment({"OMP_NUM_THREADS": "8", "A": "b"})
    assert {env[name] for name in POOL_VARIABLES} == {"1"}
    assert env["A"] == "b"


@pytest.mark.parametrize(
    ("now", "then", "different"),
    [
        ({"HF_HOME": "/a"}, {"HF_HOME": "/b"}, ["HF_HOME"]),
        ({"MY_OWN": "1"}, {}, ["MY_OWN"]),
        ({}, {"TORCH_LOGS": "all", "A": "b"}, ["A", "TORCH_LOGS"]),
        ({"CUDA_VISIBLE_DEVICES": "1", "NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "2"}, {}, []),
        ({"MASTER_PORT": "1", "PATH": "/x", "TZ": "UTC"}, {"PATH": "/y"}, []),
        ({"KMP_INIT_AT_FORK": "FALSE"}, {}, []),
    ],
)
def test_what_a_fork_cannot_change(
    now: dict[str, str], then: dict[str, str], different: list[str]
) -> None:
    """A variable counts as read at import, unless it is known to be read late."""
    assert early_differences(now, then) == different


@pytest.mark.parametrize(
    ("env", "threads"),
    [
        ({}, None),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "0"}, None),
    ],
)
def test_threads(env: dict[str, str], threads: int | None) -> None:
    """The first variable that names a number counts."""
    assert threads_wanted(env) == threads
