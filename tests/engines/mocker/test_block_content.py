from hypothesis import given
from hypothesis import strategies as st

from dynamo.engines.mocker.block_content import ALIGN_BYTES, BlockContent

sizes = st.integers(1, 800).map(lambda count: count * ALIGN_BYTES)  # up to three pages and a bit
names = st.integers(0, 2**64 - 1)


@given(size_bytes=sizes, name=names)
def test_what_was_written_is_the_block_of_its_name_once(size_bytes: int, name: int) -> None:
    content, block = BlockContent(size_bytes), memoryview(bytearray(size_bytes))
    content.write(block, name)
    assert BlockContent(size_bytes).consume(block, name)
    assert not content.consume(block, name) or (name == 0 and size_bytes <= 4096)  # whose words are zeros


@given(size_bytes=sizes, name=names, other=names)
def test_a_block_of_another_name(size_bytes: int, name: int, other: int) -> None:
    content, block = BlockContent(size_bytes), memoryview(bytearray(size_bytes))
    content.write(block, name)
    assert content.consume(block, other) == (name == other)


@given(size_bytes=sizes, data=st.data(), change=st.integers(1, 255))
def test_every_byte_counts(size_bytes: int, data: st.DataObject, change: int) -> None:
    content, block = BlockContent(size_bytes), memoryview(bytearray(size_bytes))
    content.write(block, 7)
    block[data.draw(st.integers(0, size_bytes - 1))] ^= change
    assert not content.consume(block, 7)


def test_pages_that_have_changed_places() -> None:
    content, block = BlockContent(3 * 4096), memoryview(bytearray(3 * 4096))
    content.write(block, 7)
    second = bytes(block[4096:8192])
    block[4096:8192] = block[8192:]
    block[8192:] = second
    assert not content.consume(block, 7)


def test_pages_differ() -> None:
    content, block = BlockContent(3 * 4096), memoryview(bytearray(3 * 4096))
    content.write(block, 7)
    assert len({bytes(block[start : start + 4096]) for start in range(0, 3 * 4096, 4096)}) == 3
