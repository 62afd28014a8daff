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
