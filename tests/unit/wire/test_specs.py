"""What a kernel tells an agent."""

from __future__ import annotations

import pytest

from ddp_magic.wire.specs import AgentSpec, WorkerSettings, default_backend


def test_a_spec_survives_its_way_as_text() -> None:
    """Equal, tuples included."""
    spec = AgentSpec(
        run_id="r",
        kernel_pid=1,
        nproc=2,
        sys_path=("/a", ""),
        worker=WorkerSettings(socket="/s", directory="/d", device="cpu", timeout_s=60.5),
        prelude=("train",),
    )
    assert AgentSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(("device", "backend"), [("cuda", "cpu:gloo,cuda:nccl"), ("cpu", "gloo")])
def test_the_default_backend_is_torchs_for_the_device(device: str, backend: str) -> None:
    assert default_backend(device) == backend
