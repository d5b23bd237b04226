"""Which options go together on the nodes of a cluster, and what the messages say."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.options.arguments import parse_line
from ddp_magic.kernel.options.option import OptionError
from ddp_magic.kernel.resolve import join, resolve
from ddp_magic.kernel.several_nodes import describe
from tests.unit.packages import install_engines


@pytest.fixture(autouse=True)
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine that has `srun` on its PATH, and nothing else."""
    program = tmp_path / "srun"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    return program


def _resolve(line: str) -> Options:
    return resolve(parse_line("%%ddp", line), [])


def test_ranks_of_all_nodes() -> None:
    """Counted together, and per node for what concerns a node."""
    options = _resolve('-n 4 -N 2 --engine slurm --engine-args "-p gpu -t 30" --show 7')
    assert options.devices == "8 ranks = 2 nodes x 4 (slurm)"
    assert (options.nproc, options.nnodes, options.nproc_per_node) == (8, 2, 4)
    assert options.engine_args == "-p gpu -t 30"
    env = options.environment(
        {"GLOO_SOCKET_IFNAME": "ib0", "RANK": "3", "CUDA_VISIBLE_DEVICES": "1"}
    )
    assert env["GLOO_SOCKET_IFNAME"] == "ib0"
    assert "NCCL_SOCKET_IFNAME" not in env
    assert env["OMP_NUM_THREADS"] == "1"
    assert env["CUDA_VISIBLE_DEVICES"] == "1"
    assert "RANK" not in env


def test_one_node_of_a_cluster() -> None:
    """Its ranks reach each other over the loopback interface, as here."""
    options = _resolve("-n 1 --engine slurm -g none")
    assert options.devices == "1 rank = 1 node x 1 (slurm)"
    assert options.environment({})["GLOO_SOCKET_IFNAME"].startswith("lo")
    assert options.environment({})["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize("line", ["-n 2 -N 1:3 --engine slurm", "-n 2 --nnodes=1:3 --engine slurm"])
def test_a_range_of_nodes(line: str) -> None:
    """There are as many ranks as there can be, until the cluster has chosen."""
    options = _resolve(line)
    assert options.devices == "2 to 6 ranks = 1 to 3 nodes x 2 (slurm)"
    assert (options.nproc, options.nnodes, options.min_nodes) == (6, 3, 1)
    assert "GLOO_SOCKET_IFNAME" not in options.environment({})
    assert describe("slurm", 2, 1, 3, 1) == "2 ranks = 1 node x 2 (slurm, 1 to 3 nodes)"
    assert describe("ray", 1, 1, 3, 3) == "3 ranks = 3 nodes x 1 (ray, 1 to 3 nodes)"


def test_a_range_of_one_number_is_none() -> None:
    assert _resolve("-n 2 -N 2:2 --engine slurm") == _resolve("-n 2 -N 2 --engine slurm")


def test_a_rank_that_is_there_on_any_number_of_nodes_can_be_pulled() -> None:
    assert _resolve("-n 2 -N 1:2 --engine slurm --pull a@1,b@all --show 3").nproc == 4


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-n 1 -N 1000000", "1,000,000 nodes are too many: use at most 4,096"),
        ("-n 1 -N 1:4097", "4,097 nodes are too many: use at most 4,096"),
        ("-n 1000000", "1,000,000 ranks are too many: use at most 20,000 on all nodes"),
        ("-n 10001 -N 2", "20,002 ranks are too many"),
        ("-n 10001 -N 1:2", "20,002 ranks are too many"),
    ],
)
def test_a_typing_error_in_a_count(line: str, problem: str) -> None:
    """A table of a million ranks took longer than 40 s, in which Stop did nothing."""
    with pytest.raises(OptionError, match=problem):
        _resolve(f"{line} --engine slurm")


def test_the_largest_counts() -> None:
    assert _resolve("-n 4 -N 4096 --engine slurm").nproc == 16384


def test_an_engine_that_cannot_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not say where the number of nodes is found."""
    install_engines(tmp_path, monkeypatch)
    with pytest.raises(OptionError, match="engine mine starts a fixed number of nodes: use 2"):
        _resolve("-n 2 -N 1:2 --engine mine")


@pytest.mark.parametrize(
    ("line", "name", "problem"),
    [
        ("-N 2", "nnodes", "2 nodes need an engine that reaches them: add --engine slurm"),
        ("-N 2 --engine torchrun", "nnodes", "2 nodes need an engine"),
        ("-N 1:2", "nnodes", "1 to 2 nodes need an engine that reaches them: add --engine slurm"),
        ("-N 1:2 --cold", "nnodes", "1 to 2 nodes need an engine"),
        ("-n 2 -N 1:2 --engine slurm -s a", "nnodes", "session are a fixed number: use 2, or omit"),
        ("-n 2 -N 1:2 --engine slurm --pull a@2", "pull", "rank 2 is not there on 1 node: use a"),
        ("-n 2 -N 1:2 --engine slurm --pull a@4", "pull", "rank 4 is not there on 1 node"),
        ("-n 2 -N 1:2 --engine slurm --show 4", "show", "invalid rank 4: this run has ranks 0 to"),
        ("--engine-args -x", "engine_args", "engine local takes none"),
        ("--engine slrum -n 1", "engine", "unknown engine 'slrum': did you mean slurm?"),
        ("--engine k8s -n 1", "engine", "unknown engine 'k8s': use local, torchrun, slurm"),
        ("--engine slurm", "nproc_per_node", "needs a number"),
        ("--engine slurm -n gpu", "nproc_per_node", "needs a number"),
        ("--engine slurm -n 2 -g 0,1", "gpus", "chooses the GPUs of the nodes"),
        ("--engine slurm -n 2 -g free", "gpus", "chooses the GPUs of the nodes"),
        ("--engine slurm -n 2 --cold", "cold", "not available with --engine slurm"),
        ("--engine slurm -n 2 --engine-args '-N 3'", "engine_args", "-N cannot be used: -n and -N"),
        ("""--engine slurm -n 2 --engine-args '-J "x'""", "engine_args", "missing closing quote"),
        ("--engine slurm -n 2 -N 2 --show 4", "show", "invalid rank 4: this run has ranks 0 to 3"),
        ("--engine slurm -n 2 -N 2 --pull a@4", "pull", "invalid rank 4"),
        ("--engine slurm -n 2 --session s --max-restarts 1", "max_restarts", "omit this option"),
    ],
)
def test_what_does_not_go_together(line: str, name: str, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        _resolve(line)
    assert caught.value.name == name
    assert problem in caught.value.problem


def test_without_slurm(srun: Path) -> None:
    srun.unlink()
    with pytest.raises(OptionError, match="there is no srun on the PATH"):
        _resolve("-n 2 --engine slurm")


def test_torchrun_is_an_engine() -> None:
    assert _resolve("-n 2 --engine torchrun").engine == "torchrun"


def test_a_later_cell_of_a_session() -> None:
    """It may repeat the number of ranks per node, and cannot ask for what works here alone."""
    session = _resolve("-n 2 -N 2 --engine slurm --session lab")
    later = join(parse_line("%%ddp", "-n 2 --session lab --show 3"), session)
    assert (later.nproc, later.nnodes) == (4, 2)
    with pytest.raises(OptionError, match="already runs with 2 ranks per node"):
        join(parse_line("%%ddp", "-n 4 --session lab"), session)
    with pytest.raises(OptionError, match="not available with --engine slurm"):
        join(parse_line("%%ddp", "--session lab --cold"), session)
