"""vLLM's requests as the block manager knows them."""

import hashlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dynamo.kvbm.namespace import model_fingerprint
from dynamo.tokens import block_seed, chain_hashes, hash_array, local_block_hashes, token_array

if TYPE_CHECKING:
    from vllm.lora.request import LoRARequest
    from vllm.v1.request import Request

UNTOLD = 0  # the name of a block that routers have none for


class Adapters:
    """Digests of LoRA adapters: vLLM's keys contain only their names and paths, and blocks on a disk live longer."""

    def __init__(self) -> None:
        self._digests: dict[tuple[str, str], bytes] = {}
        self._private = secrets.token_bytes(16)  # of what only this engine knows

    def digest(self, adapter: "LoRARequest") -> bytes:
        """Reads the adapter when it is first asked for."""
        key = (adapter.lora_name, adapter.lora_path)
        if key not in self._digests:
            path = Path(adapter.lora_path)
            self._digests[key] = bytes.fromhex(model_fingerprint(path)) if path.exists() else self._private
        return self._digests[key]


class RequestBlocks:
    """The full blocks of a request."""

    def __init__(self, request: "Request", block_tokens: int, adapters: Adapters) -> None:
        self.request = request
        self._block_tokens = block_tokens
        adapter = request.lora_request
        self._adapter = adapters.digest(adapter) if adapter is not None else b""
        self._names = hash_array()
        self._seed = block_seed(adapter.lora_name if adapter is not None else None, request.cache_salt)
        self._untold = bool(request.mm_features) or request.prompt_embeds is not None

    @property
    def request_id(self) -> str:
        name: str = self.request.request_id
        return name

    @property
    def computed(self) -> int:
        """Blocks that are full of what was computed before the step that is being planned."""
        request = self.request
        tokens: int = request.num_computed_tokens - request.num_output_placeholders
        return min(len(request.block_hashes), max(0, tokens) // self._block_tokens)

    @property
    def loadable(self) -> int:
        """Blocks before the one with the last token, which vLLM has to compute itself."""
        tokens: int = self.request.num_tokens - 1
        return min(len(self.request.block_hashes), tokens // self._block_tokens)

    def keys(self, start: int, end: int) -> Sequence[bytes]:
        hashes: list[bytes] = self.request.block_hashes[start:end]
        if not self._adapter:
            return hashes
        return [hashlib.sha256(self._adapter + each).digest() for each in hashes]

    def names(self, start: int, end: int) -> Sequence[int]:
        if self._untold:
            return [UNTOLD] * (end - start)
        if (known := len(self._names)) < end:
            tokens = self.request.all_token_ids[known * self._block_tokens : end * self._block_tokens]
            local = local_block_hashes(token_array(tokens), self._block_tokens, self._seed)
            self._names += chain_hashes(local, self._names[-1] if known else None)
        return self._names[start:end]
