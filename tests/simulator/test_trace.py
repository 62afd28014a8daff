"""Reading traces, and prompts made of them."""

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ConfigError
from dynamo.simulator.trace import TraceRequest, best_hit_ratio, distinct_blocks, longest_context, read_trace
from dynamo.tokens import sequence_hashes

BLOCK_SIZE = 4
LINE = '{"timestamp": 1500, "input_length": 6, "output_length": 3, "hash_ids": [7, 9]}\n'


def request_of(block_ids: Sequence[int], prompt_tokens: int | None = None) -> TraceRequest:
    return TraceRequest(
        arrival_s=0.0,
        prompt_tokens=prompt_tokens or len(block_ids) * BLOCK_SIZE,
        output_tokens=1,
        block_ids=tuple(block_ids),
    )


def shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading items are equal."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def test_reads_a_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}\n")
    assert read_trace(path, block_size=BLOCK_SIZE) == [
        TraceRequest(arrival_s=1.5, prompt_tokens=6, output_tokens=3, block_ids=(7, 9))
    ]


def test_requests_are_in_order_of_arrival(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(LINE + LINE.replace("1500", "20"))
    assert [request.arrival_s for request in read_trace(path, block_size=BLOCK_SIZE)] == [0.02, 1.5]


def test_limit_leaves_the_rest_unread(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}{LINE}nonsense\n")
    assert len(read_trace(path, limit=2, block_size=BLOCK_SIZE)) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nonsense", "malformed"),
        ("[1, 2]", "Expected `object`"),
        ('{"timestamp": 0}', "input_length"),
        (LINE.replace("1500", "-1"), "at least 0"),
        (LINE.replace(": 3", ": 0"), "at least 1"),
        (LINE.replace("[7, 9]", "[7]"), "1 hash ids do not fit 6 tokens in blocks of 4"),
        (LINE.replace("[7, 9]", "[7, 4294967296]"), "less than 2^32"),
    ],
)
def test_names_the_line_that_is_wrong(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(f"{LINE}{line}\n")
    with pytest.raises(ConfigError) as raised:
        read_trace(path, block_size=BLOCK_SIZE)
    assert str(raised.value).startswith(f"{path}:2: ")
    assert message in str(raised.value)


def test_a_file_without_requests(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match="no requests"):
        read_trace(tmp_path / "empty.jsonl")
    with pytest.raises(ConfigError, match="No such file"):
        read_trace(tmp_path / "missing.jsonl")


@given(st.lists(st.integers(0, 2), min_size=1, max_size=5), st.lists(st.integers(0, 2), min_size=1, max_size=5))
def test_prompts_share_what_their_ids_share(first: list[int], second: list[int]) -> None:
    hashes = [sequence_hashes(request_of(ids).prompt(BLOCK_SIZE), BLOCK_SIZE) for ids in (first, second)]
    assert shared(*hashes) == shared(first, second)


def test_the_last_block_of_a_prompt_is_partial() -> None:
    assert request_of([7, 9], prompt_tokens=6).prompt(BLOCK_SIZE).tolist() == [7, 7, 7, 7, 9, 9]


def test_best_hit_ratio() -> None:
    first, longer = request_of([1, 2]), request_of([1, 2, 3])
    assert best_hit_ratio([first, longer], BLOCK_SIZE) == 8 / 20
    assert best_hit_ratio([longer, first], BLOCK_SIZE) == 4 / 20  # the last token of a prompt is always computed
    assert best_hit_ratio([first, request_of([9, 2])], BLOCK_SIZE) == 0  # nothing without what precedes it


def test_sizes() -> None:
    requests = [request_of([1, 2]), request_of([1, 3], prompt_tokens=7)]
    assert distinct_blocks(requests) == 3
    assert longest_context(requests) == 9


def test_the_slice_is_what_it_is_meant_to_be(mooncake: list[TraceRequest]) -> None:
    assert len(mooncake) == 500
    assert best_hit_ratio(mooncake) == pytest.approx(0.164, abs=0.001)
