"""How fast an engine was measured to be; `dynamo profile` writes it, the planner reads it. Pure."""

import msgspec

VERSION = 1


class PrefillPoint(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts of one length, not cached."""

    prompt_tokens: int
    ttft_s: float  # of one alone
    tokens_per_s: float  # of prompts, when there are always further ones


class DecodePoint(msgspec.Struct, frozen=True, kw_only=True):
    """So many requests at once, each with that context on average."""

    context_tokens: int
    concurrency: int
    itl_s: float
    tokens_per_s: float  # generated, all requests together


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of one engine with one model. As JSON on disk."""

    version: int = VERSION
    engine: str
    model: str
    max_kv_tokens: int | None = None  # that fit on it
    prefill: tuple[PrefillPoint, ...]  # ascending
    decode: tuple[DecodePoint, ...]  # ascending by context, then concurrency
