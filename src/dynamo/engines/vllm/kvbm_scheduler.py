"""The block manager's connector in vLLM's scheduler."""

import functools
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dynamo.engines.vllm.kvbm_request import Adapters, RequestBlocks
from dynamo.kvbm.connector import Client, Connector, Scheduled
from dynamo.kvbm.jobs import Done, Step

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request

_CONNECT_S = 10.0  # at the start, when nobody waits for anything else


class KvbmScheduler:
    """From vLLM's terms into the connector's."""

    def __init__(self, client: Client, *, block_tokens: int, ranks: int, onboard_timeout_ms: int) -> None:
        self._block_tokens = block_tokens
        self._adapters = Adapters()
        self._requests: dict[str, RequestBlocks] = {}
        self._serves = True
        client.poll(_CONNECT_S)  # so that the first request finds what is there
        self._connector = Connector(client, time.monotonic, ranks=ranks, onboard_timeout_ms=onboard_timeout_ms)

    @property
    def busy(self) -> bool:
        return self._connector.busy

    def find(self, request: "Request", local_tokens: int) -> int | None:
        """How many tokens can be loaded; None: ask again."""
        blocks = self._blocks(request)
        remote = (request.kv_transfer_params or {}).get("do_remote_prefill")  # another connector has it all
        wanted = self._serves and not request.skip_reading_prefix_cache and not remote
        found = self._connector.find(
            blocks.request_id, local_tokens // self._block_tokens, blocks.loadable if wanted else 0
        )
        return None if found is None else found * self._block_tokens

    def allocated(self, request: "Request", blocks: list[int], load_tokens: int) -> None:
        self._blocks(request)
        self._connector.allocated(request.request_id, blocks, load_tokens // self._block_tokens)

    def step(self, output: "SchedulerOutput") -> Step:
        return self._connector.step(self._scheduled(output), self._given(output))

    def done(self, done: Done) -> None:
        self._connector.done(done)

    def finished(self, request: "Request", blocks: list[int]) -> None:
        ended = self._requests.pop(request.request_id, None)
        if ended is not None:
            self._connector.finished(ended.request_id, ended.computed if self._serves else 0, blocks)

    def stop_serving(self) -> None:
        """The weights may be others from now on: nothing is loaded or saved any more."""
        self._serves = False
        self._connector.forget_left()

    def close(self) -> None:
        self._connector.close()

    def _blocks(self, request: "Request") -> RequestBlocks:
        blocks = self._requests.get(request.request_id)
        if blocks is None:
            blocks = self._requests[request.request_id] = RequestBlocks(request, self._block_tokens, self._adapters)
            self._connector.add(blocks)
        return blocks

    def _scheduled(self, output: "SchedulerOutput") -> Iterator[Scheduled]:
        state = output.kv_connector_block_state

        def blocks_of(request_id: str) -> list[int]:
            blocks: list[int] = state.get_block_ids(request_id)[0]
            return blocks

        for request_id in output.num_scheduled_tokens:
            blocks = self._requests.get(request_id)
            if blocks is not None and self._serves:
                yield Scheduled(request_id, blocks.computed, functools.partial(blocks_of, request_id))

    def _given(self, output: "SchedulerOutput") -> Iterator[int]:
        """The blocks that the step writes: those of requests that begin, without what their cache had, and new ones."""
        for new in output.scheduled_new_reqs:
            yield from new.block_ids[0][new.num_computed_tokens // self._block_tokens :]
        cached = output.scheduled_cached_reqs
        for request_id, computed, groups in zip(
            cached.req_ids, cached.num_computed_tokens, cached.new_block_ids, strict=True
        ):
            if groups is not None:
                resumed = request_id in cached.resumed_req_ids
                yield from groups[0][computed // self._block_tokens if resumed else 0 :]
