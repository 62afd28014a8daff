"""Pieces of memory: how they are shared out."""

from array import array

from hypothesis import given
from hypothesis import strategies as st

from dynamo.transfer.vector import Vector


@given(st.lists(st.integers(1, 1000), max_size=50), st.integers(1, 5))
def test_parts_are_all_of_it_in_order_and_of_about_one_size(lengths: list[int], count: int) -> None:
    pieces = list(enumerate(lengths))
    whole = Vector(array("Q", [0, 0, *(number for piece in pieces for number in piece)]), 1)
    parts = whole.parts(count)
    assert [piece for part in parts for piece in part] == pieces
    assert 1 <= len(parts) <= count
    assert all(len(part) for part in parts) or not pieces
    for part in parts:
        assert part.size_bytes <= sum(lengths) / count + 2 * max(lengths, default=0)
