"""A router service's end of `remote_placer`: takes reservations of those who send the requests themselves."""

import asyncio
from collections.abc import AsyncIterator

from dynamo.errors import InvalidRequestError
from dynamo.protocols.reservations import Look, Prefilled, ReservationMessage, Reserve
from dynamo.protocols.routing import Prospect, RoutingReport
from dynamo.router.kv_placer import KvPlacer
from dynamo.router.model_endpoint import model_endpoint
from dynamo.router.routing import RoutingDecision, RoutingRequest
from dynamo.router.routing_report import routing_report
from dynamo.runtime.background import in_background
from dynamo.runtime.component import Endpoint
from dynamo.runtime.context import Context
from dynamo.runtime.instance import EndpointId
from dynamo.tokens import block_seed, token_array

SIGN_OF_LIFE_S = 1.0  # how often a caller whose request waits hears that it still does


class Reservations:
    """The requests of others that count as load here, each for as long as its stream is open."""

    def __init__(self, placer: KvPlacer, sign_of_life_s: float = SIGN_OF_LIFE_S) -> None:
        self._placer = placer
        self._sign_of_life_s = sign_of_life_s
        self._held: dict[str, _Held] = {}  # by request id
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def start(self, endpoint: Endpoint) -> None:
        """Serves `endpoint` until its runtime shuts down; raises what Endpoint.start() raises."""
        await endpoint.start(self.serve, request_type=ReservationMessage)
        self._closing = in_background(self._close_with(endpoint), f"close-{endpoint}")

    def use(self, placer: KvPlacer) -> None:
        """From now on this one decides. What the former has decided is forgotten."""
        self._placer = placer
        self._end_all()

    async def serve(
        self, message: ReservationMessage, context: Context
    ) -> AsyncIterator[RoutingReport | Prospect | None]:
        """The endpoint's handler. Raises what KvPlacer.decide() raises, InvalidRequestError for an id in use."""
        if isinstance(message, Look):
            if (prospect := self._foreseen(message)) is not None:
                yield prospect
            return
        if isinstance(message, Prefilled):
            self._prefilled(message)
            return
        if message.request_id in self._held:
            raise InvalidRequestError(f"the request id {message.request_id!r} is in use", param="request_id")
        held = self._held[message.request_id] = _Held(message)
        placer = self._placer
        try:
            deciding = asyncio.create_task(placer.decide(_routing(placer, message), context))
            try:
                while not deciding.done():
                    await asyncio.wait([deciding], timeout=self._sign_of_life_s)
                    if not deciding.done():
                        yield None
                message.token_ids = token_array()  # of no use any more, and the stream may be open for long
                yield routing_report(deciding.result(), placer.scheduler.block_size)
                if not self._closed:
                    await held.until_ended(context)
            finally:
                await _undo(placer, deciding, _key(message.request_id))
        finally:
            del self._held[message.request_id]

    def close(self) -> None:
        """Ends all reservations; the requests go on, at their workers."""
        self._closed = True
        self._end_all()

    def _foreseen(self, message: Look) -> Prospect | None:
        return self._placer.foresee(
            RoutingRequest(
                request_id="",
                token_ids=message.token_ids,
                seed=block_seed(cache_salt=message.cache_salt),
                session_id=message.session_id,
                eligible=self._placer.eligible(message.instances, message.dp_rank, pinned=True),
            )
        )

    def _prefilled(self, message: Prefilled) -> None:
        held = self._held.get(message.request_id)
        if held is not None:
            self._placer.first_token(_key(message.request_id))
            if held.prompt_tokens is not None:
                self._placer.figures.prefilled(held.prompt_tokens, message.cached_tokens)

    def _end_all(self) -> None:
        for held in self._held.values():
            held.end()

    async def _close_with(self, endpoint: Endpoint) -> None:
        """Streams that others end would hold up the shutdown, which waits for requests under way."""
        await endpoint.runtime.wait_for_shutdown()
        self.close()


class _Held:
    """A request that a caller has reserved a place for."""

    __slots__ = ("_ended", "prompt_tokens")

    def __init__(self, message: Reserve) -> None:
        self.prompt_tokens = None if message.prefilled else len(message.token_ids)  # that it may have had cached
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def end(self) -> None:
        if not self._ended.done():
            self._ended.set_result(None)

    async def until_ended(self, context: Context) -> None:
        unfollow = context.on_stop(lambda _: self.end())
        try:
            await self._ended
        finally:
            unfollow()


def reservations_endpoint(workers: EndpointId, model: str) -> EndpointId:
    """Where a router service for a model's workers takes reservations."""
    return model_endpoint(workers, "router", model)


def _routing(placer: KvPlacer, message: Reserve) -> RoutingRequest:
    return RoutingRequest(
        request_id=_key(message.request_id),
        token_ids=message.token_ids,
        seed=block_seed(cache_salt=message.cache_salt),
        priority=message.priority,
        session_id=message.session_id,
        prefilled=message.prefilled,
        explain=message.explain,
        eligible=placer.eligible(message.instances, message.dp_rank, pinned=message.pinned),
    )


async def _undo(placer: KvPlacer, deciding: asyncio.Task[RoutingDecision], request_id: str) -> None:
    """Whoever leaves while the decision is made may get it all the same."""
    deciding.cancel()
    await asyncio.wait([deciding])
    if not deciding.cancelled() and deciding.exception() is None:
        placer.free(request_id)


def _key(request_id: str) -> str:
    """A caller's request id, apart from the placer's own."""
    return f"reserved-{request_id}"
