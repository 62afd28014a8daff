"""Workers that turn from decode to prefill and back while requests keep coming: nobody but the log notices."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from dynamo.errors import ConnectionLostError, DrainingError, InvalidRequestError, UnavailableError
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import WorkerRole
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment, deployment

from .load import loads
from .raw_http import post
from .roles import Roles, roles
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode
CLIENTS = 6
TOKENS = 40
DRAINS = "once its requests have ended"  # in the log
FLAGS = ("--block-size", "16", "--num-gpu-blocks-override", "2048")


@dataclass(slots=True, kw_only=True)
class Fleet:
    deployment: Deployment
    url: str
    roles: Roles
    prefill: list[Program]
    decode: list[Program]


@asynccontextmanager
async def fleet(deployment: Deployment, model: Path, *flags: str, decode: int = 2) -> AsyncIterator[Fleet]:
    """Two workers prefill, and `decode` decode."""
    prefill = 2

    def start(role: WorkerType) -> asyncio.Future[Program]:
        return asyncio.ensure_future(deployment.mocker(model, "m", "--disaggregation-mode", role.value, *FLAGS, *flags))

    programs = asyncio.gather(*(start(role) for role in [PREFILL] * prefill + [DECODE] * decode))
    (_, url), started = await asyncio.gather(deployment.frontend("--router-mode", "kv"), programs)
    await until_served(url, prefill + decode)
    async with roles(deployment) as asked:
        await asked.until(prefill + decode)
        yield Fleet(deployment=deployment, url=url, roles=asked, prefill=started[:prefill], decode=started[prefill:])


@dataclass(slots=True)
class Load:
    """Clients that keep asking, each the same all the time, so that each answer is known."""

    url: str
    expected: list[str] = field(default_factory=list)
    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    answered: asyncio.Event = field(default_factory=asyncio.Event)

    async def ask(self, number: int) -> str:
        """The answer's text; what is no answer is returned as it is."""
        body = {
            "model": "m",
            "prompt": f"{number} " * (20 * number + 1),
            "max_tokens": TOKENS + number,
            "ignore_eos": True,
            "nvext": {"extra_fields": ["routing"]},
        }
        response = await post(self.url, "/v1/completions", body)
        if response.status != 200:
            return f"{response.status}: {response.body!r}"
        answer = response.json()
        self.reasons.add(answer["nvext"]["disaggregation"]["reason"])
        text: str = answer["choices"][0]["text"]
        return f"{text} ({answer['choices'][0]['finish_reason']}, {answer['usage']['completion_tokens']} tokens)"

    async def keep_asking(self, number: int) -> None:
        while True:
            answer = await self.ask(number)
            self.answers += 1
            self.answered.set()
            if answer != self.expected[number]:
                self.wrong.append(answer)

    async def go_on(self, count: int = 2 * CLIENTS) -> None:
        """Waits for so many more answers."""
        until = self.answers + count
        async with asyncio.timeout(30):
            while self.answers < until:
                self.answered.clear()
                await self.answered.wait()

    async def only(self, reason: str) -> None:
        """Once those under way are answered, this is the reason of all."""
        await self.go_on()
        self.reasons.clear()
        await self.go_on()
        assert self.reasons == {reason}


@asynccontextmanager
async def load(url: str) -> AsyncIterator[Load]:
    """At the end none of the answers was another one than without a disturbance."""
    clients = Load(url)
    clients.expected = await within(asyncio.gather(*(clients.ask(number) for number in range(CLIENTS))), 30)
    assert all("length" in answer for answer in clients.expected)
    tasks = [asyncio.create_task(clients.keep_asking(number)) for number in range(CLIENTS)]
    try:
        await clients.go_on()
        yield clients
        await clients.go_on()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    assert clients.wrong == []


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def workers(tiny_model: Path) -> AsyncIterator[Fleet]:
    """Two that prefill and two that decode, for tests that break nothing."""
    flags = ("--kv-transfer", "bytes", "--kv-bytes-per-token", "256")
    async with deployment() as started, fleet(started, tiny_model, *flags) as workers:
        yield workers
    for program in (*workers.prefill, *workers.decode):
        assert "Traceback" not in program.output
        assert "defect" not in program.output


async def test_back_and_forth_under_load(workers: Fleet) -> None:
    async with load(workers.url) as clients:
        ids = await workers.roles.ids()
        changing = [ids[workers.decode[0].pid], ids[workers.prefill[0].pid]]
        for _ in range(2):
            for instance_id in changing:
                before = await workers.roles.ask(instance_id)
                other = PREFILL if before.role is DECODE else DECODE
                after = await workers.roles.ask(instance_id, other)
                assert (after.role, after.becoming, after.pid) == (other, None, before.pid)
                assert set(await until_served(workers.url, 4)) == set(ids.values())  # they stay the same ones
                await clients.go_on(CLIENTS)
        assert clients.reasons <= {"unconditional", "prefill_failed", "handoff_lost"}


