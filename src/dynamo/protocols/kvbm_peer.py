"""What the block managers of different hosts say to each other, by endpoints of the runtime: one for each pool."""

import msgspec

from dynamo.protocols.kvbm import KEY_BYTES

KEYS_MAX = 4096  # of a request


class FindBlocks(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """How many of these, from the first on, are in host memory? The answer is a BlocksFound."""

    keys: bytes  # KEY_BYTES each


class PinBlocks(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Keep them, as far as they are there, until this call is ended. The only answer is a BlocksPinned."""

    keys: bytes


class BlocksFound(msgspec.Struct, frozen=True, array_like=True, tag=100):
    count: int


class BlocksPinned(msgspec.Struct, frozen=True, array_like=True, tag=101):
    """The images of the first of them, to be read by dynamo.transfer."""

    metadata: bytes  # as Agent.metadata()
    blocks: bytes  # as Blocks.encode()


PeerRequest = FindBlocks | PinBlocks
PeerReply = BlocksFound | BlocksPinned


def split_keys(keys: bytes) -> list[bytes]:
    """The keys that travelled one after the other; one that was cut is not among them."""
    return [keys[i : i + KEY_BYTES] for i in range(0, len(keys) - KEY_BYTES + 1, KEY_BYTES)]
