"""How busy a worker is, as it says itself."""

import msgspec

LOAD_ENDPOINT = "load"  # beside a worker's generate endpoint: asked anything, it answers with a list of WorkerLoad


class WorkerLoad(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A snapshot of one data-parallel rank."""

    dp_rank: int = 0
    running_requests: int = 0
    waiting_requests: int = 0
    kv_used_blocks: int = 0
    kv_total_blocks: int = 0
    # Prompts of requests without an output yet, whole: what of them is cached shows only later. None: it does not tell.
    prefill_tokens: int | None = None
    generated_tokens: int = 0  # since the start
    steps: int | None = None  # since the start. None: it does not count them
    # Of the steps whose time is known, since the start: what a model of the engine's speed is learnt from.
    busy_s: float = 0.0  # they took together
    prefill_steps: int = 0  # that computed a part of a prompt
    prefilled_tokens: int = 0  # of prompts, without those that were cached
    decode_steps: int = 0  # that gave requests a token which had one already
    decoded_tokens: int = 0  # these tokens
    kv_token_steps: int = 0  # the sum over decode_steps of the tokens that the KV blocks then in use can hold
