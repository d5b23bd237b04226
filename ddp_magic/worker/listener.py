"""The thread that receives the kernel's commands: interrupts at once, the rest in a queue."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections.abc import Callable
from typing import NoReturn, TypeAlias

from ddp_magic.wire.channel import Channel
from ddp_magic.wire.commands import (
    Answer,
    Captured,
    Command,
    Exit,
    HoldTimeouts,
    Interrupt,
    NewGroup,
    RunCell,
    SharedMemory,
)
from ddp_magic.wire.events import Event
from ddp_magic.wire.states import Phase
from ddp_magic.worker import interrupts
from ddp_magic.worker.values.notebook_values import NotebookValues
from ddp_magic.worker.watch.activity import Activity

ABORT_AFTER_S = 0.3  # for Python code to handle an interrupt itself

MainCommand: TypeAlias = RunCell | NewGroup | Exit


class CommandListener:
    """Obeys interrupts, keeps the notebook's values, and queues the rest for the main thread.

    Args:
        channel: To the kernel.
        activity: What the main thread is doing.
        values: Where the notebook's values go.
        abort_collectives: Called in a thread of its own, to end a wait in a collective.
        hold_timeouts: Called to let collectives wait without a timeout.
        take_answer: Takes the answer to a question of the rank's.
    """

    def __init__(
        self,
        channel: Channel,
        activity: Activity,
        values: NotebookValues,
        *,
        abort_collectives: Callable[[], None],
        hold_timeouts: Callable[[], None],
        take_answer: Callable[[Answer], None],
    ) -> None:
        self._channel = channel
        self._activity = activity
        self._values = values
        self._abort_collectives = abort_collectives
        self._hold_timeouts = hold_timeouts
        self._take_answer = take_answer
        self._queue: queue.SimpleQueue[MainCommand] = queue.SimpleQueue()

    def next_command(self) -> MainCommand:
        """Wait for the main thread's next command."""
        return self._queue.get()

    def run(self) -> NoReturn:
        """Receive commands for ever. The rank and its children end with the connection."""
        while True:
            commands = self._channel.receive()
            if commands is None:  # the kernel is gone
                os.killpg(os.getpgrp(), signal.SIGKILL)
            for command in commands or ():
                self.take(command)

    def take(self, command: Command | Event) -> None:
        """Do what a command asks for, or queue it."""
        match command:
            case Interrupt(abort_collectives=abort):
                self._interrupt(abort_collectives=abort)
            case Answer():
                self._take_answer(command)
            case HoldTimeouts():
                self._hold_timeouts()
            case SharedMemory(number=number, sizes=sizes):
                self._values.add_segment(number, self._channel.received_fds.pop(0), sizes)
            case Captured():
                self._values.announce(command)
            case RunCell() | NewGroup() | Exit():
                if self._activity.phase is Phase.IDLE:
                    interrupts.forget_missed()
                self._queue.put(command)

    def _interrupt(self, *, abort_collectives: bool) -> None:
        interrupts.send()
        if abort_collectives:
            timer = threading.Timer(ABORT_AFTER_S, self._abort, (self._activity.cells,))
            timer.daemon = True
            timer.start()

    def _abort(self, cell: int) -> None:
        """Let the cell go on to its KeyboardInterrupt, if it is still the one that was running."""
        if self._activity.phase is Phase.RUNNING and self._activity.cells == cell:
            self._abort_collectives()
