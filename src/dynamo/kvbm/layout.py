"""How the blocks of a pool look, in every tier."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolLayout:
    """All of a pool's blocks are alike."""

    namespace: bytes  # 16 bytes, see dynamo.kvbm.namespace
    payload_bytes: int  # of a block, all ranks together
    slot_bytes: int  # of its image, see dynamo.kvbm.slot
    description: str = ""  # of the namespace, for people
