"""The cluster of the tests is one: two nodes, each with a name and an address of its own."""

from __future__ import annotations

import pytest

from tests.integration.slurm_cluster import NODES, SlurmCluster

pytestmark = pytest.mark.slow


def test_each_node_runs_a_task(slurm: SlurmCluster) -> None:
    """Under its own host name; it resolves to an address that is not the loopback's."""
    command = "echo $(hostname) $(getent hosts $(hostname) | cut -d' ' -f1) $SLURM_PROCID"
    said = slurm.run("srun", "-N2", "-n2", "sh", "-c", command)
    rows = sorted(line.split() for line in said.splitlines())
    assert rows == [[name, slurm.address(name), str(i)] for i, name in enumerate(NODES)]
