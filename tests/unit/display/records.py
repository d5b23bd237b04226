"""Runs as tables and closing lines see them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from ddp_magic.display.rank import Rank
from ddp_magic.display.record import RunRecord
from ddp_magic.system.run_directory import RunDirectory
from ddp_magic.wire.kernel_events import RunEvent

NOW = time.time()


def make_record(nproc: int = 2, *events: RunEvent, **fields: Any) -> RunRecord:
    """A run that has taken 5.5 s, after these events."""
    record = RunRecord(
        id="1127-1",
        label="Cell In[3]",
        log_directory=RunDirectory(Path("/logs")),
        ranks=[Rank(rank=r) for r in range(nproc)],
        **{"devices": f"{nproc} ranks on the CPU", "started": NOW - 5.5, "ended": NOW, **fields},
    )
    for event in events:
        record.take(event)
    return record
