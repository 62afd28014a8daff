"""Stretches of a file: what one call of the kernel reads or writes."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from dynamo.transfer.vector import IOV_MAX, Vector

RUN_BYTES_MAX = 16 << 20  # nothing can interrupt a call


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Run:
    """Bytes that follow one another in the file, and the pieces of memory they belong to."""

    offset: int
    memory: Vector


def runs(local: Vector, remote: Vector) -> Iterator[Run]:
    """The pieces of `local`, whose places in the file `remote` gives, from the file's start to its end.

    Pieces that meet in the file share a run, whatever their order in the list was.
    """
    pieces = sorted(zip(remote, local, strict=True), key=lambda pair: pair[0][0])
    cells = array("Q")
    offsets: list[int] = []
    counts: list[int] = []
    end = run_end_max = -1
    for (offset, length), piece in pieces:
        if offset != end or end + length > run_end_max or counts[-1] == IOV_MAX:
            offsets.append(offset)
            counts.append(0)
            run_end_max = offset + RUN_BYTES_MAX
        cells.extend(piece)
        counts[-1] += 1
        end = offset + length
    for offset, memory in zip(offsets, Vector(cells).split(counts), strict=True):
        yield Run(offset=offset, memory=memory)
