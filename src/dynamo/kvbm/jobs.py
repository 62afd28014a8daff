"""What an engine's scheduler asks of the ranks that hold its cache, and what they say of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Save:
    """Copy blocks of the engine's cache into slots that were granted for them, the first into the first."""

    id: int  # of Saves and Loads together
    pool: str  # the memory whose slots these are, see dynamo.kvbm.client
    blocks: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Load:
    """Copy slots that are kept for it into blocks of the engine's cache. The request waits for all of them."""

    id: int
    pool: str
    request_id: str
    blocks: tuple[int, ...]
    slots: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank does before the engine's next step: it begins the saves, waits for the fences, begins the loads."""

    saves: tuple[Save, ...] = ()
    fences: tuple[int, ...] = ()  # jobs that have to be done with their blocks, which are given to somebody else
    loads: tuple[Load, ...] = ()


@dataclass(frozen=True, slots=True)
class Copied:
    """A job that has ended at one rank."""

    id: int
    ok: bool
    seconds: float = 0.0


@dataclass(slots=True)
class Done:
    """The jobs that have ended since the last time, of one rank or added up over several."""

    ranks: dict[int, int] = field(default_factory=dict)  # at how many
    failed: set[int] = field(default_factory=set)  # at any
    seconds: dict[int, float] = field(default_factory=dict)  # at the slowest

    def add(self, copied: Copied) -> None:
        self.ranks[copied.id] = self.ranks.get(copied.id, 0) + 1
        self.seconds[copied.id] = max(self.seconds.get(copied.id, 0.0), copied.seconds)
        if not copied.ok:
            self.failed.add(copied.id)

    def merge(self, other: "Done") -> None:
        for job, ranks in other.ranks.items():
            self.ranks[job] = self.ranks.get(job, 0) + ranks
            self.seconds[job] = max(self.seconds.get(job, 0.0), other.seconds[job])
        self.failed |= other.failed
