"""The two hot loops of the router, native where the extension was built, in Python otherwise."""

from dynamo.router.block_index import BlockIndex, PyBlockIndex


def make_block_index(max_blocks: int) -> BlockIndex:
    return PyBlockIndex(max_blocks)
