"""What a simulated worker has below its device's memory."""

from dataclasses import dataclass, field

from dynamo.config import option
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.errors import ConfigError
from dynamo.kvbm.config import KvbmOptions
from dynamo.kvbm.manager import ManagerConfig
from dynamo.kvbm.slot import slot_bytes

HOST_BANDWIDTH_GB_S = 40.0  # PCIe 5.0 with 16 lanes, pinned memory, as far as it gets in practice
DISK_BANDWIDTH_GB_S = 6.0  # one NVMe disk
HOST_LATENCY_MS = 0.02
DISK_LATENCY_MS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersConfig:
    """Its host memory and its disk: how much they hold, and how long copies take, each way."""

    manager: ManagerConfig
    host_blocks: int
    disk_blocks: int = 0  # 0: there is no disk
    host: TransferModel = field(default_factory=TransferModel)
    disk: TransferModel = field(default_factory=TransferModel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedTierOptions(KvbmOptions):
    """The same flags without a service: each simulated worker has tiers of its own, and no byte is kept anywhere."""

    host_bandwidth: float = option(
        HOST_BANDWIDTH_GB_S,
        flag="--kvbm-host-bandwidth",
        metavar="GB/S",
        minimum=0,
        help="simulated: between device and host memory, each way; 0: no time at all",
    )
    disk_bandwidth: float = option(
        DISK_BANDWIDTH_GB_S,
        flag="--kvbm-disk-bandwidth",
        metavar="GB/S",
        minimum=0,
        help="simulated: between host memory and disk, each way; 0: no time at all",
    )

    def __post_init__(self) -> None:
        """Raises ConfigError for what cannot be simulated. A disk needs no directory here."""
        if self.object_url or self.peers:
            raise ConfigError("--kvbm-object-url and --kvbm-peers cannot be simulated: only host memory and disk can")
        if self.disk_gb and not self.host_gb:
            raise ConfigError("--kvbm-disk-gb needs --kvbm-host-gb: it lies below it")

    def tiers(self, block_size: int, bytes_per_token: int, *, speedup_ratio: float = 1.0) -> TiersConfig | None:
        """Of each worker, for blocks of `block_size` tokens; None where there are none.

        Raises ConfigError where a tier does not hold one block.
        """
        if not self.is_enabled:
            return None
        options = self.pool_options()
        size = slot_bytes(block_size * bytes_per_token)
        for flag, size_bytes in (("--kvbm-host-gb", options.host_bytes), ("--kvbm-disk-gb", options.disk_bytes)):
            if 0 < size_bytes < size:
                raise ConfigError(f"{flag} has no room for one block of {size} bytes")
        return TiersConfig(
            manager=ManagerConfig(
                slot_bytes=size,
                policy=options.policy,
                disk_filter=options.disk_filter,
                disk_offload=options.disk_offload,
                onboard_timeout_s=options.onboard_timeout_ms / 1000,
            ),
            host_blocks=options.host_bytes // size,
            disk_blocks=options.disk_bytes // size,
            host=TransferModel(
                bandwidth_gb_s=self.host_bandwidth,
                bytes_per_token=bytes_per_token,
                latency_ms=HOST_LATENCY_MS,
                speedup_ratio=speedup_ratio,
            ),
            disk=TransferModel(
                bandwidth_gb_s=self.disk_bandwidth,
                bytes_per_token=bytes_per_token,
                latency_ms=DISK_LATENCY_MS,
                speedup_ratio=speedup_ratio,
            ),
        )
