"""How busy the workers are: each tells all routers by the event plane, or is asked."""

import asyncio
import logging
from collections.abc import Callable, Collection
from contextlib import aclosing

from dynamo.errors import DynamoError
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.background import kept_up
from dynamo.runtime.client import Client
from dynamo.runtime.codec import PAYLOAD_ERRORS, payload_decoder
from dynamo.runtime.event_plane.base import EventPlane
from dynamo.runtime.event_plane.direct import DirectPlane

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0


class LoadWatcher:
    """Calls the `load` endpoint of every instance that serves the model, `interval_s` after `interval_s`.

    All are asked at once, but for those who have told lately. One that does not answer in that time, or with anything
    but a load, is passed over until the next time.
    """

    def __init__(
        self,
        client: Client,
        serves: Callable[[int], bool],
        on_ask: Callable[[Collection[int]], None],
        on_load: Callable[[int, list[WorkerLoad]], None],
        on_told: Callable[[int, list[WorkerLoad]], None],
        interval_s: float = INTERVAL_S,
        *,
        event_plane: EventPlane | None = None,
    ) -> None:
        """`client` of the load endpoint, whose replies are decoded as list[WorkerLoad]; closed with the watcher.

        `serves` says whether an instance is asked at all. `on_ask` is called each time before they are, with those who
        are not, as they have told; `on_load` is given what they answer, `on_told` what they tell unasked.
        """
        self._client = client
        self._serves = serves
        self._on_ask = on_ask
        self._on_load = on_load
        self._on_told = on_told
        self._interval_s = interval_s
        self._told_s: dict[int, float] = {}  # when an instance has told unasked, by the event loop's clock
        self._decode = payload_decoder(list[WorkerLoad])
        self._broadcasts = (event_plane or DirectPlane()).subscribe(client.endpoint, self._on_broadcast, lambda: None)
        self._task = kept_up(self._run, f"loads-{client.endpoint}")

    async def close(self) -> None:
        self._broadcasts.close()
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._client.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            live = [i for i in self._client.instance_ids() if self._serves(i)]
            self._forget_told(live)
            self._on_ask(self._told_s.keys())
            await asyncio.gather(*(self._ask(i) for i in live if i not in self._told_s))

    def _forget_told(self, live: Collection[int]) -> None:
        """Those who have not told for one and a half intervals have to be asked."""
        since_s = asyncio.get_running_loop().time() - 1.5 * self._interval_s
        self._told_s = {i: told_s for i, told_s in self._told_s.items() if told_s > since_s and i in live}

    async def _ask(self, instance_id: int) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                async with aclosing(await self._client.direct(None, instance_id, annotated=False)) as replies:
                    async for loads in replies:
                        self._on_load(instance_id, loads)
        except (DynamoError, TimeoutError) as error:
            logger.debug("instance %x did not say how busy it is: %s", instance_id, error)

    def _on_broadcast(self, instance_id: int, payload: bytes) -> None:
        if not self._serves(instance_id):
            return
        try:
            loads: list[WorkerLoad] = self._decode(payload)
        except PAYLOAD_ERRORS as error:
            logger.debug("what instance %x says of its load makes no sense: %s", instance_id, error)
            return
        self._told_s[instance_id] = asyncio.get_running_loop().time()
        self._on_told(instance_id, loads)
