"""Cross memory attach beside what all backends do."""

from array import array
from typing import Any

import pytest

from dynamo.errors import InvalidRequestError
from dynamo.testing import within
from dynamo.transfer import Agent, Blocks, cma


async def test_no_more_is_written_to_what_was_deregistered_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cma, "_CALL_BYTES_MAX", 1000)
    write = cma._write
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        ours, theirs = near.register(b"x" * 3000), far.register(bytearray(3000))

        def write_and_deregister(*arguments: Any) -> Any:
            written = write(*arguments)
            far.deregister(theirs)
            return written

        monkeypatch.setattr(cma, "_write", write_and_deregister)
        near.add_peer(far.metadata())
        blocks = range(0, 3000, 1000)
        with pytest.raises(InvalidRequestError, match="not registered any more"):
            await within(near.write(ours.blocks(blocks, 1000), theirs.blocks(blocks, 1000)))
        assert bytes(theirs.view()) == b"x" * 1000 + bytes(2000)


async def test_more_regions_than_the_kernel_takes_pieces_in_one_call() -> None:
    async with Agent("a", ["cma"]) as near, Agent("b", ["cma"]) as far:
        memory = array("H", range(1500))
        theirs = [far.register(memory[i : i + 1]) for i in range(len(memory))]
        near.add_peer(far.metadata())
        ours = near.register(array("H", bytes(2 * len(memory))))
        remote = Blocks("b", tuple(span for region in theirs for span in region.all().spans))
        await within(near.read(ours.blocks(range(0, 2 * len(memory), 2), 2), remote))
        assert ours.view().tobytes() == memory.tobytes()
