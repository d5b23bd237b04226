"""What limits a run: which cause costs most, from where the time of its ranks went. Pure.

As in TraceML, a part of the time below 10 % is not worth a word, and one above 20 % gives the run
its name. Where the ranks compute for longer than that, the verdict says so too: what can be saved
is not what takes most of the time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddp_magic.display.profiles import causes
from ddp_magic.display.profiles.facts import Bottleneck, Machine, Traffic
from ddp_magic.display.profiles.rank_times import LineTime, RankTimes
from ddp_magic.display.profiles.sentences import NOTICE, LineName, Sentences
from ddp_magic.wire.profile import Spent

CRITICAL = 0.2
MIN_SAMPLES = 25  # of one rank at least


def judge(
    times: Sequence[RankTimes],
    lines: Mapping[Spent, Sequence[LineTime]],
    name: LineName,
    traffic: Traffic,
    machine: Machine,
) -> Bottleneck:
    """Return what limits a run.

    Args:
        times: Where the ranks' time went.
        lines: The lines of the user's code, by what their time went into.
        name: Returns a line as a person reads it.
        traffic: The collectives.
        machine: What the ranks run on.
    """
    samples = max((t.samples for t in times), default=0)
    if samples < MIN_SAMPLES:
        seconds = max((t.total_s for t in times), default=0.0)
        seen = f"in {samples} sample{'' if samples == 1 else 's'}"
        verdict = f"too short to say: a rank was seen for {seconds:.1f} s, {seen}"
        return Bottleneck(verdict, "", "profile a longer run")
    say = Sentences(times, lines, name, traffic, machine)
    found = {
        say.loading: causes.cause_of(times, Spent.LOADING),
        say.reading: causes.cause_of(times, Spent.READING),
        say.saving: causes.cause_of(times, Spent.SAVING),
        say.printing: causes.cause_of(times, Spent.PRINTING),
        say.idling: causes.cause_of(times, Spent.IDLE),
        say.straggling: causes.rest(times),
        say.communicating: causes.own_cause(times, {t.rank: t.share(t.sending_s) for t in times}),
    }
    tell = max(found, key=lambda tell: found[tell].cost)
    locked = max(times, key=lambda t: t.locked)
    # What others wait for, and what its collectives wait for, it may be that holds them up.
    others = (say.straggling, say.communicating)
    if locked.locked >= CRITICAL and (tell in others or found[tell].cost < NOTICE):
        return say.lacking_the_lock(locked)
    cost, work = found[tell].cost, say.work.cost
    # A lack of processors makes all else longer, and so it is told if nothing else is; also of
    # collectives, in which the others wait for a rank that has none.
    queued = causes.own_cause(times, {t.rank: t.queued or 0.0 for t in times})
    least = min(work, queued.cost) if tell == say.communicating else NOTICE
    if queued.cost >= CRITICAL and cost < max(NOTICE, least):
        return say.queueing(queued)
    if cost < NOTICE:
        return say.computing(sum(cause.cost for cause in found.values()))
    told = tell(found[tell])
    if cost >= max(CRITICAL, work):
        return told
    return say.in_part(told, "partly" if cost >= CRITICAL else "somewhat")
