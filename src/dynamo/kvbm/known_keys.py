"""Keys of blocks that are in the pool, as far as an engine has seen. Pure."""

from collections.abc import Iterable

KEYS_MAX = 1 << 16


class KnownKeys:
    """A bounded set that forgets what was longest of no use. Where it is wrong, a block is saved twice, or not."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys: dict[bytes, None] = {}
        self._keys_max = keys_max

    def __contains__(self, key: bytes) -> bool:
        if key not in self._keys:
            return False
        self._keys[key] = self._keys.pop(key)  # the last one now
        return True

    def add(self, keys: Iterable[bytes]) -> None:
        for key in keys:
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > self._keys_max:
            del self._keys[next(iter(self._keys))]

    def discard(self, key: bytes) -> None:
        self._keys.pop(key, None)

    def clear(self) -> None:
        self._keys.clear()
