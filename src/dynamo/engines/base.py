"""What the framework asks of an inference engine."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.kv_events import KvEventBatch
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import EngineFeature, RuntimeLimits, WorkerType
from dynamo.runtime.context import Context

# Makes a started engine go on in another role, prefill or decode, with its weights and its cache as they are. Called
# when it has no requests, and gets none; returns when it can be given those of the new role. What it still keeps for
# others then, they can fetch. An error that it raises ends the worker.
ChangeRole = Callable[[WorkerType], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine can do, known once it has started."""

    context_length: int | None = None  # tokens, prompt and output together
    features: frozenset[EngineFeature] = frozenset()
    limits: RuntimeLimits = field(default_factory=RuntimeLimits)
    handoff_format: str = ""  # equal for workers that can hand over to each other; empty: they hand nothing over
    change_role: ChangeRole | None = None  # None: it stays what it was started as


class KvEventSink(Protocol):
    """Who hears what an engine's cache holds. For the event loop's thread."""

    def publish(self, batch: KvEventBatch) -> None:
        """What has just happened."""
        ...

    def close(self) -> None:
        """What happens from now on will not be told: nobody may rely on what was said. Idempotent."""
        ...


class LLMEngine(Protocol):
    """Continues sequences of tokens. `engines/echo.py` is the smallest one."""

    def publish_kv_events(self, sink: KvEventSink) -> bool:
        """Called once, before start(): from then on `sink` is to be told what the cache holds.

        False when the engine says nothing about its cache.
        """
        ...

    async def start(self) -> EngineInfo:
        """Loads the model; returns when requests can be served."""
        ...

    def generate(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        """Yields one output per engine step, the last with a finish_reason.

        Closing the iterator early must free everything the request holds. Of a prefill worker, that is what it keeps
        for others, as long as nobody has begun to fetch it: the iterator ends when all is fetched, or gone.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """Ends the request, with FinishReason.CANCELLED if it has not finished; does nothing when it is not there."""
        ...

    def load(self) -> list[WorkerLoad]:
        """How busy the engine is now, one entry per data-parallel rank; `prefill_tokens` are filled in for it.

        `steps` must grow as long as a rank has requests: where they do not, the worker is taken for stalled. An engine
        that does not count them is judged by its outputs.
        """
        ...

    async def failed(self) -> str:
        """Waits until the engine can serve no more, and says why; an engine that cannot fail waits for ever."""
        ...

    async def cleanup(self) -> None:
        """Stops the engine and its processes; called once, also after a failed start."""
        ...
