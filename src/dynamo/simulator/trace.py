"""Recorded traffic in Mooncake's format: lengths, and which prefixes are shared, but not the text.

A line is a JSON object: `timestamp` (ms since the start), `input_length` and `output_length` (tokens), and `hash_ids`:
one id for each block of the prompt, the last of which may be partial. An id stands for a block and all that precedes
it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dynamo.errors import ConfigError
from dynamo.tokens import TOKEN_BYTES, TokenArray, token_array

BLOCK_SIZE = 512  # tokens per id in the traces that Mooncake has published


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """One request of a trace."""

    arrival_s: float  # since the start of the trace
    prompt_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...]

    def prompt(self, block_size: int = BLOCK_SIZE) -> TokenArray:
        """Token ids that share prefixes as the block ids say: each block is its own id, over and over."""
        blocks = b"".join(_block(block_id) * block_size for block_id in self.block_ids)
        tokens = token_array()
        tokens.frombytes(memoryview(blocks)[: self.prompt_tokens * TOKEN_BYTES])
        return tokens


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int]


def read_trace(path: Path, *, limit: int | None = None, block_size: int = BLOCK_SIZE) -> list[TraceRequest]:
    """The first `limit` requests of a file, in order of arrival.

    Raises ConfigError, which names the line, for a file that can't be read or is no such trace.
    """
    requests: list[TraceRequest] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if limit is not None and len(requests) >= limit:
                    break
                if line.strip():
                    requests.append(_parse(line, f"{path}:{number}", block_size))
    except OSError as error:
        raise ConfigError(f"the trace {path} cannot be read: {error.strerror}") from error
    if not requests:
        raise ConfigError(f"{path} holds no requests")
    return sorted(requests, key=lambda request: request.arrival_s)


def _parse(line: bytes, place: str, block_size: int) -> TraceRequest:
    try:
        fields = msgspec.json.decode(line, type=_Line)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(f"{place}: {error}") from error
    if fields.timestamp < 0 or fields.input_length < 1 or fields.output_length < 1:
        raise ConfigError(f"{place}: a timestamp must be at least 0, a length at least 1")
    if len(fields.hash_ids) != -(-fields.input_length // block_size):
        raise ConfigError(
            f"{place}: {len(fields.hash_ids)} hash ids do not fit {fields.input_length} tokens"
            f" in blocks of {block_size}"
        )
    if not all(0 <= block_id < 2**32 for block_id in fields.hash_ids):
        raise ConfigError(f"{place}: a hash id must be at least 0 and less than 2^32")
    return TraceRequest(
        arrival_s=fields.timestamp / 1000,
        prompt_tokens=fields.input_length,
        output_tokens=fields.output_length,
        block_ids=tuple(fields.hash_ids),
    )


def distinct_blocks(requests: Iterable[TraceRequest]) -> int:
    """Different blocks in the prompts."""
    return len({block_id for request in requests for block_id in request.block_ids})


def longest_context(requests: Iterable[TraceRequest]) -> int:
    """Tokens of the longest prompt and its output."""
    return max(request.prompt_tokens + request.output_tokens for request in requests)


def best_hit_ratio(requests: Sequence[TraceRequest], block_size: int = BLOCK_SIZE) -> float:
    """The share of prompt tokens that one endless cache would hold when each request comes after all before it.

    As in an engine, only full blocks can be found, and the last token of a prompt is always computed.
    """
    seen: set[int] = set()
    hits = 0
    for request in requests:
        findable = (request.prompt_tokens - 1) // block_size
        hits += _leading(request.block_ids[:findable], seen) * block_size
        seen.update(request.block_ids)
    return hits / sum(request.prompt_tokens for request in requests)


def _leading(block_ids: Iterable[int], seen: set[int]) -> int:
    count = 0
    for block_id in block_ids:
        if block_id not in seen:
            break
        count += 1
    return count


def _block(block_id: int) -> bytes:
    return token_array([block_id]).tobytes()
