"""What `%ddp_status` shows of a forkserver: an engine fills it in, the display draws it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class ForkserverStatus:
    """The state of a forkserver.

    Attributes:
        state: "ready", "starting", "importing transformers", "off: macOS ...".
        pid: None if it does not run.
        pss_mib: Its memory, shared pages counted by share, MiB.
        libraries: The libraries that it has imported, by top-level name.
        left_out: Why a library is not imported, by name.
    """

    state: str
    pid: int | None = None
    pss_mib: float = 0.0
    libraries: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
