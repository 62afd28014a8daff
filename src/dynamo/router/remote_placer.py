"""KV routing by a router service: `python -m dynamo.router`, which several frontends ask.

Each request is a reservation there, a stream that is open for as long as the request is with its worker. So the service
knows the load of all its callers, and a caller that dies takes its requests with it.
"""

import asyncio
import itertools
import logging
import random
import zlib
from collections.abc import Iterable, Sequence, Set
from typing import Any

from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DrainingError,
    DynamoError,
    OverloadedError,
    ProtocolError,
    RequestCancelledError,
)
from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, WorkerId
from dynamo.protocols.reservations import Look, Prefilled, Reserve
from dynamo.protocols.routing import Prospect, RoutingReport
from dynamo.router.placement import CountedPlacement, Placement, SelectorPlacer
from dynamo.router.reservations import reservations_endpoint
from dynamo.router.selection import RouterMode
from dynamo.runtime.background import in_background
from dynamo.runtime.client import ReplyStream
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.handler import closing
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.stage import Deliver

logger = logging.getLogger(__name__)

_SILENCE_MAX_S = 3.0  # a service gives a sign each second
_RETRY_S = 1.0
_NEWS_MAX_S = 1.0  # a service may hear of a worker so much sooner than a frontend

Report = RoutingReport | None


