"""One request inside the simulated engine: what it will say, how far it got, which blocks it holds."""

from dynamo.engines.mocker.sampler import Script
from dynamo.tokens import (
    HASH_SEED,
    HashArray,
    TokenArray,
    chain_hashes,
    hash_array,
    local_block_hashes,
    sequence_hashes,
    token_array,
)


class SequenceState:
    """A prompt, its output so far, and its place in the KV cache.

    The tokens of the coming steps lie ready in `upcoming`: a stretch of the script that ends where the sequence needs
    its next block or is over. A step that stays within the stretch only takes one token off.
    """

    __slots__ = (
        "block_hashes",
        "blocks",
        "cached_tokens",
        "computed",
        "finished",
        "prefill_only",
        "prompt",
        "remote",
        "script",
        "seed",
        "shared_blocks",
        "stretch_end",
        "transferred_tokens",
        "upcoming",
    )

    def __init__(
        self,
        prompt: TokenArray,
        script: Script,
        seed: int = HASH_SEED,
        *,
        prefill_only: bool = False,
        remote: bool = False,
    ) -> None:
        """`seed` of its block hashes: see dynamo.tokens.block_seed().

        `prefill_only`: it keeps its blocks at its end, for somebody to fetch. `remote`: somebody else has prefilled it.
        """
        self.prompt = prompt
        self.script = script
        self.seed = seed
        self.prefill_only = prefill_only
        self.remote = remote  # False again once it has been admitted
        self.upcoming: list[int] = []  # last token first
        self.stretch_end = 0  # output tokens once `upcoming` is used up
        self.computed = 0  # tokens whose KV the prefill has computed
        self.blocks = 0  # held in the pool
        self.shared_blocks = 0  # of these, the first ones, which the pool knows by their hashes
        self.block_hashes: HashArray = hash_array()  # of the full blocks, as far as needed until now
        self.cached_tokens: int | None = None  # of the prompt, that needed no prefill after the first admission
        self.transferred_tokens = 0  # of these, the ones that came from another worker
        self.finished = False

    @property
    def generated(self) -> int:
        """Output tokens so far."""
        return self.stretch_end - len(self.upcoming)

    @property
    def length(self) -> int:
        """Tokens so far, prompt and output."""
        return len(self.prompt) + self.generated

    def begin_stretch(self, capacity: int) -> None:
        """Lays the tokens ready that can be drawn while the sequence has no more than `capacity` tokens in the cache.

        Drawing a token needs the KV of all before it, but not its own.
        """
        generated = self.generated
        self.upcoming = self.script.tokens(generated, capacity - len(self.prompt) + 1)
        self.stretch_end = generated + len(self.upcoming)
        self.upcoming.reverse()

    def rewind(self) -> None:
        """Forgets all that is in the KV cache; what was said stays said."""
        self.stretch_end = self.generated
        self.upcoming = []
        self.computed = self.blocks = self.shared_blocks = 0

    def hashes(self, num_blocks: int, block_size: int) -> HashArray:
        """The sequence hashes of the first `num_blocks` blocks, all of which must be full by now."""
        known = self.block_hashes
        if not known and num_blocks:
            known += sequence_hashes(self.prompt, block_size, self.seed)
        if len(known) < num_blocks:
            tail = self._tokens(len(known) * block_size, num_blocks * block_size)
            local_hashes = local_block_hashes(tail, block_size, self.seed)
            known += chain_hashes(local_hashes, known[-1] if known else None)
        return known[:num_blocks]

    def _tokens(self, start: int, stop: int) -> TokenArray:
        output_start = max(0, start - len(self.prompt))
        output = self.script.tokens(output_start, stop - len(self.prompt))
        return self.prompt[start:stop] + token_array(output)
