"""The KV router as a library: for programs that choose workers themselves, or let it call them."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping

from dynamo.errors import ConfigError
from dynamo.llm.fitting_workers import FittingWorkers, announcements
from dynamo.llm.register import announced
from dynamo.protocols.generation import (
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    WorkerId,
)
from dynamo.protocols.kv_events import BlockStored
from dynamo.protocols.model_card import RuntimeLimits, WorkerType
from dynamo.protocols.routing import PotentialLoad
from dynamo.router.config import KvRouterConfig
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.push_router import PushRouter
from dynamo.router.routing import RoutingDecision, RoutingRequest
from dynamo.runtime.component import Endpoint
from dynamo.runtime.context import Context
from dynamo.runtime.discovery.base import Put
from dynamo.runtime.stage import pulled
from dynamo.tokens import block_seed, hashes_to_bytes, token_array

logger = logging.getLogger(__name__)


class KvRouter:
    """Routes to the instances of one endpoint, following them and their KV events.

    Needs a running event loop; close() ends what it has begun. An instance whose model has KV blocks of another size,
    or is made of other files, gets no requests.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        block_size: int,
        kv_router_config: KvRouterConfig | None = None,
        *,
        model_name: str = "",
        content_hash: str = "",
        worker_type: WorkerType = WorkerType.Aggregated,
    ) -> None:
        """`block_size` in tokens: what the workers' engines have; `worker_type`: what they do, for metrics only.

        With a `model_name` only instances that announce this model get requests; without, all but those that announce
        models with other blocks. A `content_hash` is that of the model's card, which others of the same name must
        have too: with another tokenizer a prompt would mean something else. With router_replica_sync routers of the
        same `model_name` share their load.
        """
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {block_size}")
        runtime = endpoint.runtime
        self.endpoint = endpoint
        self.block_size = block_size
        self.model_name = model_name
        self.worker_type = worker_type
        self._changed = asyncio.Event()
        self._client = runtime.client(endpoint.id)
        self.placer = KvPlacer(runtime, endpoint.id, block_size, kv_router_config or KvRouterConfig(), model_name)
        self._workers = FittingWorkers(
            endpoint,
            self._client,
            self._set_instances,
            block_size=block_size,
            model=model_name,
            content_hash=content_hash,
        )
        self._workers.refresh()
        self._router = PushRouter(self._client, self.placer, self._workers.__contains__)
        self._generate = pulled(self._router.generate)

    @classmethod
    async def discover(
        cls, endpoint: Endpoint, kv_router_config: KvRouterConfig | None = None, *, model_name: str = ""
    ) -> "KvRouter":
        """For the first model at `endpoint` that a worker announces with the size of its KV blocks; waits for it.

        With a `model_name` for that one and no other. Raises ConfigError when discovery ends before.
        """
        watch = endpoint.runtime.discovery.watch(announcements(endpoint))
        try:
            async for event in watch:
                if isinstance(event, Put) and (entry := announced(event)) is not None:
                    card = entry.card
                    if model_name not in ("", card.name):
                        continue
                    if card.limits.kv_block_size is not None:
                        return cls(
                            endpoint,
                            card.limits.kv_block_size,
                            kv_router_config,
                            model_name=card.name,
                            content_hash=card.content_hash,
                            worker_type=card.worker_type,
                        )
                    logger.warning("%r is passed over: its workers do not tell the size of their KV blocks", card.name)
        finally:
            watch.close()
        raise ConfigError(f"discovery ended before a worker of {endpoint} was there")

    async def close(self) -> None:
        """Ends all subscriptions; requests under way go on."""
        await self._workers.close()
        await self.placer.close()
        await self._client.close()

    async def wait_for_workers(self, timeout_s: float | None = None) -> list[WorkerId]:
        """Waits for at least one that gets requests; TimeoutError after `timeout_s`."""
        async with asyncio.timeout(timeout_s):
            while not (workers := list(self.placer.scheduler.workers())):
                self._changed.clear()
                await self._changed.wait()
        return workers

    async def outlived(self) -> None:
        """Returns when no worker fits any more, but others of the model are there, with other blocks or files."""
        while not self._workers.outlived:
            self._changed.clear()
            await self._changed.wait()

    async def generate(
        self,
        token_ids: Iterable[int],
        model: str,
        *,
        stop_conditions: StopConditions | None = None,
        sampling_options: SamplingOptions | None = None,
        output_options: OutputOptions | None = None,
        worker_id: int | None = None,
        dp_rank: int | None = None,
        cache_salt: str | None = None,
        priority: float = 0.0,
        session_id: str | None = None,
        context: Context | None = None,
    ) -> AsyncIterator[LLMEngineOutput]:
        """Continues the prompt on the best worker, or on `worker_id`; the first output names the worker.

        Raises, while iterating, the DynamoError that ended the answer.
        """
        request = PreprocessedRequest(
            model=model,
            token_ids=token_array(token_ids),
            stop_conditions=stop_conditions or StopConditions(),
            sampling_options=sampling_options or SamplingOptions(),
            output_options=output_options or OutputOptions(),
            target=None if worker_id is None else WorkerId(worker_id, dp_rank or 0),
            dp_rank=dp_rank,
            cache_salt=cache_salt,
            priority=priority,
            session_id=session_id,
        )
        return self.serve(request, context or Context())

    def serve(self, request: PreprocessedRequest, context: Context) -> AsyncIterator[LLMEngineOutput]:
        """A Handler: the same for a whole request."""
        self._workers.refresh()
        return self._generate(request, context)

    def look(
        self,
        token_ids: Iterable[int],
        *,
        cache_salt: str | None = None,
        lora_name: str | None = None,
        session_id: str | None = None,
    ) -> RoutingDecision:
        """Where the prompt would go now, with all candidates; without consequences. Raises NoInstancesError."""
        self._workers.refresh()
        return self.placer.look(_routing(token_ids, cache_salt, lora_name, session_id=session_id))

    async def best_worker(
        self,
        token_ids: Iterable[int],
        *,
        request_id: str | None = None,
        cache_salt: str | None = None,
        lora_name: str | None = None,
        priority: float = 0.0,
        session_id: str | None = None,
        context: Context | None = None,
    ) -> RoutingDecision:
        """Where the prompt costs least.

        With a `request_id` it counts as that worker's load, from now until free(), and may have to wait in the queue,
        but no longer than `context` allows; mark_prefill_complete() is to be called at its first token. Without, it is
        look(). Raises ValueError for an id that is in use, NoInstancesError, and what KvPlacer.decide() raises.
        """
        if request_id is None:
            return self.look(token_ids, cache_salt=cache_salt, lora_name=lora_name, session_id=session_id)
        self._workers.refresh()
        routing = _routing(
            token_ids,
            cache_salt,
            lora_name,
            request_id=_own(request_id),
            priority=priority,
            session_id=session_id,
        )
        if self.placer.knows(routing.request_id):
            raise ValueError(f"the request id {request_id!r} is in use")
        return await self.placer.decide(routing, context or Context())

    def get_potential_loads(
        self, token_ids: Iterable[int], *, cache_salt: str | None = None, lora_name: str | None = None
    ) -> list[PotentialLoad]:
        """What each worker would be busy with if it were given the prompt; raises NoInstancesError.

        Blocks that it shares with the worker's running requests count once.
        """
        self._workers.refresh()
        routing = _routing(token_ids, cache_salt, lora_name)
        decision = self.placer.look(routing)
        shared = self.placer.scheduler.sequences.find_active(routing.hashes).scores
        tokens, blocks = routing.prompt_tokens, -(-routing.prompt_tokens // self.block_size)
        return [
            PotentialLoad(
                worker_id=candidate.worker.instance_id,
                dp_rank=candidate.worker.dp_rank,
                potential_prefill_tokens=candidate.prefill_tokens
                + max(tokens - candidate.overlap.total * self.block_size, 0),
                potential_decode_blocks=candidate.decode_blocks + blocks - shared.get(candidate.worker, 0),
            )
            for candidate in decision.candidates
        ]

    def mark_prefill_complete(self, request_id: str) -> None:
        """The request's first token is there; ids that are not known are passed over."""
        self.placer.first_token(_own(request_id))

    def free(self, request_id: str) -> None:
        """The request has ended, or is not wanted any more; ids that are not known are passed over."""
        self.placer.free(_own(request_id))

    def dump_events(self) -> list[tuple[WorkerId, BlockStored]]:
        """All that is known of the workers' caches, as the events that would make it known."""
        return [
            (worker, BlockStored(hashes_to_bytes(hashes), tier))
            for worker, tier, hashes in self.placer.indexer.tree.dump()
        ]

    def _set_instances(self, instances: Mapping[int, RuntimeLimits]) -> None:
        self.placer.set_instances(instances)
        self._changed.set()


def _routing(
    token_ids: Iterable[int],
    cache_salt: str | None,
    lora_name: str | None,
    *,
    request_id: str = "",
    priority: float = 0.0,
    session_id: str | None = None,
) -> RoutingRequest:
    """The prompt as the placer takes it; its decision will name the candidates."""
    return RoutingRequest(
        request_id=request_id,
        token_ids=token_array(token_ids),
        seed=block_seed(lora_name, cache_salt),
        priority=priority,
        session_id=session_id,
        explain=True,
    )


def _own(request_id: str) -> str:
    """A caller's request id, apart from the placer's own."""
    return f"caller-{request_id}"