class RemotePlacer:
    """The Placer of RouterMode.KV for the workers of one model, where a router service decides.

    Without a service that answers, requests go to the least loaded worker: of this process's requests.
    """

    def __init__(self, runtime: DistributedRuntime, workers: EndpointId, model: str, rng: random.Random) -> None:
        self._client = runtime.client(reservations_endpoint(workers, model), Report)
        self._looking = runtime.client(reservations_endpoint(workers, model), Prospect)
        self._alone = SelectorPlacer(RouterMode.KV, rng)
        self._model = model
        self._instances: Set[int] = frozenset()
        self._instances_changed = asyncio.Event()
        self._closed = False
        self._caller = f"{runtime.instance_id:x}"
        self._numbers = itertools.count()  # of reservations
        self._turn = 0  # whose it is to be asked first
        self._telling: set[asyncio.Task[None]] = set()  # at most one per request
        self._silent: dict[int, asyncio.Task[None]] = {}  # services that did not answer, by instance
        self._complaint = ""

    async def close(self) -> None:
        """Requests under way go on."""
        self._closed = True
        self._instances_changed.set()
        tasks = [*self._telling, *self._silent.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._looking.close()
        await self._client.close()

    def set_instances(self, instances: Iterable[int]) -> None:
        """Which instances serve the model: one that comes while a request waits at a service may get it."""
        self._instances = frozenset(instances)
        self._instances_changed.set()

    async def place(
        self,
        request: PreprocessedRequest | None,
        context: Context,
        instances: Sequence[int],
        target: WorkerId | None,
    ) -> Placement:
        assert request is not None, "models whose requests have no tokens yet get another placer"
        reservation = await self._reserved(request, context, instances, pinned=target is not None)
        if reservation is None:
            return await self._alone.place(request, context, instances, target)
        logger.debug("request %s: %s", context.id(), reservation.report)
        worker = WorkerId(reservation.report.worker_id, reservation.report.dp_rank)
        counted = await self._alone.place(request, context, instances, worker)
        return ReservedPlacement(self, reservation, counted, explain=request.explain_routing)

    def check(self, target: WorkerId | None) -> None:
        """Any worker may be named, or none."""

    async def prospect(
        self, request: PreprocessedRequest, context: Context, instances: Sequence[int]
    ) -> Prospect | None:
        """Asks the service that place() would ask first, if both are called one after the other."""
        look = Look(
            token_ids=request.token_ids,
            instances=list(instances),
            dp_rank=request.dp_rank,
            cache_salt=request.cache_salt,
            session_id=request.session_id,
        )
        for instance_id in self._services(request.session_id)[:1]:
            try:
                async with (
                    asyncio.timeout(_SILENCE_MAX_S),
                    closing(await self._looking.direct(look, instance_id, annotated=False, context=context)) as answer,
                ):
                    prospect: Prospect
                    async for prospect in answer:
                        return prospect
            except (RequestCancelledError, DeadlineExceededError):
                raise
            except TimeoutError:
                self._fell_silent(instance_id)
            except DynamoError as error:
                logger.debug("router %x does not say what it would do: %s", instance_id, error)
        return None

    def prefilled(self, reservation: "Reservation", cached_tokens: int | None) -> None:
        """The request's first token is there."""
        message = Prefilled(request_id=reservation.request_id, cached_tokens=cached_tokens)
        task = in_background(self._tell(reservation.stream.instance_id, message), f"tell-{reservation.request_id}")
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _reserved(
        self, request: PreprocessedRequest, context: Context, instances: Sequence[int], *, pinned: bool
    ) -> "Reservation | None":
        """None where no service has an answer. Raises what a service may rightly refuse a request for."""
        complaint = "there is none"
        services = self._services(request.session_id)
        self._turn += 1
        for instance_id in services:
            reserve = self._message(request, instances, pinned=pinned)
            try:
                async with asyncio.timeout(_SILENCE_MAX_S):
                    stream = await self._client.direct(reserve, instance_id, annotated=False, context=context)
                reservation = Reservation(reserve.request_id, stream, await self._report(stream, reserve))
            except (OverloadedError, RequestCancelledError, DeadlineExceededError):
                raise
            except TimeoutError:
                complaint = "it does not answer"
                self._fell_silent(instance_id)
            except DynamoError as error:
                complaint = str(error)
                if isinstance(error, ConnectionLostError | DrainingError):
                    self._client.avoid(instance_id)
            else:
                self._complain("")
                return reservation
        self._complain(complaint)
        return None

    async def _report(self, stream: ReplyStream[Report], reserve: Reserve) -> RoutingReport:
        """Raises TimeoutError for a service that gives no sign, and closes the stream where there is no report."""
        known = self._instances
        report: Report = None
        try:
            while report is None:
                async with asyncio.timeout(_SILENCE_MAX_S):
                    report = await anext(stream)
            if not await self._may_serve(report.worker_id, reserve, known):
                raise ProtocolError(f"it names a worker that was not asked for: {report.worker_id:x}")
        except StopAsyncIteration as error:
            raise ConnectionLostError("it has ended the reservation") from error
        except BaseException:
            await stream.aclose()
            raise
        return report

    async def _may_serve(self, worker_id: int, reserve: Reserve, known: Set[int]) -> bool:
        """Whether it is one of those that were asked for, or one more than those `known` then.

        Of the latter there may be no news here yet; waits a moment for it.
        """
        if worker_id in reserve.instances:
            return True
        if reserve.pinned or worker_id in known:
            return False
        try:
            async with asyncio.timeout(_NEWS_MAX_S):
                while worker_id not in self._instances:
                    if self._closed:
                        return False
                    self._instances_changed.clear()
                    await self._instances_changed.wait()
        except TimeoutError:
            return False
        return True

    def _fell_silent(self, instance_id: int) -> None:
        if instance_id not in self._silent:
            self._silent[instance_id] = in_background(self._heed(instance_id), f"heed-{instance_id:x}")

    def _services(self, session_id: str | None) -> list[int]:
        """In the order in which they are to be asked: those of a session alike, for that is where it is known."""
        services = [i for i in self._client.available_ids() if i not in self._silent]
        if len(services) < 2:
            return services
        first = self._turn if session_id is None else zlib.crc32(session_id.encode())
        first %= len(services)
        return services[first:] + services[:first]

    def _message(self, request: PreprocessedRequest, instances: Sequence[int], *, pinned: bool) -> Reserve:
        return Reserve(
            request_id=f"{self._caller}-{next(self._numbers)}",
            token_ids=request.token_ids,
            instances=list(instances),
            pinned=pinned,
            dp_rank=request.dp_rank,
            cache_salt=request.cache_salt,
            priority=request.priority,
            session_id=request.session_id,
            prefilled=request.handoff is not None,
            explain=request.explain_routing or logger.isEnabledFor(logging.DEBUG),
        )

    async def _tell(self, instance_id: int, message: Prefilled) -> None:
        """Best effort: the end of the reservation says it too."""
        try:
            await self._answered(instance_id, message)
        except (DynamoError, TimeoutError) as error:
            logger.debug("router %x was not told of %s: %s", instance_id, message, error)

    async def _answered(self, instance_id: int, message: Prefilled) -> None:
        async with asyncio.timeout(_SILENCE_MAX_S):
            async with closing(await self._client.direct(message, instance_id, annotated=False)) as stream:
                async for _ in stream:
                    pass

    async def _heed(self, instance_id: int) -> None:
        """Asks a silent service until it answers or is gone: no request waits for it meanwhile."""
        try:
            while instance_id in self._client.instance_ids():
                await asyncio.sleep(_RETRY_S)
                try:
                    await self._answered(instance_id, Prefilled(request_id=""))
                except (DynamoError, TimeoutError):
                    continue
                return
        finally:
            del self._silent[instance_id]

    def _complain(self, text: str) -> None:
        """Says once what is wrong with the services, and once that it is over."""
        if text == self._complaint:
            return
        if text:
            logger.warning("no router service for %r, the least loaded worker is taken: %s", self._model, text)
        else:
            logger.info("the router service for %r answers", self._model)
        self._complaint = text


class Reservation:
    """A request's place in a router service's account."""

    __slots__ = ("report", "request_id", "stream")

    def __init__(self, request_id: str, stream: ReplyStream[Report], report: RoutingReport) -> None:
        self.request_id = request_id
        self.stream = stream
        self.report = report


class ReservedPlacement:
    """A request on the worker that a router service has chosen."""

    __slots__ = ("_begun", "_counted", "_deliver", "_explain", "_placer", "_reservation", "dp_rank", "worker")

    def __init__(
        self, placer: RemotePlacer, reservation: Reservation, counted: CountedPlacement, *, explain: bool
    ) -> None:
        self.worker = counted.worker
        self.dp_rank: int | None = counted.worker.dp_rank
        self._placer = placer
        self._reservation = reservation
        self._counted = counted
        self._explain = explain
        self._begun = False
        self._deliver: Deliver[LLMEngineOutput]

    def watched(self, deliver: Deliver[Any]) -> Deliver[Any]:
        self._deliver = deliver
        return self._pass_on

    def end(self) -> None:
        self._reservation.stream.abandon()
        self._counted.end()

    def _pass_on(self, output: LLMEngineOutput) -> bool:
        if not self._begun:
            if self._explain:
                output.routing, self._explain = self._reservation.report, False
            if not output.token_ids and output.finish_reason is None:
                return self._deliver(output)  # a handoff that leaves before the prompt is prefilled
            self._begun = True
            self._placer.prefilled(self._reservation, output.cached_tokens)
        return self._deliver(output)
