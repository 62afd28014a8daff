"""What a prefill worker gives to the decode worker that goes on with the prompt."""

import msgspec


class Handoff(msgspec.Struct, frozen=True, kw_only=True):
    """Where the KV cache of a prefilled prompt lies, and how to get it. Good for one decode.

    Whoever has fetched the cache tells its holder, which frees it then; by itself it frees it after a while. So nobody
    may take it twice: what is there the second time may be another prompt's.
    """

    engine: str  # whose `params` these are: a worker with another engine cannot use them
    params: bytes  # the engines' own business
