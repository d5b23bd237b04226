"""A machine with GPUs, as far as the notebook's process can see: what `nvidia-smi` answers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Machine:
    """A stand-in for nvidia-smi.

    Attributes:
        gpus: Lines of --query-gpu=index,uuid,name,memory.used,memory.total.
        processes: Lines of --query-compute-apps=gpu_uuid,pid,used_memory.
        mig: UUIDs of the GPUs that MIG divides.
    """

    folder: Path
    gpus: list[str]
    processes: list[str] = field(default_factory=list)
    mig: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: Path, used_mib: list[int]) -> Machine:
        """Return a machine whose GPUs have so much memory in use."""
        gpus = [
            f"{i}, {cls.uuid(i)}, NVIDIA A100, {used}, 81920" for i, used in enumerate(used_mib)
        ]
        return cls(folder, gpus)

    @staticmethod
    def uuid(index: int) -> str:
        """Return a UUID that no other test process has: the locks are the real ones."""
        return f"GPU-{index:x}{os.getpid():07x}-aaaa"

    def install(self) -> None:
        """Write the program, for a PATH that has its folder."""
        mig = [f"{uuid}, {'Enabled' if uuid in self.mig else '[N/A]'}" for uuid in self.uuids]
        answers = {
            "index": [line.split(",")[0] for line in self.gpus],
            "index,uuid,*": self.gpus,
            "uuid,mig.mode.current": mig,
            "gpu_uuid,*": self.processes,
        }
        cases = "\n".join(
            f"*={query}) cat <<'END'\n" + "".join(f"{line}\n" for line in lines) + "END\n;;"
            for query, lines in answers.items()
        )
        program = self.folder / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\n*) exit 2;;\nesac\n')
        program.chmod(0o755)

    @property
    def uuids(self) -> list[str]:
        """The UUIDs of its GPUs."""
        return [line.split(", ")[1] for line in self.gpus]
