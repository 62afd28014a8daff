"""The extension does what the Python version does, and takes nothing amiss."""

import gc
import importlib
import os
import random
import subprocess
import sys
from array import array
from collections.abc import Callable
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo import tokens
from dynamo.router.block_index import PyBlockIndex
from dynamo.router.kernel import KERNEL, choose_kernel, make_block_index, sequence_hashes
from dynamo.tokens import HASH_SEED, hash_array, token_array

NATIVE = choose_kernel(None)
native: Any = importlib.import_module("dynamo.router._kernel") if NATIVE.name == "native" else None
needs_native = pytest.mark.skipif(native is None, reason=NATIVE.reason)

SEEDS = st.integers(0, 2**64 - 1)


def test_choice() -> None:
    assert choose_kernel("python").block_index is PyBlockIndex
    assert choose_kernel("python").reason == "DYN_KERNEL=python"
    index = make_block_index(3)
    assert (type(index) is PyBlockIndex) == (KERNEL.name == "python")
    assert sequence_hashes(token_array(range(9)), 4) == tokens.sequence_hashes(token_array(range(9)), 4)


@pytest.mark.parametrize(("wanted", "name"), [("python", "python"), ("", NATIVE.name)])
def test_the_environment_chooses(wanted: str, name: str) -> None:
    code = "from dynamo.router.kernel import KERNEL; print(KERNEL.name)"
    environ = {**os.environ, "DYN_KERNEL": wanted}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == name


@needs_native
@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_xxh3_of_every_length(seed: int) -> None:
    data = random.Random(seed).randbytes(4200)
    for size in [*range(4, 300), *range(300, 4200, 4), 1024, 1025, 2048, 2049]:
        part = data[-size:]
        assert native.xxh3_64(part, seed) == xxhash.xxh3_64_intdigest(part, seed), size


@needs_native
@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63, 2**64 - 1])
def test_xxh3_of_plain_bytes(seed: int) -> None:
    for size in (4, 8, 12, 16, 20, 64, 128, 132, 240, 244, 1024, 1028, 4096):
        for data in (bytes(size), b"\xff" * size):
            assert native.xxh3_64(data, seed) == xxhash.xxh3_64_intdigest(data, seed), size


@needs_native
@given(st.lists(st.integers(0, 2**32 - 1), max_size=400), st.integers(1, 80), SEEDS)
def test_sequence_hashes(token_ids: list[int], block_size: int, seed: int) -> None:
    prompt = token_array(token_ids)
    expected = tokens.sequence_hashes(prompt, block_size, seed)
    assert native.sequence_hashes(prompt, block_size, seed) == expected
    assert native.sequence_hashes(prompt.tobytes(), block_size, seed) == expected


@needs_native
def test_long_prompts() -> None:
    prompt = token_array(range(100_000))  # long enough for other threads to run meanwhile
    for block_size in (1, 16, 33, 512, 100_000):
        assert native.sequence_hashes(prompt, block_size, 7) == tokens.sequence_hashes(prompt, block_size, 7)
    assert not native.sequence_hashes(prompt, 100_001, 7)
    assert not native.sequence_hashes(prompt, sys.maxsize, 7)


@needs_native
def test_hashes_are_an_array() -> None:
    hashes = native.sequence_hashes(token_array(range(64)), 16, HASH_SEED)
    assert type(hashes) is array
    assert hashes.typecode == "Q"
    assert list(hashes[1:3]) == [hashes[1], hashes[2]]
    hashes.append(1)  # nothing holds on to it
    index = native.BlockIndex(10)
    index.store(0, 0, hashes)
    hashes.append(2)
    held = index.held(0, 0)
    held.append(3)
    found, _ = index.hash_and_match(token_array(range(64)), 16, HASH_SEED)
    found.append(4)


@needs_native
def test_any_buffer_of_unsigned_integers() -> None:
    index = native.BlockIndex(10)
    hashes = hash_array([1, 2, 3])
    unaligned = memoryview(b"x" + hashes.tobytes())[1:]
    for slot, data in enumerate([hashes, hashes.tobytes(), memoryview(hashes), unaligned, bytearray(hashes)]):
        index.store(slot, 0, data)
        assert index.match(data)[-1] == (slot, 3, 0, 0)
    unaligned = memoryview(b"x" + token_array(range(8)).tobytes())[1:]
    assert native.sequence_hashes(unaligned, 4, 1) == native.sequence_hashes(token_array(range(8)), 4, 1)


WRONG_HASHES = [
    [1, 2],
    None,
    "12345678",
    array("d", [1.0]),
    array("q", [1]),
    array("I", [1, 2]),
    b"1234567",
    memoryview(hash_array(range(10)))[::2],
    memoryview(hash_array(range(10)))[::-1],
]


@needs_native
@pytest.mark.parametrize("wrong", WRONG_HASHES)
def test_wrong_hashes(wrong: Any) -> None:
    index = native.BlockIndex(10)
    for call in (index.match, lambda h: index.store(0, 0, h), lambda h: index.remove(0, 0, h)):
        with pytest.raises((TypeError, ValueError, BufferError)):
            call(wrong)
    assert len(index) == 0


