"""How long the KV cache of a prompt takes from worker to worker."""

from dataclasses import dataclass

from dynamo.errors import ConfigError

BYTES_PER_TOKEN = 131072  # Llama 3.1 8B in bfloat16: 32 layers, 8 heads of 128, keys and values


class Link:
    """A worker's way to the others. Its transfers have it one after the other, in the order in which they are begun.

    That is simple, and among transfers of one size each ends as early as if they shared it, or earlier. One that waits
    for the link of its other end keeps this one from working meanwhile, which a network card would not: where many
    transfers cross, this is the slow side of the truth.
    """

    __slots__ = ("free_s",)

    def __init__(self) -> None:
        self.free_s = 0.0  # when all that was begun is done


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferModel:
    """A network in which each worker has a link; a transfer takes a fixed latency and then its turn on the link."""

    bandwidth_gb_s: float = 64.0  # of a worker's link, in 10^9 bytes per second; 0: transfers take no time at all
    bytes_per_token: int = BYTES_PER_TOKEN
    latency_ms: float = 0.2
    speedup_ratio: float = 1.0  # a transfer takes 1/speedup_ratio of its time; 0: no time at all

    def __post_init__(self) -> None:
        """Raises ConfigError for figures that no network has."""
        for name in ("bandwidth_gb_s", "latency_ms", "speedup_ratio"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be a number of at least 0, not {getattr(self, name)}")
        if self.bytes_per_token < 1:
            raise ConfigError(f"bytes_per_token must be at least 1, not {self.bytes_per_token}")

    @property
    def instant(self) -> bool:
        """Whether transfers take no time."""
        return not self.bandwidth_gb_s or not self.speedup_ratio

    @property
    def latency_s(self) -> float:
        """Before the first byte of a transfer leaves; the link is free meanwhile."""
        return 0.0 if self.instant else self.latency_ms / 1e3 / self.speedup_ratio

    def sending_s(self, tokens: int) -> float:
        """For how long a transfer of so many tokens has a link for itself."""
        if self.instant:
            return 0.0
        return tokens * self.bytes_per_token / self.bandwidth_gb_s / 1e9 / self.speedup_ratio

    def begin(self, tokens: int, now_s: float, *links: Link) -> float:
        """Begins a transfer that needs these links (of both its ends, or of the one that is of interest).

        Returns the time at which it ends.
        """
        start_s = max([now_s + self.latency_s, *(link.free_s for link in links)])
        end_s = start_s + self.sending_s(tokens)
        for link in links:
            link.free_s = end_s
        return end_s
