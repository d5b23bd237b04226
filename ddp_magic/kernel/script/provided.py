"""The lines of a script that do what `%%ddp` does for a cell. Pure.

`worker.device`, `worker.process_group` and `worker.fresh_state` are what they stand for.
"""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace

from ddp_magic.kernel.script.imports import Imports
from ddp_magic.wire.specs import default_backend


class Provided:
    """Writes them.

    Args:
        asked: The options' values.
        names: Names of the rank that the cell reads.
        imports: Gets what the lines use.
    """

    def __init__(self, asked: SimpleNamespace, names: Collection[str], imports: Imports) -> None:
        self._asked = asked
        self._names = names
        self._imports = imports

    def _variable(self, name: str) -> str:
        os = self._imports.use(("os", None), "os")
        return f'{self._imports.builtin("int")}({os}.environ["{name.upper()}"])'

    @property
    def _torch(self) -> str:
        return self._imports.use(("torch", None), "torch")

    @property
    def _dist(self) -> str:
        return self._imports.use(("torch.distributed", None), "dist")

    def _local_rank(self) -> str:
        name = "local_rank" if "local_rank" in self._names else self._variable("local_rank")
        # Without NCCL, ranks may share a GPU.
        shared = self._asked.backend is not None and "nccl" not in self._asked.backend
        return f"{name} % {self._torch}.cuda.device_count()" if shared else name

    def ranks(self) -> str:
        """Return the lines that define `rank`, `local_rank`, `world_size` and `device`."""
        numbers = [name for name in ("rank", "local_rank", "world_size") if name in self._names]
        lines = [f"{name} = {self._variable(name)}" for name in numbers]
        if "device" in self._names and self._asked.gpus == "none":
            lines.append(f'device = {self._torch}.device("cpu")')
        elif "device" in self._names:
            lines += [
                f"if {self._torch}.cuda.is_available():",
                f'    device = {self._torch}.device("cuda", {self._local_rank()})',
                "else:",
                f'    device = {self._torch}.device("cpu")',
            ]
        return "\n".join(lines)

    def setup(self, *, init: bool, own: bool) -> str:
        """Return the lines that choose the GPU, create the process group, and seed.

        Args:
            init: Whether to create the group.
            own: Whether the cell creates one.
        """
        lines = []
        if self._asked.gpus != "none":
            mine = "device" if "device" in self._names else self._local_rank()
            lines += [f"if {self._has_cuda}:", f"    {self._torch}.cuda.set_device({mine})"]
        if init or own:
            os = self._imports.use(("os", None), "os")
            barrier = f'{os}.environ["TORCH_DIST_INIT_BARRIER"] = "1"'
            lines.append(f"{barrier}  # no rank goes on before all are there")
        if init:
            lines.append(f"{self._dist}.init_process_group({self._group()})")
        return "\n".join([*lines, self.seeds()]).rstrip("\n")

    @property
    def _has_cuda(self) -> str:
        return f"{self._torch}.cuda.is_available()"

    def _group(self) -> str:
        """Return the arguments of `init_process_group`."""
        text = f'"{self._asked.backend or default_backend("cpu")}"'
        if self._asked.backend is None and self._asked.gpus != "none":
            text = f'"{default_backend("cuda")}" if {self._has_cuda} else {text}'
        if self._asked.timeout is None:
            return text
        timedelta = self._imports.use(("datetime", "timedelta"), "timedelta")
        seconds = str(self._asked.timeout).removesuffix(".0")
        return f"{text}, timeout={timedelta}(seconds={seconds})"

    def seeds(self, *, alone: bool = False) -> str:
        """Return the lines that seed the generators.

        Args:
            alone: Only Python's, for a cell that reaches no library.
        """
        seed = self._asked.seed
        if seed is None:
            return ""
        lines = [f"{self._imports.use(('random', None), 'random')}.seed({seed})"]
        if alone:
            return lines[0]
        lines += [
            f"{self._imports.use(('numpy', None), 'np')}.random.seed({seed % 2**32})",
            f"{self._torch}.manual_seed({seed})",
        ]
        return "\n".join(lines)

    def end(self, *, sure: bool) -> str:
        """Return the lines that destroy the process group.

        Args:
            sure: Whether it is certain that there is one.
        """
        destroy = f"{self._dist}.destroy_process_group()"
        return destroy if sure else f"if {self._dist}.is_initialized():\n    {destroy}"
