"""Workers that turn from decode to prefill and back while requests keep coming: nobody but the log notices."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo.errors import ConnectionLostError, DrainingError, InvalidRequestError, UnavailableError
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import WorkerRole
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment

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
async def fleet(
    deployment: Deployment, model: Path, *flags: str, prefill: int = 2, decode: int = 2, router_mode: str = "kv"
) -> AsyncIterator[Fleet]:
    def start(role: WorkerType) -> asyncio.Future[Program]:
        return asyncio.ensure_future(deployment.mocker(model, "m", "--disaggregation-mode", role.value, *FLAGS, *flags))

    programs = asyncio.gather(*(start(role) for role in [PREFILL] * prefill + [DECODE] * decode))
    (_, url), started = await asyncio.gather(deployment.frontend("--router-mode", router_mode), programs)
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


async def test_back_and_forth_under_load(own: Deployment, tiny_model: Path) -> None:
    flags = ("--kv-transfer", "bytes", "--kv-bytes-per-token", "256")
    async with fleet(own, tiny_model, *flags) as workers, load(workers.url) as clients:
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
    for program in (*workers.prefill, *workers.decode):
        assert "Traceback" not in program.output
        assert "defect" not in program.output


async def test_taking_turns_and_without_time_to_drain(own: Deployment, tiny_model: Path) -> None:
    """What is under way goes on elsewhere. Then nobody prefills for others, and then there is somebody again."""
    async with fleet(own, tiny_model, prefill=1, router_mode="round-robin") as workers, load(workers.url) as clients:
        prefill, decode = await workers.roles.id_of(workers.prefill[0]), await workers.roles.id_of(workers.decode[0])
        for instance_id, role in ((decode, PREFILL), (prefill, DECODE), (decode, DECODE)):
            await workers.roles.ask(instance_id, role, drain_timeout_s=0.0)
            await until_served(workers.url, 3)
            await clients.go_on()
        clients.reasons.clear()
        await clients.go_on()
        assert clients.reasons == {"no_prefill_worker"}
        await workers.roles.ask(prefill, PREFILL)
        await until_served(workers.url, 3)
        await clients.go_on()
        clients.reasons.clear()
        await clients.go_on()
        assert clients.reasons == {"unconditional"}
    assert "cancelling" in workers.decode[0].output


async def test_the_cache_stays_and_its_new_router_hears_of_it(own: Deployment, tiny_model: Path) -> None:
    """A prompt that a decode worker has answered needs no prefill once that is a prefill worker."""
    async with fleet(own, tiny_model, prefill=1, decode=1) as workers:
        former = await workers.roles.id_of(workers.prefill[0])
        await workers.roles.ask(former, DECODE)  # so that the prompt is prefilled where it is decoded
        await until_served(workers.url, 2)
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


async def test_what_is_refused(own: Deployment, tiny_model: Path) -> None:
    slow = ("--speedup-ratio", "0.2")
    async with fleet(own, tiny_model, *slow, prefill=1, decode=1) as workers, loads(own) as decoding:
        ask = workers.roles.ask
        prefill, decode = await workers.roles.id_of(workers.prefill[0]), await workers.roles.id_of(workers.decode[0])
        with pytest.raises(InvalidRequestError, match="no other worker"):
            await ask(decode, PREFILL)
        with pytest.raises(InvalidRequestError, match="not both"):
            await ask(prefill, WorkerType.Aggregated)
        assert (await ask(prefill, PREFILL)).role is PREFILL  # it is one already

        answering = asyncio.create_task(Load(workers.url).ask(0))
        await decoding.until(1, seconds=10)
        changing = asyncio.create_task(ask(decode, PREFILL, force=True))
        await workers.decode[0].line(DRAINS)
        state = await ask(decode)
        assert (state.role, state.becoming) == (DECODE, PREFILL)
        for role in (PREFILL, DECODE):
            with pytest.raises(UnavailableError, match="about to become"):
                await ask(decode, role, force=True)
        changing.cancel()  # who asks need not wait
        assert "length" in await within(answering, 30)
        await workers.decode[0].line("for prefill from now on")
        assert (await ask(decode)).role is PREFILL


async def test_killed_or_told_to_end_while_it_changes(own: Deployment, tiny_model: Path) -> None:
    async with fleet(own, tiny_model, "--speedup-ratio", "0.3", decode=3) as workers, load(workers.url):
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
