"""Stretches of a file."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.transfer import runs as module
from dynamo.transfer.runs import runs
from dynamo.transfer.vector import IOV_MAX, Vector


def vector(pieces: list[tuple[int, int]]) -> Vector:
    return Vector(array("Q", [value for piece in pieces for value in piece]))


def found(memory: list[tuple[int, int]], file: list[tuple[int, int]]) -> list[tuple[int, list[tuple[int, int]]]]:
    return [(run.offset, list(run.memory)) for run in runs(vector(memory), vector(file))]


def test_what_meets_in_the_file_is_one_run() -> None:
    memory = [(900, 10), (500, 20), (700, 5), (100, 7)]
    file = [(20, 10), (0, 20), (40, 5), (30, 7)]
    assert found(memory, file) == [(0, [(500, 20), (900, 10), (100, 7)]), (40, [(700, 5)])]
    assert found([], []) == []


def test_runs_have_a_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_BYTES_MAX", 25)
    file = [(offset, 10) for offset in range(0, 60, 10)]
    assert [offset for offset, _ in found(file, file)] == [0, 20, 40]
    many = [(offset, 1) for offset in range(IOV_MAX + 5)]
    monkeypatch.setattr(module, "RUN_BYTES_MAX", 1 << 20)
    assert [len(pieces) for _, pieces in found(many, many)] == [IOV_MAX, 5]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20))))
def test_every_piece_is_moved_once(file: list[tuple[int, int]]) -> None:
    memory = [(1000 * i, length) for i, (_, length) in enumerate(file)]
    moved = [
        (offset + sum(length for _, length in pieces[:i]), piece)
        for offset, pieces in found(memory, file)
        for i, piece in enumerate(pieces)
    ]
    assert sorted(moved) == sorted((offset, piece) for (offset, _), piece in zip(file, memory, strict=True))