async def test_taking_turns_and_without_time_to_drain(workers: Fleet) -> None:
    """What is under way goes on elsewhere. Then nobody prefills for others, and then there is somebody again."""
    _, url = await workers.deployment.frontend("--router-mode", "round-robin")
    await until_served(url, 4)
    ids = await workers.roles.ids()
    first, second = (ids[program.pid] for program in workers.prefill)
    decode = ids[workers.decode[0].pid]
    async with load(url) as clients:
        for instance_id, role in ((decode, PREFILL), (first, DECODE), (decode, DECODE), (second, DECODE)):
            await workers.roles.ask(instance_id, role, drain_timeout_s=0.0)
            await until_served(url, 4)
            await clients.go_on(CLIENTS)
        await clients.only("no_prefill_worker")
        for instance_id in (first, second):
            await workers.roles.ask(instance_id, PREFILL)
        await until_served(url, 4)
        await clients.only("unconditional")
    assert "cancelling" in workers.decode[0].output


async def test_the_cache_stays_and_its_new_router_hears_of_it(workers: Fleet) -> None:
    """A prompt that a decode worker has answered needs no prefill once that is a prefill worker."""
    ids = await workers.roles.ids()
    prefill = [ids[program.pid] for program in workers.prefill]
    for instance_id in prefill:
        await workers.roles.ask(instance_id, DECODE)  # so that the prompt is prefilled where it is decoded
    await until_served(workers.url, 4)
    body = {"model": "m", "prompt": "a long story " * 40, "max_tokens": 4, "ignore_eos": True}
    body |= {"nvext": {"extra_fields": ["routing", "worker_id"]}}
    answer = (await post(workers.url, "/v1/completions", body)).json()
    holder = answer["nvext"]["worker_id"]["decode_worker_id"]
    await workers.roles.ask(holder, PREFILL)
    async with asyncio.timeout(10):
        while True:  # until the frontend knows of it, and of what it holds
            again = (await post(workers.url, "/v1/completions", body)).json()
            routing = again["nvext"]["disaggregation"]["routing"]
            if routing is not None and routing["overlap_blocks"] == routing["prompt_blocks"]:
                break
    assert routing["worker_id"] == holder
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= again["usage"]["prompt_tokens"] - 16
    assert again["choices"] == answer["choices"]


async def test_killed_or_told_to_end_while_it_changes_and_what_is_refused(own: Deployment, tiny_model: Path) -> None:
    async with fleet(own, tiny_model, "--speedup-ratio", "0.3", decode=3) as workers:
        async with load(workers.url):
            await _end_while_they_change(workers)
        await _what_is_refused(workers, workers.prefill[1], workers.decode[2])


async def _end_while_they_change(workers: Fleet) -> None:
    """Of three that decode and two that prefill, the last of each are left."""
    ids = await workers.roles.ids()

    async def begin(leaving: Program, role: WorkerType) -> asyncio.Task[WorkerRole]:
        changing = asyncio.create_task(workers.roles.ask(ids[leaving.pid], role))
        await leaving.line(DRAINS)
        return changing

    killed = [(workers.decode[0], PREFILL), (workers.prefill[0], DECODE)]
    for number, (leaving, role) in enumerate(killed):
        changing = await begin(leaving, role)
        leaving.signal(signal.SIGKILL)
        with pytest.raises(ConnectionLostError):
            await changing
        await until_served(workers.url, 4 - number)
    leaving = workers.decode[1]
    changing = await begin(leaving, PREFILL)
    leaving.signal(signal.SIGTERM)
    with pytest.raises(DrainingError):
        await changing
    assert await leaving.exit_code() == 0
    await until_served(workers.url, 2)
    assert "Traceback" not in leaving.output


async def _what_is_refused(workers: Fleet, prefilling: Program, decoder: Program) -> None:
    """Of two that are left."""
    async with loads(workers.deployment) as decoding:
        ask = workers.roles.ask
        prefill, decode = await workers.roles.id_of(prefilling), await workers.roles.id_of(decoder)
        with pytest.raises(InvalidRequestError, match="no other worker"):
            await ask(decode, PREFILL)
        with pytest.raises(InvalidRequestError, match="not both"):
            await ask(prefill, WorkerType.Aggregated)
        assert (await ask(prefill, PREFILL)).role is PREFILL  # it is one already

        answering = asyncio.create_task(Load(workers.url).ask(0))
        await decoding.until(1, seconds=10)
        changing = asyncio.create_task(ask(decode, PREFILL, force=True))
        await decoder.line(DRAINS)
        state = await ask(decode)
        assert (state.role, state.becoming) == (DECODE, PREFILL)
        for role in (PREFILL, DECODE):
            with pytest.raises(UnavailableError, match="about to become"):
                await ask(decode, role, force=True)
        changing.cancel()  # who asks need not wait
        assert "length" in await within(answering, 30)
        await decoder.line("for prefill from now on")
        assert (await ask(decode)).role is PREFILL
