"""Scenario files: prose, and commands with what comes of them.

    world: kv events

    Paragraphs are prose, unless they have a line of dashes: before it commands, one a line, after it what they yield.

    worker a
    a stores 1 2 3
    index
    ----
    a: nothing

A bug report becomes such a file.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

DASHES = "----"


class World(Protocol):
    """What a scenario's commands act upon."""

    def run(self, command: str) -> Iterator[str]:
        """Does as the command says and gives the lines that come of it; ValueError for one that it does not know."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    world: str
    paragraphs: list[str]

    @classmethod
    def read(cls, path: Path) -> "Scenario":
        first, *paragraphs = path.read_text().strip().split("\n\n")
        key, _, world = first.partition(": ")
        if key != "world":
            raise ValueError(f"{path.name} does not begin with its world")
        return cls(world=world, paragraphs=paragraphs)

    def play(self, world: World) -> list[str]:
        """The paragraphs as they should be, by what the world makes of their commands."""
        return [_played(paragraph, world) for paragraph in self.paragraphs]


def _played(paragraph: str, world: World) -> str:
    lines = paragraph.split("\n")
    if DASHES not in lines:
        return paragraph
    commands = lines[: lines.index(DASHES)]
    return "\n".join([*commands, DASHES, *(line for command in commands for line in world.run(command))])
