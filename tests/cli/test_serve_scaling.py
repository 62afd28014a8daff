"""`dynamo serve` whose workers become more and fewer while it runs."""

import asyncio
import re
import shlex
import signal
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from dynamo.planner.connectors.local import LocalConnector
from dynamo.planner.decision import Convert, Scale
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.testing import Program, eventually, program
from dynamo.testing.free_port import kept_ports

from .processes import children, is_running
from .terminal import CTRL_C, terminal
from .test_serve import START_S, ask, entries, instances, mocker, url_in

A = WorkerType.Aggregated
_POLL_S = 0.02


class Scaled:
    """A deployment in namespace "mine", and who scales it."""

    def __init__(self, serve: Program, connector: LocalConnector) -> None:
        self.serve = serve
        self.url = url_in(serve.output)
        self._connector = connector

    async def scale(self, workers: int, role: WorkerType = A) -> None:
        await self._connector.apply(Scale(role=role, workers=workers))

    async def convert(self, source: WorkerType, destination: WorkerType) -> None:
        await self._connector.apply(Convert(source=source, destination=destination, workers=1))

    async def fleet(self, role: WorkerType = A) -> Fleet:
        return (await self._connector.fleets())[role]

    async def until(self, *, ready: int, draining: int = 0, role: WorkerType = A) -> None:
        async with asyncio.timeout(START_S):
            while await self.fleet(role) != Fleet(desired=ready, ready=ready, draining=draining):  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)

    async def until_served_by(self, workers: int) -> None:
        async with asyncio.timeout(START_S):
            while await asyncio.to_thread(instances, self.url) != workers:  # noqa: ASYNC110 - another process's state
                await asyncio.sleep(_POLL_S)


async def until_observed(url: str, sample: str) -> None:
    """Waits until there is this line among a process's metrics."""

    def metrics() -> list[str]:
        with urllib.request.urlopen(url, timeout=10) as response:
            text: str = response.read().decode()
        return text.splitlines()

    async with asyncio.timeout(START_S):
        while sample not in await asyncio.to_thread(metrics):  # noqa: ASYNC110 - another process's state
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def scaled(model: Path, environ: dict[str, str], *flags: str) -> AsyncIterator[Scaled]:
    async with program(mocker(model, "--namespace", "mine", *flags), environ) as serve:
        await serve.line("Ctrl-C stops everything.", START_S)
        runtime = DistributedRuntime(config=RuntimeConfig(file_kv=environ["DYN_FILE_KV"]))
        try:
            yield Scaled(serve, LocalConnector(runtime, "mine"))
        finally:
            await runtime.close(graceful=False)


@asynccontextmanager
async def clients(url: str, count: int) -> AsyncIterator[list[int]]:
    """Clients that ask all the time within the block; the tokens of each answer. A request that fails ends the test."""
    answers: list[int] = []
    over = asyncio.Event()

    async def keep_asking() -> None:
        while not over.is_set():
            answer = await asyncio.to_thread(ask, url, max_tokens=20, ignore_eos=True)
            answers.append(answer["usage"]["completion_tokens"])

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(keep_asking())
        try:
            yield answers
        finally:
            over.set()


async def test_no_request_is_lost(tiny_model: Path, environ: dict[str, str], discovery: Path) -> None:
    """Of those that come one cannot start, as its port is taken: no reason to end the others, and it may pass."""
    port = kept_ports(3)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 1))
        taken.listen()
        async with scaled(tiny_model, environ, "--rpc-port", str(port)) as it:
            async with clients(it.url, 4) as answers:
                await it.scale(3)
                await it.serve.line(
                    "[worker-2] ended with exit code 1 before it was ready: starting it again in 1 s", START_S
                )
                assert (await it.fleet()).starting_s
                taken.close()
                await it.until(ready=3)
                await it.until_served_by(3)
                await it.scale(1)
                await it.until(ready=1)
                await it.until_served_by(1)
            assert answers
            assert set(answers) == {20}
            assert "[worker-3] has ended" in it.serve.output
            assert len(children(it.serve.pid)) == 2
            await it.scale(0)  # one drains,
            await it.scale(1)  # and one starts
            it.serve.signal(signal.SIGINT)
            assert await it.serve.exit_code(20) == 0
            assert "Traceback" not in it.serve.output
            assert entries(discovery) == []


async def test_workers_turn_from_one_role_to_another(tiny_model: Path, environ: dict[str, str]) -> None:
    flags = ["--prefill-workers", "1", "--decode-workers", "2"]
    async with scaled(tiny_model, environ, *flags) as it, clients(it.url, 4) as answers:
        pids = set(children(it.serve.pid))
        await it.convert(WorkerType.Decode, WorkerType.Prefill)
        await it.until(ready=2, role=WorkerType.Prefill)
        await it.until(ready=1, role=WorkerType.Decode)
        await it.convert(WorkerType.Prefill, WorkerType.Decode)
        await it.until(ready=2, role=WorkerType.Decode)
        await it.until(ready=1, role=WorkerType.Prefill)
        assert set(children(it.serve.pid)) == pids, "nothing was restarted"
        answered = len(answers)
        await eventually(lambda: len(answers) > answered)


async def test_with_a_planner(tiny_model: Path, environ: dict[str, str]) -> None:
    port = kept_ports(3)  # the planner's, and those of two workers
    flags = ["--planner", "--interval-s", "0.2", "--max-workers", "2", "--system-port", str(port)]
    async with terminal(*mocker(tiny_model, *flags, "--namespace", "mine"), environ=environ) as shown:
        await shown.until("Ctrl-C stops everything.", START_S)
        await shown.until("● frontend ● planner ● worker-1  0 in flight")
        found = re.search(r"is shown by\n\n  dynamo (planner status .*)\n", shown.shown)
        assert found, shown.shown
        async with program(["-m", "dynamo.cli.main", *shlex.split(found[1])], environ) as asking:
            assert await asking.exit_code(START_S) == 0
            assert "aggregated" in asking.output
        await until_observed(f"http://127.0.0.1:{port}/metrics", 'dynamo_planner_ready_workers{role="aggregated"} 1.0')
        processes = list(children(shown.pid))
        assert len(processes) == 3
        shown.type(CTRL_C)
        assert await shown.exit_code(20) == 0
        assert not any(map(is_running, processes))
        assert "Traceback" not in shown.shown


async def test_a_planner_that_cannot_start(tiny_model: Path, environ: dict[str, str]) -> None:
    flags = ["--planner", "--profile", "/no/such/file"]
    async with program(mocker(tiny_model, *flags), environ) as serve:
        assert await serve.exit_code(START_S) == 1
        assert "planner ended with exit code 1 before it was ready" in serve.output