@needs_native
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (b"1234", 1),
        (b"1234", 1, 1, 1),
        ([1], 1, 1),
        (array("Q", [1]), 1, 1),
        (array("i", [1]), 1, 1),
        (b"12345", 1, 1),
        (memoryview(token_array(range(10)))[::2], 1, 1),
        (b"1234", 0, 1),
        (b"1234", -1, 1),
        (b"1234", 2**64, 1),
        (b"1234", "1", 1),
        (b"1234", 1, -1),
        (b"1234", 1, 2**64),
        (b"1234", 1, None),
    ],
)
def test_wrong_arguments_of_hashing(arguments: tuple[Any, ...]) -> None:
    for call in (native.sequence_hashes, native.BlockIndex(1).hash_and_match):
        with pytest.raises((TypeError, ValueError, BufferError, OverflowError)):
            call(*arguments)


@needs_native
@pytest.mark.parametrize(
    "call",
    [
        lambda i: native.BlockIndex(),
        lambda i: native.BlockIndex("1"),
        lambda i: native.BlockIndex(2**64),
        lambda i: native.BlockIndex(1, 2),
        lambda i: native.BlockIndex(max_blocks=1),
        lambda i: native.xxh3_64(b"123", 1),
        lambda i: i.store(0, 0),
        lambda i: i.store(None, 0, b""),
        lambda i: i.store(0, 1.5, b""),
        lambda i: i.clear("0", 1),
        lambda i: i.held(0),
        lambda i: setattr(i, "pruned", 3),
    ],
)
def test_wrong_calls(call: Callable[[Any], Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, AttributeError)):
        call(native.BlockIndex(1))


@needs_native
def test_an_argument_that_runs_code() -> None:
    """__index__ may do anything, to this index too."""
    index = native.BlockIndex(100)

    class Sly:
        def __index__(self) -> int:
            index.clear(0, 100)
            index.store(64, 1, hash_array(range(50)))
            return 0

    index.store(Sly(), Sly(), hash_array([1, 2]))
    assert index.match(hash_array([1, 2, 3])) == [(0, 2, 0, 0), (64, 0, 3, 0)]


@needs_native
@pytest.mark.parametrize("seed", range(4))
def test_both_stay_equal(seed: int) -> None:
    """Long random lives with prefixes as prompts have them: everything equal, order included."""
    rng = random.Random(seed)
    slots = rng.choice([3, 64, 200])
    max_blocks = rng.choice([50, 700, 100_000])
    one, other = native.BlockIndex(max_blocks), PyBlockIndex(max_blocks)
    for _ in range(3000):
        token_ids = token_array([rng.randrange(3) for _ in range(rng.randrange(60))])
        hashes = tokens.sequence_hashes(token_ids, 2)
        slot, tier = rng.randrange(slots), rng.choice([0, 0, 0, 1, 2])
        action = rng.random()
        if action < 0.5:
            one.store(slot, tier, hashes)
            other.store(slot, tier, hashes)
        elif action < 0.6:
            part = hashes[rng.randrange(30) :]
            one.remove(slot, tier, part)
            other.remove(slot, tier, part)
        elif action < 0.61:
            for index in (one, other):  # in portions, and these may be of other blocks in each
                while index.clear(slot, 7) == 7:
                    pass
        elif action < 0.8:
            assert one.match(hashes) == other.match(hashes)
        else:
            assert one.hash_and_match(token_ids, 2, HASH_SEED) == other.hash_and_match(token_ids, 2, HASH_SEED)
        assert (len(one), one.pruned) == (len(other), other.pruned)
    for slot in range(slots):
        for tier in range(3):
            assert sorted(one.held(slot, tier)) == sorted(other.held(slot, tier))


OUT_OF_MEMORY = """
import resource
from dynamo.router._kernel import BlockIndex
from dynamo.tokens import hash_array

index = BlockIndex(10**6)
index.store(3, 0, hash_array(range(1000)))
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, -1))
for slot, blocks in ((65535, 50_000), (0, 5_000_000)):
    try:
        index.store(slot, 0, hash_array([1]) * blocks)
    except MemoryError:
        print("refused")
assert (len(index), len(index.held(65535, 0)), len(index.held(0, 0)), len(index.held(3, 0))) == (1000, 0, 0, 1000)
assert index.match(hash_array(range(1001))) == [(3, 1000, 0, 0)]
"""


@needs_native
def test_out_of_memory() -> None:
    """An exception, and nothing has changed."""
    done = subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("refused\nrefused\n", "")


@needs_native
def test_nothing_leaks() -> None:
    """Counted in memory blocks of the interpreter: lists, tuples, arrays and numbers that stay would show."""
    prompt = token_array(range(1000))

    def work() -> None:
        for _ in range(50):
            index = native.BlockIndex(100)
            hashes, _ = index.hash_and_match(prompt, 4, HASH_SEED)
            for slot in range(20):
                index.store(slot, 0, hashes)
            index.match(hashes)
            index.held(3, 0)
            with pytest.raises(ValueError, match="slot"):
                index.store(-1, 0, hashes)

    work()
    gc.collect()
    before = sys.getallocatedblocks()
    work()
    gc.collect()
    assert sys.getallocatedblocks() - before < 50
