"""Conditional disaggregation: which prompts are prefilled where they are decoded. Pure.

At a prefill worker a prompt stalls nobody's tokens; it pays with the transfer of its KV cache and a place in one more
queue. For few tokens, which a decode worker computes along with a step, that is a bad bargain.
"""

from dataclasses import dataclass
from enum import StrEnum

from dynamo.config import option
from dynamo.protocols.disagg import PrefillReason


class DisaggPolicy(StrEnum):
    """What makes a prompt stay where it is decoded."""

    LENGTH = "length"  # few tokens of it are not cached there
    PREFILL_LOAD = "prefill-load"  # its prefill worker has too much to do
    EITHER = "either"


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggConfig:
    """Where prompts are prefilled, if there are prefill workers."""

    conditional_disagg: bool = option(
        False,
        flag="--conditional-disagg",
        env="DYN_CONDITIONAL_DISAGG",
        help="prefill a prompt where it is decoded if that is better: see the thresholds",
    )
    disagg_policy: str = option(
        DisaggPolicy.EITHER.value,
        flag="--disagg-policy",
        env="DYN_DISAGG_POLICY",
        choices=[policy.value for policy in DisaggPolicy],
        help="conditional: what counts",
    )
    max_local_prefill_length: int = option(
        2048,
        flag="--max-local-prefill-length",
        env="DYN_MAX_LOCAL_PREFILL_LENGTH",
        metavar="TOKENS",
        minimum=0,
        help="conditional, length: stay if fewer tokens than this are not cached",
    )
    max_local_prefill_ratio: float = option(
        0.5,
        flag="--max-local-prefill-ratio",
        env="DYN_MAX_LOCAL_PREFILL_RATIO",
        metavar="SHARE",
        minimum=0,
        maximum=1,
        help="conditional, length: and if they are no more than this share of the prompt",
    )
    max_prefill_queue_tokens: int = option(
        65536,
        flag="--max-prefill-queue-tokens",
        env="DYN_MAX_PREFILL_QUEUE_TOKENS",
        metavar="TOKENS",
        minimum=0,
        help="conditional, prefill load: stay if a prefill worker has more than this to prefill before: as much as it"
        " can within the TTFT that you want",
    )

    @property
    def minds_cache(self) -> bool:
        """Whether it matters what is cached where a prompt would be decoded."""
        return self.disagg_policy != DisaggPolicy.PREFILL_LOAD

    @property
    def minds_load(self) -> bool:
        """Whether it matters what its prefill worker has to do."""
        return self.disagg_policy != DisaggPolicy.LENGTH


def choose_prefill(
    config: DisaggConfig, *, prompt_tokens: int, uncached_tokens: int | None, waiting_tokens: int | None
) -> PrefillReason:
    """Where a prompt is to be prefilled, if `config` makes it depend on something, and why.

    `uncached_tokens` of it are not in the cache of the worker that would decode it; `waiting_tokens` its prefill worker
    has to prefill before. None: it does not count; see `minds_cache` and `minds_load`.
    """
    if uncached_tokens is not None and is_short(config, prompt_tokens=prompt_tokens, uncached_tokens=uncached_tokens):
        return PrefillReason.SHORT
    if waiting_tokens is not None and waiting_tokens > config.max_prefill_queue_tokens:
        return PrefillReason.PREFILL_BUSY
    return PrefillReason.CONDITIONS_NOT_MET


def is_short(config: DisaggConfig, *, prompt_tokens: int, uncached_tokens: int) -> bool:
    """Whether so little of a prompt is not cached where it would be decoded that it should be prefilled there."""
    return (
        uncached_tokens < config.max_local_prefill_length
        and uncached_tokens <= config.max_local_prefill_ratio * prompt_tokens
    )
