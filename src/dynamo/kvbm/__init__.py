"""The block manager: KV blocks beyond the engine's memory, in tiers of host memory, disk, object store and peers."""
