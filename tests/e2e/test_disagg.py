"""Prefill and decode on different workers, real processes: the same answers, whoever joins, leaves or dies."""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from dynamo.protocols.disagg import DisaggReport
from dynamo.testing import within
from dynamo.testing.deployment import Deployment, deployment

from .conversations import BLOCK, CHAT, KV, MOCKER, chat, said
from .load import Loads, loads
from .raw_http import connect, encoded, get, post
from .served import MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

AGGREGATED = "aggregated"  # another model, of the same engine
PREFILL, DECODE = ("--disaggregation-mode", "prefill"), ("--disaggregation-mode", "decode")
# Many steps for a prompt, and each takes long.
SLOW = (
    *("--speedup-ratio", "0.05", "--block-size", str(BLOCK)),
    *("--max-num-batched-tokens", "32", "--max-num-seqs", "8"),
)
END_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a client gets, and how."""

    text: str
    prompt_tokens: int
    cached_tokens: int
    disagg: DisaggReport | None


async def ask(url: str, body: dict[str, Any]) -> Answer:
    answer = await post(url, CHAT, body)
    assert answer.status == 200, answer.body
    fields = answer.json()
    disagg = fields["nvext"].get("disaggregation")
    return Answer(
        text=fields["choices"][0]["message"]["content"],
        prompt_tokens=fields["usage"]["prompt_tokens"],
        cached_tokens=fields["usage"]["prompt_tokens_details"]["cached_tokens"],
        disagg=None if disagg is None else msgspec.convert(disagg, DisaggReport),
    )


async def reason(url: str, text: str) -> str:
    """Why the prompt was prefilled where it was."""
    report = (await ask(url, said(text))).disagg
    assert report is not None
    return report.reason


class TestSameAnswers:
    @pytest.mark.parametrize(
        "transfer", [("--kv-transfer", "model"), ("--kv-transfer", "bytes")], ids=["model", "bytes"]
    )
    async def test_as_an_aggregated_worker_gives(
        self, own: Deployment, tiny_model: Path, transfer: Sequence[str]
    ) -> None:
        real = [*transfer, "--kv-bytes-per-token", "1024", "--num-gpu-blocks-override", "2048"]
        (_, url), *_ = await asyncio.gather(
            own.frontend(*KV),
            own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL, *real, "--num-workers", "2"),
            own.mocker(tiny_model, MOCK, *MOCKER, *DECODE, *real, "--num-workers", "2"),
            own.mocker(tiny_model, AGGREGATED, *MOCKER),
        )
        await until_served(url, 5)
        prompts = [f"prompt {i} " * (1 + 20 * i) for i in range(12)]
        split = await asyncio.gather(*(ask(url, said(prompt)) for prompt in prompts))
        whole = await asyncio.gather(*(ask(url, said(prompt) | {"model": AGGREGATED}) for prompt in prompts))
        assert [answer.text for answer in split] == [answer.text for answer in whole]
        assert {answer.disagg.prefill for answer in split if answer.disagg} == {"remote"}
        assert {answer.disagg for answer in whole} == {None}
        for component in ("prefill", "backend"):
            async with loads(own, component=component) as asked:
                await asked.until_idle(END_S)


class TestWhoIsAlive:
    async def test_prefill_workers_come_and_go_under_load(self, own: Deployment, tiny_model: Path) -> None:
        """No request is lost, and the way of each follows from who is there."""
        (_, url), _ = await asyncio.gather(
            own.frontend(), own.mocker(tiny_model, MOCK, *MOCKER, *DECODE, "--num-workers", "2")
        )
        await until_served(url, 2)
        assert (await ask(url, said("nobody yet"))).disagg is None
        load = Load(url)
        async with load.running():
            for way_out in (signal.SIGKILL, signal.SIGTERM):
                first = await own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL)
                second = await own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL)
                await until_served(url, 4)
                await load.until("unconditional")
                first.signal(way_out)
                await first.exit_code()
                await until_served(url, 3)
                await load.until("unconditional")
                second.signal(way_out)
                await second.exit_code()
                await until_served(url, 2)
                await load.until("no_prefill_worker")
        assert load.answers > 50

    async def test_decode_workers_are_replaced_under_load(self, own: Deployment, tiny_model: Path) -> None:
        """One that ends in good order takes no handoff any more: nothing is prefilled twice."""
        (_, url), _, old = await asyncio.gather(
            own.frontend(),
            own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL),
            own.mocker(tiny_model, MOCK, *MOCKER, *DECODE),
        )
        await until_served(url, 2)
        load = Load(url)
        async with load.running():
            await load.until("unconditional")
            for _ in range(2):
                new = await own.mocker(tiny_model, MOCK, *MOCKER, *DECODE)
                await until_served(url, 3)
                old.signal(signal.SIGTERM)
                assert await old.exit_code() == 0
                await until_served(url, 2)
                old = new
            await load.until("unconditional")
        assert load.reasons == {"unconditional"}

    async def test_with_workers_that_do_both(self, own: Deployment, tiny_model: Path) -> None:
        (_, url), _, decode, _ = await asyncio.gather(
            own.frontend(),
            own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL),
            own.mocker(tiny_model, MOCK, *MOCKER, *DECODE),
            own.mocker(tiny_model, MOCK, *MOCKER),
        )
        await until_served(url, 3)
        load = Load(url)
        async with load.running():
            await load.until("unconditional")
            decode.signal(signal.SIGTERM)
            await decode.exit_code()
            await until_served(url, 2)
            await load.until("no_decode_worker")
        assert load.reasons <= {"unconditional", "no_decode_worker", "handoff_lost"}

    async def test_decode_worker_dies_with_the_handoff(self, own: Deployment, tiny_model: Path) -> None:
        """While it fetches the KV cache: the request goes to another one, which prefills it."""
        slow = ("--kv-transfer-latency", "1000000")
        (_, url), _, dying = await asyncio.gather(
            own.frontend(),
            own.mocker(tiny_model, MOCK, *MOCKER, *PREFILL),
            own.mocker(tiny_model, MOCK, *MOCKER, *DECODE, *slow),
        )
        await until_served(url, 2)
        asking = asyncio.create_task(ask(url, said("in vain")))
        async with loads(own) as decode:
            await decode.until(1, seconds=10)
        await own.mocker(tiny_model, MOCK, *MOCKER, *DECODE)
        await until_served(url, 3)
        dying.signal(signal.SIGKILL)
        answer = await within(asking)
        assert answer.disagg is not None
        assert answer.disagg.reason == "handoff_lost"
        await dying.exit_code()
        async with loads(own) as decode, loads(own, component="prefill") as prefill:
            await decode.until_idle(END_S)
            assert await prefill.requests() == 0  # what it has prefilled in vain it holds until the lease is over
        assert await reason(url, "the next one") == "unconditional"

    async def test_prefill_worker_dies_with_a_request(self, own: Deployment, tiny_model: Path) -> None:
        (_, url), prefill, _ = await asyncio.gather(
            own.frontend(),
            own.mocker(tiny_model, MOCK, *SLOW, *PREFILL),
            own.mocker(tiny_model, MOCK, *MOCKER, *DECODE),
        )
        await until_served(url, 2)
        asking = asyncio.create_task(ask(url, said("in vain " * 100)))
        async with loads(own, component="prefill") as asked:
            await asked.until(1, seconds=10)
        prefill.signal(signal.SIGKILL)
        answer = await within(asking)
        assert answer.disagg is not None
        assert answer.disagg.reason == "prefill_failed"


class TestCancel:
    """A client that leaves in any phase leaves nothing behind, at either worker."""

    LAZY = ("--kv-transfer-latency", "1000000", *MOCKER)

    @pytest.mark.parametrize(
        ("prefill_flags", "decode_flags", "phase"),
        [(SLOW, MOCKER, "prefill"), (MOCKER, LAZY, "transfer"), (MOCKER, SLOW, "decode")],
        ids=["prefill", "transfer", "decode"],
    )
    async def test_client_leaves(
        self, own: Deployment, tiny_model: Path, prefill_flags: Sequence[str], decode_flags: Sequence[str], phase: str
    ) -> None:
        (_, url), *_ = await asyncio.gather(
            own.frontend(),
            own.mocker(tiny_model, MOCK, *prefill_flags, *PREFILL),
            own.mocker(tiny_model, MOCK, *decode_flags, *DECODE),
        )
        await until_served(url, 2)
        async with loads(own) as decode, loads(own, component="prefill") as prefill, connect(url) as connection:
            connection.post(CHAT, encoded(said("left alone " * 50, max_tokens=5000, stream=True)))
            await (prefill if phase == "prefill" else decode).until(1, seconds=10)
            if phase == "decode":
                await connection.head()
                await anext(connection.chunks())
            connection.reset()
            await decode.until_idle(END_S)
            await prefill.until_idle(END_S)


SHORT = ("--max-local-prefill-length", "200", "--max-local-prefill-ratio", "1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditional:
    deployment: Deployment
    url: str
    prefill: Loads


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def conditional(tiny_model: Path) -> AsyncIterator[Conditional]:
    """Two prefill and two decode workers; prompts of under 200 tokens that are not cached stay."""
    async with deployment() as started:
        (_, url), *_ = await asyncio.gather(
            started.frontend(*KV, "--conditional-disagg", *SHORT),
            started.mocker(tiny_model, MOCK, *MOCKER, *PREFILL, "--num-workers", "2"),
            started.mocker(tiny_model, MOCK, *MOCKER, *DECODE, "--num-workers", "2"),
        )
        await until_served(url, 4)
        async with loads(started, component="prefill") as prefill:
            yield Conditional(deployment=started, url=url, prefill=prefill)


class TestConditional:
    async def test_short_prompts_stay(self, conditional: Conditional) -> None:
        assert await reason(conditional.url, "short") == "short"
        assert await reason(conditional.url, "a prompt that is long " * 60) == "conditions_not_met"

    async def test_what_is_cached_where_it_is_decoded_makes_a_prompt_short(self, conditional: Conditional) -> None:
        """As the history of a conversation is, once its first turn is there."""
        history: list[dict[str, str]] = [{"role": "user", "content": "the first turn " * 60}]
        first = await ask(conditional.url, _chat(history))
        history += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "and then?"}]
        second = await ask(conditional.url, _chat(history))
        assert first.disagg is not None
        assert second.disagg is not None
        assert (first.disagg.reason, second.disagg.reason) == ("conditions_not_met", "short")
        assert second.disagg.uncached_tokens is not None
        assert second.prompt_tokens > 200 > second.disagg.uncached_tokens
        assert second.cached_tokens == second.prompt_tokens - second.disagg.uncached_tokens

    async def test_prompts_go_to_the_prefill_worker_that_has_most(self, conditional: Conditional) -> None:
        """Not to the same decode worker, however: there load counts."""
        text = "a common beginning " * 60
        first, second = await ask(conditional.url, said(text)), await ask(conditional.url, said(text + "but " * 300))
        assert first.disagg is not None
        assert second.disagg is not None
        assert first.disagg.prefill == second.disagg.prefill == "remote"
        assert first.disagg.worker_id == second.disagg.worker_id
        assert second.disagg.routing is not None
        assert second.cached_tokens == second.disagg.routing.overlap_blocks * BLOCK > 200

    async def test_thresholds_change_while_it_runs(self, conditional: Conditional) -> None:
        config = ["-m", "dynamo.cli.main", "config", "set"]
        text = "a prompt of some length " * 60
        changed = await conditional.deployment.python(*config, "max-local-prefill-length=100000")
        assert await changed.exit_code(30) == 0
        assert await reason(conditional.url, text) == "short"
        changed = await conditional.deployment.python(*config, "max-local-prefill-length=200")
        assert await changed.exit_code(30) == 0
        assert await reason(conditional.url, f"now {text}") == "conditions_not_met"

    async def test_metrics_tell_of_the_decisions(self, conditional: Conditional) -> None:
        await reason(conditional.url, "brief")
        text = (await get(conditional.url, "/metrics")).body.decode()
        assert f'dynamo_disagg_requests_total{{model="{MOCK}",prefill="local",reason="short"}}' in text
        assert f'dynamo_router_decisions_total{{model="{MOCK}",worker_type="prefill"}}' in text


def _chat(messages: list[dict[str, str]]) -> dict[str, Any]:
    return chat(list(messages), nvext={"extra_fields": ["routing"]})


class Load:
    """Four clients that ask one thing after the other; any failure is the test's."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reasons: list[str] = []
        self._changed = asyncio.Event()

    @property
    def answers(self) -> int:
        return len(self._reasons)

    @property
    def reasons(self) -> set[str]:
        return set(self._reasons)

    def running(self) -> "_Running":
        return _Running([self._client(number) for number in range(4)])

    async def until(self, wanted: str) -> None:
        """Eight answers in a row were given in this way."""
        async with asyncio.timeout(20):
            while self._reasons[-8:] != [wanted] * 8:
                self._changed.clear()
                await self._changed.wait()

    async def _client(self, number: int) -> None:
        asked = 0
        while True:
            asked += 1
            report = (await ask(self._url, said(f"client {number} asks {asked} " * 10))).disagg
            self._reasons.append(report.reason if report is not None else "never a prefill worker")
            self._changed.set()


class _Running:
    """Clients at work within a block."""

    def __init__(self, clients: Sequence[Any]) -> None:
        self._clients = clients
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        self._tasks = [asyncio.create_task(client) for client in self._clients]

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) for each in ended), ended
