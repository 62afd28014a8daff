"""Which regions an agent has registered, in memory that its peers read: mapped, by the kernel, or by NIXL."""

import ctypes

from dynamo.errors import ConnectionLostError, InvalidRequestError
from dynamo.transfer.job import RegionKey
from dynamo.transfer.metadata import REGIONS_MAX

COOKIE_BYTES = 16
KEYS_OFFSET = COOKIE_BYTES  # of the first key, bytes
LEDGER_BYTES = COOKIE_BYTES + 8 * REGIONS_MAX


class Ledger:
    """A cookie, which tells it from that of another agent, and then each region's key; 0 for those that are none."""

    def __init__(self, address: int) -> None:
        """It has LEDGER_BYTES there, zeros at first; only the agent itself may change them."""
        self._cookie = (ctypes.c_char * COOKIE_BYTES).from_address(address)
        self._keys = (ctypes.c_uint64 * REGIONS_MAX).from_address(address + KEYS_OFFSET)

    def open(self, cookie: bytes) -> None:
        self._cookie.raw = cookie

    def close(self) -> None:
        """Peers take this for the end of the process."""
        self._cookie.raw = bytes(COOKIE_BYTES)

    def set_key(self, region_id: int, key: int) -> None:
        self._keys[region_id] = key

    def has(self, region: RegionKey) -> bool:
        region_id, key = region
        return self._keys[region_id] == key

    def check(self, cookie: bytes, regions: tuple[RegionKey, ...]) -> None:
        """Raises ConnectionLostError if it has not this cookie, InvalidRequestError if not these regions."""
        if self._cookie.raw != cookie:
            raise ConnectionLostError("the peer's agent is gone")
        for region in regions:
            if not self.has(region):
                raise InvalidRequestError(f"the peer's region {region[0]} is not registered any more")
