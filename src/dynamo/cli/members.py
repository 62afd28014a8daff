"""A worker process of a deployment, and which of several is to go."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynamo.cli.process import Child, State
from dynamo.protocols.model_card import WorkerType


@dataclass(slots=True, kw_only=True, eq=False)
class Member:
    """A worker process."""

    child: Child
    role: WorkerType  # that it has, or is about to have
    number: int  # in its name: the smallest that no other of its role has
    position: int  # of its ports: the smallest that no other has
    converting_since_s: float | None = None  # by time.monotonic(); None: it is in its role
    trouble: str = ""  # what has come of its last conversion, if it went wrong

    @property
    def serves(self) -> bool:
        """Whether it takes requests, and was not told to end."""
        return self.child.state is State.UP and self.converting_since_s is None

    @property
    def stays(self) -> bool:
        """Whether it was not told to end."""
        return not self.child.stopping

    @property
    def problem(self) -> str:
        """What is wrong with it; "": nothing that a restart would not mend."""
        return f"{self.child.name} {found}" if (found := self.child.failure or self.trouble) else ""

    def not_serving_s(self) -> float:
        """For how long it has not; of one that does not."""
        since_s = self.child.down_since_s
        if self.child.state is State.UP and self.converting_since_s is not None:
            since_s = self.converting_since_s
        return time.monotonic() - since_s


def surplus(members: Sequence[Member], count: int) -> Iterator[Member]:
    """Which to end when there are so many too many; `members` in the order of their start.

    Those that do not serve go first, nobody misses them; then the newest, whose KV caches have seen least. How busy
    each is does not matter: all of them finish what they have.
    """
    order = list(reversed(members))
    order.sort(key=lambda member: member.serves)  # stable
    yield from order[: max(0, count)]


def smallest_but(taken: set[int], *, at_least: int) -> int:
    """The smallest number that is not taken."""
    number = at_least
    while number in taken:
        number += 1
    return number
