"""The children of a deployment: they are started, kept running and ended; some come and go while the others run."""

import asyncio
from collections.abc import Mapping, Sequence

from dynamo.cli.process import Child, Show
from dynamo.errors import UnavailableError


class Supervisor:
    """Owns its children from start() until they have ended."""

    def __init__(self, children: list[Child], environ: Mapping[str, str], show: Show, *, end_timeout_s: float) -> None:
        """`children` holds all that there are at any time, for whoever shows them; it is empty at first.

        A child that is told to end and takes longer than `end_timeout_s` is killed.
        """
        self.children = children
        self.end_timeout_s = end_timeout_s
        self._environ = environ
        self._show = show
        self._running: dict[Child, asyncio.Task[None]] = {}  # of all children
        self._farewells: set[asyncio.Task[None]] = set()
        self._failure: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._closing = False

    def start(self, name: str, command: Sequence[str], *, must_start: bool) -> Child:
        """Another child. One that must start and does not is a failure() of all.

        Raises UnavailableError when all are being ended.
        """
        if self._closing:
            raise UnavailableError("this deployment is being stopped")
        child = Child(name, command, self._environ, self._show, must_start=must_start)
        self.children.append(child)
        task = self._running[child] = asyncio.create_task(child.run(), name=name)
        task.add_done_callback(self._on_end)
        return child

    def end(self, child: Child) -> None:
        """Tells it to end, and lets it finish what it has. It is no child any more when it has ended."""
        if not child.stopping:
            child.stop()
            task = asyncio.create_task(self._see_off(child), name=f"end-{child.name}")
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def restart(self, child: Child) -> None:
        """Has it finish what it has and end, after which it is started again, as its command says by then.

        Returns when it has ended.
        """
        child.restart()
        ended = asyncio.create_task(child.process_ended())
        try:
            await self._until_ended(child, ended)
        finally:
            ended.cancel()

    async def settled(self, child: Child) -> None:
        """Returns when it is up for the first time, or has ended for good."""
        running = self._running.get(child)
        if running is None:
            return
        up = asyncio.create_task(child.was_up.wait())
        try:
            await asyncio.wait({up, running}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()

    def say(self, child: Child, text: str) -> None:
        """Shows the user what has become of it."""
        self._show(child.name, text, True)

    async def failure(self) -> str:
        """Waits until a child that had to start did not, and says so."""
        return await asyncio.shield(self._failure)

    def kill(self) -> None:
        """Ends all children at once."""
        for child in self.children:
            child.kill()

    async def close(self) -> None:
        """Ends all children in order."""
        self._closing = True
        for child in self.children:
            child.stop()
        running = list(self._running.values())
        if running:
            _, late = await asyncio.wait(running, timeout=self.end_timeout_s)
            if late:
                self.kill()
        await asyncio.gather(*running, *self._farewells, return_exceptions=True)

    async def _see_off(self, child: Child) -> None:
        await self._until_ended(child, self._running[child])
        del self._running[child]
        self.children.remove(child)
        self.say(child, "has ended")

    async def _until_ended(self, child: Child, end: asyncio.Task[None]) -> None:
        """Waits for what a child was told to do, and kills it when that takes too long."""
        _, late = await asyncio.wait({end}, timeout=self.end_timeout_s)
        if late:
            self.say(child, f"has not ended within {self.end_timeout_s:g} s: it is killed")
            child.kill()
            await asyncio.wait({end})

    def _on_end(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_result(str(error) or repr(error))
