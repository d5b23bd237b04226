"""The states of runs and ranks."""

from __future__ import annotations

import enum


class State(str, enum.Enum):
    """State of a run, in torchx's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class Phase(str, enum.Enum):
    """Phase of a rank. A heartbeat carries STARTING to EXITING; the kernel alone knows the others.

    Attributes:
        WAITING: Its process does not exist yet.
        STARTING: It is connected and creates the process group.
        RUNNING: It runs a cell.
        IDLE: It is a session's, and waits for the next cell.
        EXITING: Its cell has ended; exit handlers run.
        ENDED: Its process has ended.
    """

    WAITING = "waiting"
    STARTING = "starting"
    RUNNING = "running"
    IDLE = "idle"
    EXITING = "exiting"
    ENDED = "ended"
