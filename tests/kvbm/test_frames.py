import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ProtocolError
from dynamo.kvbm.frames import frame, reply_reader, request_reader
from dynamo.protocols.kvbm import (
    FRAME_BYTES_MAX,
    Clear,
    Commit,
    Done,
    Figures,
    Found,
    Inspect,
    LookUp,
    Reply,
    Report,
    Request,
    StorageTier,
    TierChanges,
)
from tests.kvbm.scripted_service import attach

requests = st.one_of(
    st.builds(LookUp, st.integers(0, 2**63), st.binary(max_size=200), st.integers(0, 10**6)),
    st.builds(Commit, st.lists(st.integers(0, 2**32), max_size=9), st.binary(max_size=99), st.binary(max_size=99)),
    st.builds(Report, onboarded_blocks=st.integers(0, 2**63), onboard_s=st.floats(0, 1e9)),
    st.builds(Clear, tiers=st.lists(st.sampled_from(StorageTier)), namespace=st.binary(max_size=16)),
    st.just(Inspect()),
    st.just(attach()),
)


@given(st.lists(requests, max_size=8), st.lists(st.integers(0, 500), max_size=20))
def test_what_was_framed_is_read_however_it_is_cut(messages: list[Request], cuts: list[int]) -> None:
    stream, reader, read = b"".join(map(frame, messages)), request_reader(), []
    for cut in cuts:
        read += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert read + reader.feed(stream) == messages


def test_replies() -> None:
    replies: list[Reply] = [
        Found(1, [2], 0, [1, 0, 0, 0]),
        TierChanges(tier=StorageTier.DISK),
        Figures(pools=[]),
        Done(checked=3),
    ]
    assert reply_reader().feed(b"".join(map(frame, replies))) == replies


@given(st.binary(min_size=4, max_size=200))
def test_garbage_is_an_error_or_a_message_and_nothing_else(data: bytes) -> None:
    reader = request_reader()
    try:
        reader.feed(struct.pack("<I", len(data)) + data)
        reader.feed(data)
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "data",
    [struct.pack("<I", FRAME_BYTES_MAX + 1), struct.pack("<I", 1) + b"\xc1", struct.pack("<I", 0), frame(Done())],
)
def test_what_is_no_request(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        request_reader().feed(data)


def test_a_message_that_nobody_would_take_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match="too large"):
        frame(LookUp(1, bytes(FRAME_BYTES_MAX), 0))
