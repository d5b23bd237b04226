"""What a rank measures of its own cell, and the file that takes it to the kernel.

A rank appends to its file while the cell runs, so that there is a profile of a rank that was killed
too. Each line of the file is a JSON object; times are microseconds, since the beginning of the
profile where it is in this rank (`began`).
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from json import dumps, loads  # bound here: a cell may replace the module's
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

UNKNOWN = -1  # of an index: none, or not known

# What a line has called that loads data: a loader, and one with worker processes.
LOADER, LOADER_WORKERS = "DataLoader", "DataLoader workers"
# Begins the key of what is no process group: a send to a rank, or a receive from it.
PEER = "peer:"


class Spent(enum.Enum):
    """What the main thread spends its time in.

    LOADING: in the data loader. READING: in a function that reads files, elsewhere. DEVICE: it
    waits for the GPU, which computes or communicates. IDLE: it sleeps, or waits for something that
    is none of the others.
    """

    COMPUTE = "compute"
    COLLECTIVE = "collectives"
    LOADING = "data loader"
    SAVING = "saving"
    PRINTING = "printing"
    IDLE = "idle"
    DEVICE = "waiting for the GPU"
    READING = "reading files"


_KINDS = tuple(Spent)


class Place(NamedTuple):
    """A line of the user's, and what it has called.

    Attributes:
        file: File name of its code.
        line: Number of the line; 0 outside of the user's code.
        call: The function that it has called; empty if there is none.
    """

    file: str = ""
    line: int = 0
    call: str = ""


class Sample(NamedTuple):
    """One look at the main thread.

    Attributes:
        time: When, in seconds since the epoch.
        seconds: The time that it stands for: since the look before.
        spent: What the main thread was doing.
        place: Index of where it was.
        group: Index of the process group with a collective that had not completed, or of the
            `PEER`; `UNKNOWN` if there was none, or if nobody looked.
        number: Number of the oldest such collective.
    """

    time: float
    seconds: float
    spent: Spent
    place: int
    group: int = UNKNOWN
    number: int = 0


class Call(NamedTuple):
    """A collective that the rank has called.

    Attributes:
        group: Index of its process group.
        number: Its place in the group's sequence; see `Operation.number`.
        name: torch's name for it.
        created: When it was called, in seconds since the epoch.
        bytes: Size of the tensors that go in.
        duration_s: What it took on the GPU, by CUDA events, in seconds; None without them.
    """

    group: int
    number: int
    name: str
    created: float
    bytes: int = 0
    duration_s: float | None = None


class Group(NamedTuple):
    """A process group.

    Attributes:
        key: As in `GroupRecord`: the same on all ranks.
        title: What a person calls it.
        ranks: Its members; empty if they are not known.
    """

    key: str
    title: str = ""
    ranks: tuple[int, ...] = ()


@dataclass(kw_only=True)
class RankProfile:
    """What a rank has measured.

    Attributes:
        rank: Which rank.
        device: `cpu`, or the name of its GPU.
        began: When its cell began, in seconds since the epoch.
        threads: Number of threads that an operation of torch uses on the CPU.
        node: Name of its node; empty on the kernel's own machine.
        processors: Number of processors that it may use.
        ended: When its cell ended; of a rank that was killed, when it was last heard of.
        complete: Whether it has reported the end.
        places: Where its main thread was, as samples refer to it.
        groups: Its process groups, as samples and calls refer to them.
        samples: In the order of time.
        calls: The collectives whose record was read in time, in the order of the calls.
        last: Number of the last collective that it has called, by index of the group.
        lost: Number of collectives whose record was overwritten before it was read.
        steps: When an optimizer made a step, in seconds since the epoch.
        queued_s: For how long the main thread was ready to run but had no processor, in seconds;
            None if it is not known.
        beside: For how long the main thread would have computed and did not run, in seconds, by the
            place of another thread that ran.
    """

    rank: int
    device: str = "cpu"
    began: float
    threads: int = 1
    node: str = ""
    processors: int = 1
    ended: float = 0.0
    complete: bool = False
    places: list[Place] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    last: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    steps: list[float] = field(default_factory=list)
    queued_s: float | None = None
    beside: dict[int, float] = field(default_factory=dict)


class ProfileWriter:
    """Appends what a rank measures to its file.

    Args:
        path: The file.
        rank: Which rank.
        device: `cpu`, or the name of its GPU.
        began: When its cell began, in seconds since the epoch.
        machine: Other fields of `RankProfile`: of its threads, node, processors.
    """

    def __init__(
        self, path: Path, rank: int, device: str, began: float, **machine: int | str
    ) -> None:
        self._path = path
        self._began = began
        self._places: dict[Place, int] = {}
        self._groups: dict[str, int] = {}
        head = {"rank": rank, "device": device, "began": began, **machine}
        self._lines: list[dict[str, Any]] = [head]
        self._new: dict[str, list[Any]] = {}

    def place(self, place: Place) -> int:
        """Return the index of a place."""
        if (index := self._places.get(place)) is None:
            index = self._places[place] = len(self._places)
            self._add("places", list(place))
        return index

    def group(self, key: str, title: str = "", ranks: tuple[int, ...] = ()) -> int:
        """Return the index of a process group."""
        if (index := self._groups.get(key)) is None:
            index = self._groups[key] = len(self._groups)
            self._add("groups", [key, title, ranks])
        return index

    def sample(self, sample: Sample) -> None:
        """Add a sample."""
        row = [self._us(sample.time), round(sample.seconds * 1e6), _KINDS.index(sample.spent)]
        row += [sample.place] if sample.group == UNKNOWN else list(sample[3:])
        self._add("samples", row)

    def call(self, call: Call) -> None:
        """Add a collective; the same one again replaces it."""
        duration = [] if call.duration_s is None else [round(call.duration_s * 1e6)]
        created = self._us(call.created)
        self._add("calls", [call.group, call.number, call.name, created, call.bytes, *duration])

    def step(self, time: float) -> None:
        """Add a step of an optimizer."""
        self._add("steps", self._us(time))

    def end(
        self,
        time: float,
        lost: int,
        last: dict[int, int],
        queued_s: float | None,
        beside: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Add what is known at the end."""
        fields = {"ended": self._us(time), "lost": lost, "queued_s": queued_s}
        self.flush({**fields, "last": list(last.items()), "beside": list(beside.items())})

    def flush(self, more: dict[str, Any] | None = None) -> None:
        """Write to the file what has been added.

        Raises:
            OSError: The file cannot be written.
        """
        lines = [*self._lines, {**self._new, **(more or {})}]
        self._lines, self._new = [], {}
        text = "".join(dumps(line) + "\n" for line in lines if line)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _add(self, kind: str, row: Any) -> None:  # noqa: ANN401 -- of each kind its own
        self._new.setdefault(kind, []).append(row)

    def _us(self, time: float) -> int:
        return round((time - self._began) * 1e6)


