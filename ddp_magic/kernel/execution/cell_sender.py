"""What the ranks of a run are sent: their environment, the notebook's values, the cell.

`system.environment` decides which variables they have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from ddp_magic.engines import Engine
from ddp_magic.kernel.cell import Cell
from ddp_magic.kernel.execution.questions import Questions
from ddp_magic.kernel.execution.run_options import Options
from ddp_magic.kernel.values.capture import Capture
from ddp_magic.kernel.worker_group.group import WorkerGroup
from ddp_magic.system.environment import is_late
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.commands import Exit


class CellSender:
    """Sends a cell to its ranks, with what it takes along.

    Args:
        group: The ranks.
        cell: The cell.
        options: How it runs.
        capture: What it takes along; `close` gives its memory back.
        directory: Of the run; the ranks find the cell there.
        file: What the cell calls itself.

    Attributes:
        sent: Whether the ranks have been sent the cell, since they were last started.
        prelude: Names of the prelude that the cell reads.
    """

    def __init__(
        self,
        group: WorkerGroup,
        cell: Cell,
        options: Options,
        capture: Capture,
        directory: RunDirectory,
        *,
        file: str,
    ) -> None:
        self.sent = False
        self.prelude = tuple(sorted(capture.prelude))
        self._group = group
        self._cell = cell
        self._options = options
        self._capture = capture
        self._directory = directory
        directory.cell.write_bytes(cell.source.encode())
        self._command = options.command(
            path=str(directory.cell),
            file=file,
            execution_count=cell.number,
            prelude=self.prelude,
            shell=cell.settings,
        )

    def start(self, engine: Engine, sys_path: list[str], environment: Mapping[str, str]) -> None:
        """Start the ranks.

        Args:
            engine: What places the agent.
            sys_path: The ranks' module search path.
            environment: Environment variables for them; the cell's own go first.
        """
        # What the cell sets for libraries that are imported before it runs.
        early = {n: v for n, v in self._cell.environment.items() if not is_late(n)}
        env = self._options.environment(os.environ | environment | early)
        self._group.start(engine, env, sys_path, self.prelude)

    def send_values(self) -> None:
        """Send ranks that start, or start again, the values that the cell takes along."""
        self.sent = False
        for number, segment in self._capture.segments.items():
            self._group.share(number, segment)
        if self._capture.command is not None:
            self._group.send(self._capture.command)

    def send_cell(self, questions: Questions, *, last_attempt: bool) -> None:
        """Let the ranks begin, once all are ready.

        Not before: a rank that has finished its cell closes its connections, and one that is still
        connecting to others takes that for its peer's death.

        Args:
            questions: Of the run; they tell the ranks whether they can ask.
            last_attempt: Whether a failure ends the run: otherwise the ranks are restarted.
        """
        self.sent = True
        if not self._directory.cell.exists():  # a cleaner of temporary files came meanwhile
            self._directory.make_again()
            self._directory.cell.write_bytes(self._cell.source.encode())
        sources = [self._cell.source, *self._capture.texts]
        self._group.send(questions.prepare(self._command, sources, last_attempt=last_attempt))
        if not self._group.kept:
            self._group.send(Exit())

    def close(self) -> None:
        """Let go of the notebook's values."""
        self._capture.close()
        self._capture = Capture()
