"""A worker that prefills may be asked to decode from now on, and the other way round: see protocols/role.py.

It leaves its role as a worker leaves that is told to end, and comes back as one that has just started, but for the
start: the engine runs on. So nobody else needs to know that it is the same worker, though its instance id tells.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator

from dynamo.engines.colleagues import Colleagues
from dynamo.engines.served_engine import ServedEngine
from dynamo.errors import (
    DrainingError,
    DynamoError,
    InternalError,
    InvalidRequestError,
    UnavailableError,
    UnsupportedFeatureError,
)
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import ROLE_COMPONENT, ROLE_ENDPOINT, RoleRequest, WorkerRole
from dynamo.runtime.component import Endpoint
from dynamo.runtime.instance import EndpointId

logger = logging.getLogger(__name__)

_NEWS_S = 1.0


class RoleChanges:
    """One worker's, one at a time. Each is carried out to its end, whether or not somebody waits for it.

    A worker that has left its role and cannot take on the next one ends with an error. It has no requests then, so
    nothing is lost; and what has kept it from serving there, most likely discovery or its engine, would keep it from
    going back: better a process that is started anew than a GPU that belongs to nobody.
    """

    def __init__(self, served: ServedEngine, *, news_s: float = _NEWS_S) -> None:
        """`news_s`: how long news from other workers may be under way."""
        self._news_s = news_s
        self._served = served
        self._runtime = served.runtime
        self._colleagues = Colleagues(served.runtime, served.config.endpoint_id().namespace, served.name)
        self._becoming: WorkerType | None = None
        self._changing: asyncio.Task[None] | None = None
        self._failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Serves the endpoint until the runtime shuts down. Raises what Endpoint.start() raises."""
        namespace = self._served.config.endpoint_id().namespace
        endpoint = Endpoint(self._runtime, EndpointId(namespace, ROLE_COMPONENT, ROLE_ENDPOINT))
        await endpoint.start(self.answer, request_type=RoleRequest)

    async def answer(self, request: RoleRequest) -> AsyncIterator[WorkerRole]:
        """The endpoint's handler."""
        role = request.role
        if role is WorkerType.Prefill and role is not self._served.role and not request.force:
            await self._colleagues.until_decode(self._news_s)
        if role is not None and (self._becoming is not None or role is not self._served.role):
            await asyncio.shield(self._begin(role, request))  # who asks may not wait for the end
        yield WorkerRole(
            role=self._served.role,
            model=self._served.name,
            pid=os.getpid(),
            can_change=self._refusal() is None,
            becoming=self._becoming,
        )

    async def failed(self) -> str:
        """Waits until a change has failed, and says why: nothing is served any more."""
        return await asyncio.shield(self._failed)

    async def close(self) -> None:
        """Ends a change that is under way. Idempotent."""
        if self._changing is not None:
            self._changing.cancel()
            await asyncio.wait([self._changing])
        await self._colleagues.close()

    def _begin(self, role: WorkerType, request: RoleRequest) -> asyncio.Task[None]:
        """Raises what the request is refused with."""
        if self._runtime.is_shutting_down:
            raise DrainingError("this worker is about to end")
        if self._becoming is not None:
            raise UnavailableError(f"this worker is about to become a {self._becoming.value} worker")
        if role is WorkerType.Aggregated:
            raise InvalidRequestError("a worker becomes a prefill or a decode worker, not both in one", param="role")
        if (refusal := self._refusal()) is not None:
            raise UnsupportedFeatureError(refusal)
        if role is WorkerType.Prefill and not request.force and not self._colleagues.decode():
            raise _nobody_decodes()
        timeout_s = request.drain_timeout_s
        if timeout_s is None:
            timeout_s = self._runtime.config.shutdown_timeout_s
        self._becoming = role
        self._changing = asyncio.create_task(
            self._change(role, timeout_s, force=request.force), name=f"become-{role.value}"
        )
        self._changing.add_done_callback(self._changed)
        return self._changing

    def _refusal(self) -> str | None:
        """Why this worker keeps its role for ever, if it does."""
        if self._served.info.change_role is None:
            return "this worker's engine cannot change its role while it runs"
        if self._served.config.endpoint is not None:
            return "this worker was told by --endpoint where to serve, and not where in another role"
        return None

    async def _change(self, role: WorkerType, timeout_s: float, *, force: bool) -> None:
        """Ends early when the runtime shuts down, which sees to the requests under way then."""
        # Two that are told at once see each other decode. Each says what it is about to become before it asks.
        if role is WorkerType.Prefill and not force and not await self._colleagues.decode_on():
            raise _nobody_decodes()
        work = asyncio.create_task(self._carry_out(role, timeout_s))
        ending = asyncio.create_task(self._runtime.wait_for_shutdown())
        try:
            await asyncio.wait([work, ending], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ending.cancel()
            work.cancel()
            await asyncio.wait([work, ending])
        if work.cancelled():
            raise DrainingError("this worker was told to end while it changed its role")
        if (error := work.exception()) is not None:
            if isinstance(error, DrainingError) and self._runtime.is_shutting_down:
                raise error
            reason = f"this worker could not become a {role.value} worker: {error or repr(error)}"
            if not self._failed.done():
                self._failed.set_result(reason)
            raise InternalError(reason) from error

    async def _carry_out(self, role: WorkerType, timeout_s: float) -> None:
        served = self._served
        logger.info("%s: %s turns to %s once its requests have ended", served.name, served.role.value, role.value)
        await served.withdraw(timeout_s)
        await served.change_role(role)
        await served.announce()
        logger.info("%s: this worker is for %s from now on", served.name, role.value)

    def _changed(self, task: asyncio.Task[None]) -> None:
        self._becoming = None
        if not task.cancelled() and (error := task.exception()) is not None:  # nobody may have waited for it
            expected = isinstance(error, DynamoError)
            logger.log(logging.INFO if expected else logging.ERROR, "%s", error, exc_info=None if expected else error)


def _nobody_decodes() -> InvalidRequestError:
    return InvalidRequestError("no other worker of the model decodes: with `force` none would", param="force")