def read(lines: Iterable[str]) -> RankProfile | None:
    """Read the lines of a rank's file; what is no longer a line is left out.

    Returns:
        The profile; None if there is none.
    """
    profile: RankProfile | None = None
    calls: dict[tuple[int, int], Call] = {}
    for text in lines:
        try:
            line = loads(text)
        except ValueError:  # the rank was killed in the middle of it
            continue
        if profile is None:
            profile = RankProfile(ended=line["began"], **line)
        else:
            _take(profile, line, calls)
    if profile is not None:
        profile.calls = sorted(calls.values(), key=lambda call: call.created)
    return profile


def _take(profile: RankProfile, line: dict[str, Any], calls: dict[tuple[int, int], Call]) -> None:
    began = profile.began
    profile.places += [Place(*row) for row in line.get("places", [])]
    groups = line.get("groups", [])
    profile.groups += [Group(key, title, tuple(ranks)) for key, title, ranks in groups]
    profile.steps += [began + us / 1e6 for us in line.get("steps", [])]
    for us, span, kind, *rest in line.get("samples", []):
        profile.samples.append(Sample(began + us / 1e6, span / 1e6, _KINDS[kind], *rest))
    for group, number, name, us, size, *duration in line.get("calls", []):
        took = duration[0] / 1e6 if duration else None
        calls[group, number] = Call(group, number, name, began + us / 1e6, size, took)
    if profile.samples:
        profile.ended = max(profile.ended, profile.samples[-1].time)
    if "ended" in line:
        profile.ended, profile.complete = began + line["ended"] / 1e6, True
        profile.lost, profile.queued_s = line["lost"], line["queued_s"]
        profile.last, profile.beside = dict(line["last"]), dict(line["beside"])
