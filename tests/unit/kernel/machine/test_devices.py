"""Which GPUs there are, by a stand-in for nvidia-smi on the PATH."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ddp_magic.kernel.machine import devices

ANSWER = """\
0, GPU-aaaa-1, NVIDIA A100, 12, 81920
1, GPU-bbbb-2, NVIDIA A100, 40000, 81920
2, GPU-cccc-3, NVIDIA T4, [N/A], 15360
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with three GPUs."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{ANSWER}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return program


def _names(gpus: list[devices.Gpu]) -> list[str]:
    return [gpu.visible for gpu in gpus]


@pytest.mark.usefixtures("machine")
def test_all_and_masked() -> None:
    """CUDA_VISIBLE_DEVICES chooses and orders, by number and UUID, up to the first unknown."""
    assert _names(devices.visible_gpus({})) == ["0", "1", "2"]
    assert _names(devices.visible_gpus({"CUDA_VISIBLE_DEVICES": "2,0"})) == ["2", "0"]
    assert _names(devices.visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-bbbb-2"})) == ["GPU-bbbb-2"]
    assert _names(devices.visible_gpus({"CUDA_VISIBLE_DEVICES": "1,9,0"})) == ["1"]
    assert devices.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


@pytest.mark.usefixtures("machine")
def test_choice_is_relative_to_the_mask() -> None:
    """-g counts as CUDA does in the notebook."""
    visible = devices.visible_gpus({"CUDA_VISIBLE_DEVICES": "2,0"})
    assert _names(devices.choose(visible, "1")) == ["0"]
    assert _names(devices.choose(visible, "1, 0")) == ["0", "2"]
    assert _names(devices.choose(visible, "GPU-bbbb-2")) == ["GPU-bbbb-2"]
    assert devices.choose(visible, "none") == []
    assert devices.choose(visible, None) == visible


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("wrong", ["7", "0,0", "a", "", "-1", "GPU-zzzz"])
def test_wrong_choices(wrong: str) -> None:
    """What is not there, or twice, is refused by name."""
    with pytest.raises(ValueError, match="GPU"):
        devices.choose(devices.visible_gpus({}), wrong)


def test_a_machine_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are none."""
    monkeypatch.setenv("PATH", "/nowhere")
    assert devices.visible_gpus({}) == []


def test_an_nvidia_smi_that_fails(machine: Path) -> None:
    """As where the driver is broken: there are none."""
    machine.write_text("#!/bin/sh\necho failed; exit 9\n")
    assert devices.visible_gpus({}) == []


@pytest.mark.usefixtures("machine")
def test_the_first_line() -> None:
    """It names the devices and warns of busy ones."""
    gpus = devices.visible_gpus({})
    assert devices.describe([], 2) == "2 ranks on the CPU"
    text = devices.describe(gpus, 2)
    assert text == (
        "2 ranks on cuda:0 NVIDIA A100, cuda:1 NVIDIA A100; "
        "cuda:1 is busy (40,000 of 81,920 MiB in use)"
    )
