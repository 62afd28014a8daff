"""The caller's end of a call, fed by hand."""

import tracemalloc
from collections.abc import Callable

from msgspec import Raw

from dynamo.runtime.codec import FrameReader, Item, encode_frame
from dynamo.runtime.request_plane.reply import Reply


class Port:
    def grant(self, stream_id: int, size_bytes: int) -> None: ...

    def stop(self, stream_id: int, *, kill: bool) -> None: ...

    def forget(self, stream_id: int) -> None: ...

    def soon(self, callback: Callable[[], None]) -> None: ...


async def test_waiting_item_does_not_keep_its_frame_in_memory() -> None:
    """A stalled reader gets a small item in each of the large frames that its neighbours share."""
    frames, frame_bytes = 100, 100_000
    frame = encode_frame([Item(1, Raw(b"\x01")), Item(2, Raw(b"\xc6\x00\x01\x86\xa0" + bytes(frame_bytes)))])
    reader, stalled = FrameReader(first_frame_bytes=1 << 20), Reply(Port(), 1)
    tracemalloc.start()
    try:
        for _ in range(frames):
            (mine, _) = reader.feed(bytes(bytearray(frame)))
            assert isinstance(mine, Item)
            stalled.feed(mine.payload)
            del mine, _
        assert len(stalled) == frames
        assert tracemalloc.get_traced_memory()[0] < 5 * frame_bytes
    finally:
        tracemalloc.stop()
    assert [bytes(payload) for payload in await stalled.next_batch()] == [b"\x01"] * frames
