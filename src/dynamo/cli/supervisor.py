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
        self._running: dict[Child, asyncio.Task[None]] = {}
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
        task.add_done_callback(lambda task: self._on_end(child, task))
        return child

    def end(self, child: Child) -> None:
        """Tells it to end, and lets it finish what it has. It is no child any more when it has ended."""
        if not child.stopping:
            child.stop()
            task = asyncio.create_task(self._see_off(child), name=f"end-{child.name}")
            self._farewells.add(task)
            task.add_done_callback(self._farewells.discard)

    async def settled(self, child: Child) -> None:
        """Returns when it is up for the first time, or has ended for good."""
        up = asyncio.create_task(child.was_up.wait())
        try:
            await asyncio.wait({up, self._running[child]}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            up.cancel()

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
        task = self._running[child]
        _, late = await asyncio.wait({task}, timeout=self.end_timeout_s)
        if late:
            self._show(child.name, f"has not ended within {self.end_timeout_s:g} s: it is killed", True)
            child.kill()
            await asyncio.wait({task})
        self.children.remove(child)
        self._show(child.name, "has ended", True)

    def _on_end(self, child: Child, task: asyncio.Task[None]) -> None:
        del self._running[child]
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._failure.done():
            self._failure.set_result(str(error) or repr(error))
