"""Asks the workers how busy they are."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing

from dynamo.errors import DynamoError
from dynamo.protocols.load import WorkerLoad
from dynamo.runtime.background import in_background
from dynamo.runtime.client import Client

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0


class LoadWatcher:
    """Calls the `load` endpoint of every instance that serves the model, `interval_s` after `interval_s`.

    All are asked at once. One that does not answer in that time, or with anything but a load, is passed over until the
    next time.
    """

    def __init__(
        self,
        client: Client,
        serves: Callable[[int], bool],
        on_ask: Callable[[], None],
        on_load: Callable[[int, list[WorkerLoad]], None],
        interval_s: float = INTERVAL_S,
    ) -> None:
        """`client` of the load endpoint, whose replies are decoded as list[WorkerLoad]; closed with the watcher.

        `serves` says whether an instance is asked at all. `on_ask` is called each time before they are.
        """
        self._client = client
        self._serves = serves
        self._on_ask = on_ask
        self._on_load = on_load
        self._interval_s = interval_s
        self._task = in_background(self._run(), f"loads-{client.endpoint}")

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._client.close()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self._on_ask()
            await asyncio.gather(*(self._ask(i) for i in self._client.instance_ids() if self._serves(i)))

    async def _ask(self, instance_id: int) -> None:
        try:
            async with asyncio.timeout(self._interval_s):
                async with aclosing(await self._client.direct(None, instance_id, annotated=False)) as replies:
                    async for loads in replies:
                        self._on_load(instance_id, loads)
        except (DynamoError, TimeoutError) as error:
            logger.debug("instance %x did not say how busy it is: %s", instance_id, error)
