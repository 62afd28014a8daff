"""When requests are refused because there are too many of them."""

from dataclasses import dataclass

from dynamo.config import option


@dataclass(frozen=True, slots=True, kw_only=True)
class OverloadConfig:
    """Limits for each model. None: without limit."""

    ttft_limit_s: float | None = option(
        None,
        flag="--ttft-limit",
        env="DYN_TTFT_LIMIT",
        metavar="SECONDS",
        minimum=0.001,
        help="refuse requests that would wait longer for their first token, as those before them tell (default: none)",
    )
    max_inflight: int | None = option(
        None,
        flag="--max-inflight",
        env="DYN_MAX_INFLIGHT",
        minimum=1,
        help="requests being answered at a time, by this frontend for each model (default: any number)",
    )
    max_queued_tokens: int | None = option(
        None,
        flag="--max-queued-tokens",
        env="DYN_MAX_QUEUED_TOKENS",
        minimum=1,
        help="prompt tokens, estimated, of its requests without a first token (default: any number)",
    )
    active_decode_blocks_threshold: float | None = option(
        None,
        flag="--active-decode-blocks-threshold",
        env="DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD",
        minimum=0,
        maximum=1,
        help="a worker is busy when it uses more than this share of its KV blocks; requests are refused while "
        "all workers are busy (default: none ever is)",
    )
    active_prefill_tokens_threshold: int | None = option(
        None,
        flag="--active-prefill-tokens-threshold",
        env="DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD",
        minimum=0,
        help="a worker is busy when it has more prompt tokens than this to prefill (default: none ever is)",
    )
    admission_queue_size: int = option(
        1024,
        flag="--admission-queue-size",
        env="DYN_ADMISSION_QUEUE_SIZE",
        minimum=0,
        help="requests over a limit that may wait until they are under it; --ttft-limit lets none wait",
    )
    admission_queue_timeout_s: float = option(
        1.0,
        flag="--admission-queue-timeout",
        env="DYN_ADMISSION_QUEUE_TIMEOUT",
        metavar="SECONDS",
        minimum=0,
        help="how long they may wait",
    )
    overload_status: int = option(
        503,
        flag="--overload-status",
        env="DYN_OVERLOAD_STATUS",
        choices=("503", "529"),
        help="HTTP status of what is refused as overload",
    )

    @property
    def watches_workers(self) -> bool:
        """Whether anything depends on what workers say of their load."""
        return self.active_decode_blocks_threshold is not None or self.active_prefill_tokens_threshold is not None
