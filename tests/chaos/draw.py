"""A random fault, from a seed and a number. Pure."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.programs import PROGRAMS, Program, cell_of, program_text

ENDLESS = 1_000_000  # steps
STARTING_S = 2.0  # a fault comes this late at most, after the kernel has begun with the cell
RUNNING_S = 1.5  # or after the rank has begun with it
STEP_S = 0.02


@dataclass(frozen=True)
class Draw:
    """What goes wrong, when, and where.

    Attributes:
        seed: The seed of the series.
        number: Its number in the series.
        fault: A name in `FAULTS`.
        program: A name in `PROGRAMS`.
        kept: How the cell is started; see `cell_of`.
        ranks: Number of ranks.
        rank: The rank with the fault.
        early: Whether the time counts from the cell's start, else from the rank's.
        when_s: When the fault comes, in seconds.
        gap_s: Time between two faults: two presses of Stop, the end of two processes, in seconds.
        steps: How many steps the program takes.
        spare: How many more descriptors a kernel gets that has too few.
        neighbor: Whether another notebook runs a cell at the same time.
    """

    seed: int
    number: int
    fault: str
    program: str
    kept: str
    ranks: int
    rank: int
    early: bool
    when_s: float
    gap_s: float
    steps: int
    spare: int
    neighbor: bool

    def __str__(self) -> str:
        since = "the cell's start" if self.early else "the rank's start"
        return (
            f"#{self.number} {self.fault}, {self.when_s:.2f} s after {since} · "
            f"rank {self.rank} of {self.ranks} · {self.program} · {self.kept}"
            + (" · beside another notebook" if self.neighbor else "")
        )

    @property
    def cause(self) -> Fault:
        """What goes wrong."""
        return FAULTS[self.fault]

    @property
    def what(self) -> Program:
        """What the ranks do."""
        return PROGRAMS[self.program]

    @property
    def needs_stop(self) -> bool:
        """Whether its ranks wait for ever: a rank has left a collective, and its process lives."""
        left = self.fault == "sys.exit(0)" and self.what.collective and self.ranks > 1
        return left and self.kept == "session"

    @property
    def time_limit_s(self) -> float | None:
        """The run's time limit, in seconds."""
        return round(0.5 + self.when_s, 2) if self.fault == "--time-limit" else None

    @property
    def cell(self) -> str:
        """The notebook's cell."""
        before = ""
        if self.cause.timer:
            timer = f"threading.Timer({self.when_s}, {self.cause.timer})"
            before = f"timer = {timer}\ntimer.daemon = True\nif rank == culprit: timer.start()"
        text = program_text(
            self.program,
            rank=self.rank,
            when_s=self.when_s,
            steps=self.steps,
            fault=self.cause.code,
            before=before,
        )
        return cell_of(text, self.kept, self.ranks, self.time_limit_s)


def fits(fault: Fault, program: Program) -> bool:
    """Return whether a fault can come in a program, and the program ends then."""
    if fault.timer and program.deaf == "culprit":  # no thread of the rank can run
        return False
    if (fault.of_worker and not program.workers) or (fault.closes_stdout and program.writes):
        return False
    return program.steps or not (fault.in_python or not fault.ends)


def draw(seed: int, number: int) -> Draw:
    """Return a fault. Each `len(FAULTS)` numbers have every kind of fault once."""
    series, place = divmod(number, len(FAULTS))
    kinds = sorted(FAULTS)
    random.Random(f"{seed} {series}").shuffle(kinds)
    name = kinds[place]
    fault = FAULTS[name]
    chance = random.Random(f"{seed} {series} {name}")
    program = chance.choice([n for n, p in PROGRAMS.items() if fits(fault, p)])
    kinds_of_group = ["one-shot", "one-shot", "one-shot", "launch"]
    if fault.act != "kill_starting_agent":  # the player could not tell which it is
        kinds_of_group += ["launch beside another"]
    if PROGRAMS[program].in_session:
        kinds_of_group += ["session", "session", "session"]
    ranks = chance.choices([1, 2, 3, 4], [3, 8, 5, 2])[0]
    early = chance.random() < fault.early
    steps = ENDLESS if fault.ends else chance.randint(50, 100)
    latest_s = min(STARTING_S if early else RUNNING_S, steps * STEP_S * 0.8)
    return Draw(
        seed=seed,
        number=number,
        fault=name,
        program=program,
        kept=chance.choice(kinds_of_group),
        ranks=ranks,
        rank=chance.randrange(ranks),
        early=early,
        when_s=round(chance.uniform(0, latest_s), 2),
        gap_s=round(chance.uniform(0, 2), 2),
        steps=steps,
        spare=chance.randint(2, 14),
        neighbor=chance.random() < 0.15,
    )
