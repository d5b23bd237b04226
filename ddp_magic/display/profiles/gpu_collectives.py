"""What collectives took on GPUs, by CUDA events. Pure.

With NCCL, a collective occupies the GPU from the moment when it is its turn there until all ranks
have come and the data are moved. The rank on which it takes least came last: it did not wait.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence

from ddp_magic.wire.profile import RankProfile


def gpu_collectives(profiles: Sequence[RankProfile]) -> list[str]:
    """Return notes on what collectives took on the GPUs.

    Args:
        profiles: Those of all ranks.
    """
    durations: dict[tuple[str, int], dict[int, float]] = defaultdict(dict)
    for profile in profiles:
        for call in profile.calls:
            if call.duration_s is not None:
                key = profile.groups[call.group].key, call.number
                durations[key][profile.rank] = call.duration_s
    if not durations:
        return [
            "what collectives took on the GPU is not known: torch has no times of them (a session "
            "has them if its first cell is profiled)"
        ]
    took, waited = [], []
    for profile in profiles:
        known = {key: by[profile.rank] for key, by in durations.items() if profile.rank in by}
        if not known:
            continue
        # Those whose record was read stand for all.
        seconds = profile.ended - profile.began
        scale = max(1.0, (len(profile.calls) + profile.lost) / len(known)) / max(seconds, 1e-9)
        took.append(sum(known.values()) * scale)
        shared = {key: s for key, s in known.items() if len(durations[key]) == len(profiles)}
        waited.append(sum(s - min(durations[key].values()) for key, s in shared.items()) * scale)
    return [
        f"on the GPU, collectives took {100 * statistics.fmean(took):.0f} % of the time, of which "
        f"{100 * statistics.fmean(waited):.0f} % waiting for the slowest rank (CUDA events of "
        f"{len(durations):,} collectives); how much of it computation overlapped is not known"
    ]
