"""The size of the simulated engine."""

from dataclasses import dataclass

from dynamo.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """What the engine can hold and do at once."""

    block_size: int = 64  # tokens
    num_blocks: int = 16384
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 8192  # tokens
    max_num_waiting: int = 8192
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True

    def __post_init__(self) -> None:
        """Raises ConfigError for sizes with which some request could wait for ever."""
        for name in ("block_size", "num_blocks", "max_num_seqs", "max_model_len", "max_num_waiting"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs"
                f" ({self.max_num_seqs}): every sequence takes one token a step"
            )
        if not self.enable_chunked_prefill and self.max_num_batched_tokens < self.context_length:
            raise ConfigError(
                f"without chunked prefill max_num_batched_tokens ({self.max_num_batched_tokens}) must hold a prompt of"
                f" {self.context_length} tokens"
            )

    @property
    def context_length(self) -> int:
        """Tokens of prompt and output that one sequence can have: what the model allows and the blocks can hold."""
        return min(self.max_model_len, self.num_blocks * self.block_size)
