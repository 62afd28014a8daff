"""The two hot loops of the router, hashing a prompt and keeping the index: native where the extension was built, in
Python otherwise. DYN_KERNEL=python forces Python.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from dynamo import tokens
from dynamo.router.block_index import BlockIndex, PyBlockIndex
from dynamo.tokens import HASH_SEED, HashArray, TokenArray

VARIABLE = "DYN_KERNEL"
PYTHON = "python"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """One implementation, and why it was chosen."""

    name: str
    reason: str
    block_index: Callable[[int], BlockIndex]
    sequence_hashes: Callable[[TokenArray, int, int], HashArray]


def choose_kernel(wanted: str | None) -> Kernel:
    """The native one if it can be had and `wanted` does not say "python"."""
    if wanted == PYTHON:
        return _python(f"{VARIABLE}={PYTHON}")
    try:
        from dynamo.router import _kernel
    except ImportError as error:
        return _python(f"the extension cannot be imported: {error}")
    return Kernel(
        name="native",
        reason="the extension was built",
        block_index=_kernel.BlockIndex,
        sequence_hashes=_kernel.sequence_hashes,
    )


def _python(reason: str) -> Kernel:
    return Kernel(name=PYTHON, reason=reason, block_index=PyBlockIndex, sequence_hashes=tokens.sequence_hashes)


KERNEL = choose_kernel(os.environ.get(VARIABLE))


def make_block_index(max_blocks: int) -> BlockIndex:
    return KERNEL.block_index(max_blocks)


def sequence_hashes(token_ids: TokenArray, block_size: int, seed: int = HASH_SEED) -> HashArray:
    """`dynamo.tokens.sequence_hashes`, as fast as can be."""
    return KERNEL.sequence_hashes(token_ids, block_size, seed)
