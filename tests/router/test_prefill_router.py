"""Requests over two kinds of workers: both legs, what is left out, and whatever fails on the way."""

import asyncio
import dataclasses
import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from dynamo.config import Live
from dynamo.errors import (
    ConnectionLostError,
    DeadlineExceededError,
    DrainingError,
    DynamoError,
    HandoffLostError,
    InternalError,
    InvalidRequestError,
    NobodyLeftError,
    NoInstancesError,
    OverloadedError,
    RequestCancelledError,
)
from dynamo.protocols.disagg import DisaggReport, Handoff
from dynamo.protocols.generation import (
    FinishReason,
    GuidedDecoding,
    LLMEngineOutput,
    OutputOptions,
    PreprocessedRequest,
    SamplingOptions,
    StopConditions,
    WorkerId,
)
from dynamo.protocols.routing import Prospect
from dynamo.router.disagg import DisaggConfig
from dynamo.router.placement import SelectorPlacer
from dynamo.router.prefill_router import PrefillRouter
from dynamo.router.push_router import PushRouter
from dynamo.router.selection import RouterMode
from dynamo.runtime.context import Context
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.tokens import token_array

from .conftest import Fleet

HANDOFF = Handoff(engine="test", params=b"here")
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=9)
DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)
PREFILLED = LLMEngineOutput(token_ids=[7], cached_tokens=4, handoff=HANDOFF, finish_reason=FinishReason.LENGTH)


def request(**fields: Any) -> PreprocessedRequest:
    defaults: dict[str, Any] = {"token_ids": token_array(range(10)), "explain_routing": True}
    return PreprocessedRequest(model="m", **(defaults | fields))


def both(*, decode: Fleet, prefill: Fleet, config: DisaggConfig | None = None, **options: Any) -> PrefillRouter:
    """A router over both kinds, of which all of `decode` take handoffs; `options` of the PushRouter of these."""
    router = PrefillRouter(decode.router(fetches=lambda _: True, **options), Live(config or DisaggConfig()))
    router.use(prefill.router())
    return router


async def answered(router: PrefillRouter, asked: PreprocessedRequest, context: Context | None = None) -> DisaggReport:
    """The report that came with a whole answer."""
    outputs = await outputs_of(router.generate, asked, context)
    assert [token for output in outputs for token in output.token_ids] == [1, 2]  # the decode worker's
    report = outputs[0].disaggregation
    assert report is not None
    assert all(output.disaggregation is None for output in outputs[1:])
    return report


class TestBothLegs:
    async def test_each_worker_gets_its_part(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        decode_id, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        prefill_id, prefilling = await prefill_fleet.add_scripted(answers(PREFILLED))
        asked = request(
            stop_conditions=StopConditions(max_tokens=50, min_tokens=3),
            sampling_options=SamplingOptions(temperature=0.5),
            output_options=OutputOptions(logprobs=2),
            guided_decoding=GuidedDecoding(json_object=True),
            dp_rank=0,
            target=WorkerId(decode_id),
            cache_salt="salt",
            session_id="s",
        )
        router = both(decode=fleet, prefill=prefill_fleet)
        report = await answered(router, asked)
        (first,), (second,) = prefilling.requests, decoding.requests
        assert first == request(
            stop_conditions=StopConditions(max_tokens=1, ignore_eos=True),
            cache_salt="salt",
            session_id="s",
            prefill_only=True,
        )
        assert second.handoff == HANDOFF
        second.handoff = None
        assert second == asked
        assert (report.prefill, report.reason, report.worker_id) == ("remote", "unconditional", prefill_id)
        assert report.prefill_ms is not None
        assert router.figures.requests == {("remote", "unconditional"): 1}
        assert sum(router.figures.prefill_seconds.counts) == 1

    async def test_what_the_prefill_worker_had_cached_counts(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(PREFILLED))
        outputs = await outputs_of(both(decode=fleet, prefill=prefill_fleet).generate, request(explain_routing=False))
        assert [output.cached_tokens for output in outputs] == [4, None]
        assert outputs[0].disaggregation is not None  # who has prefilled it is of interest to those who ask no reasons
        assert outputs[0].disaggregation.routing is None

    async def test_decode_begins_with_the_handoff(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        """However long the prefill goes on: until the end of the answer."""
        await fleet.add_scripted(answers(FIRST, DONE))
        _, prefilling = await prefill_fleet.add_scripted(answers(LLMEngineOutput(handoff=HANDOFF)), hang=True)
        assert (await answered(both(decode=fleet, prefill=prefill_fleet), request())).prefill == "remote"
        await eventually(lambda: prefilling.open == 0)

    @pytest.mark.parametrize(
        ("first", "raised"),
        [(ConnectionLostError("gone"), NobodyLeftError), (OverloadedError("full"), OverloadedError)],
    )
    async def test_whether_the_decode_worker_had_begun_is_known_when_nobody_is_left(
        self, fleet: Fleet, prefill_fleet: Fleet, first: DynamoError, raised: type[DynamoError]
    ) -> None:
        """A request that is lost may wait for another worker; one that is refused may not."""
        await fleet.add_scripted(lambda asked: [OverloadedError("full") if asked.handoff is None else first])
        await prefill_fleet.add_scripted(answers(PREFILLED))
        with pytest.raises(DynamoError) as failure:
            await outputs_of(both(decode=fleet, prefill=prefill_fleet).generate, request())
        assert type(failure.value) is raised

    async def test_another_prefill_worker_takes_over(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        for _ in range(2):
            await prefill_fleet.add(Scripted(answers(OverloadedError("full"))))
        well = await prefill_fleet.add(Scripted(answers(PREFILLED)))
        assert (await answered(both(decode=fleet, prefill=prefill_fleet), request())).worker_id == well


class TestLeftOut:
    """Served by the decode worker alone, and why."""

    async def test_follows_who_is_alive(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        router = PrefillRouter(fleet.router(fetches=lambda _: True), Live(DisaggConfig()))
        outputs = await outputs_of(router.generate, request())
        assert outputs[0].disaggregation is None  # there has never been a prefill worker
        assert outputs[0].cached_tokens == 9

        router.use(prefill_fleet.router())
        assert (await answered(router, request())).reason == "no_prefill_worker"
        prefill_id = await prefill_fleet.add(Scripted(answers(PREFILLED)))
        assert (await answered(router, request())).prefill == "remote"
        await prefill_fleet.workers[prefill_id].close()
        await eventually(lambda: not prefill_fleet.client.instance_ids())
        assert (await answered(router, request())).reason == "no_prefill_worker"
        await prefill_fleet.add(Scripted(answers(PREFILLED)))
        assert (await answered(router, request())).prefill == "remote"

    async def test_nobody_takes_handoffs(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        """Not even the worker that the client names."""
        decode_id, _ = await fleet.add_scripted(answers(FIRST, DONE))
        aggregated_id, _ = await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(PREFILLED))
        router = PrefillRouter(fleet.router(fetches=lambda i: i == decode_id), Live(DisaggConfig()))
        router.use(prefill_fleet.router())
        assert (await answered(router, request(target=WorkerId(aggregated_id)))).reason == "no_decode_worker"
        for _ in range(4):
            outputs = await outputs_of(router.generate, request())
            assert outputs[0].worker_id == WorkerId(decode_id)
        router = PrefillRouter(fleet.router(), Live(DisaggConfig()))
        router.use(prefill_fleet.router())
        assert (await answered(router, request())).reason == "no_decode_worker"

    async def test_logprobs_of_the_prompt(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(PREFILLED))
        asked = request(output_options=OutputOptions(prompt_logprobs=1))
        assert (await answered(both(decode=fleet, prefill=prefill_fleet), asked)).reason == "prompt_logprobs"


class TestFailures:
    @pytest.mark.parametrize("error", [OverloadedError("full"), DrainingError("bye")])
    async def test_a_handoff_that_was_refused_goes_to_another_worker(
        self, fleet: Fleet, prefill_fleet: Fleet, error: Exception
    ) -> None:
        refusing = [(await fleet.add_scripted(answers(error)))[1] for _ in range(2)]
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        _, prefilling = await prefill_fleet.add_scripted(answers(PREFILLED))
        report = await answered(both(decode=fleet, prefill=prefill_fleet), request())
        assert report.prefill == "remote"
        assert len(prefilling.requests) == 1
        assert [asked.handoff for asked in decoding.requests] == [HANDOFF]
        assert all(asked.handoff == HANDOFF for worker in refusing for asked in worker.requests)

    async def test_a_worker_that_nobody_reaches_has_not_used_the_handoff(
        self, fleet: Fleet, prefill_fleet: Fleet
    ) -> None:
        """As one that has just gone, before discovery tells."""
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        gone_id, _ = await fleet.add_scripted(answers(FIRST, DONE))
        listener = fleet.workers[gone_id]._listener
        assert listener is not None
        await listener.close()
        await prefill_fleet.add_scripted(answers(PREFILLED))
        router = both(decode=fleet, prefill=prefill_fleet)
        for _ in range(2):
            assert (await answered(router, request())).prefill == "remote"
        assert len(decoding.requests) == 2

    async def test_nothing_is_prefilled_for_what_cannot_be_placed(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        _, prefilling = await prefill_fleet.add_scripted(answers(PREFILLED))
        router = PrefillRouter(fleet.router(RouterMode.DIRECT, fetches=lambda _: True), Live(DisaggConfig()))
        router.use(prefill_fleet.router())
        with pytest.raises(InvalidRequestError, match="direct mode"):
            await answered(router, request())
        router = both(decode=fleet, prefill=prefill_fleet)
        with pytest.raises(InvalidRequestError, match="no worker 17"):
            await answered(router, request(target=WorkerId(17)))
        for instance_id in tuple(fleet.workers):
            await fleet.workers[instance_id].close()
        await eventually(lambda: not fleet.client.instance_ids())
        with pytest.raises(NoInstancesError):
            await answered(router, request())
        assert not prefilling.requests

    async def test_a_worker_that_the_client_named_dies_with_the_handoff(
        self, fleet: Fleet, prefill_fleet: Fleet
    ) -> None:
        """Its end is what is told, and not that there is no such worker."""
        target, decoding = await fleet.add_scripted(answers(), hang=True)
        await prefill_fleet.add_scripted(answers(PREFILLED))
        router = both(decode=fleet, prefill=prefill_fleet)
        answer = asyncio.create_task(answered(router, request(target=WorkerId(target))))
        await eventually(lambda: decoding.open == 1)
        await fleet.workers[target].close(graceful=False)
        with pytest.raises(DrainingError):
            await within(answer)

    async def test_one_that_just_failed_takes_handoffs_if_there_is_no_other(
        self, fleet: Fleet, prefill_fleet: Fleet
    ) -> None:
        decode_id, _ = await fleet.add_scripted(answers(FIRST, DONE))
        await fleet.add_scripted(answers(FIRST, DONE))  # that cannot
        await prefill_fleet.add_scripted(answers(PREFILLED))
        router = PrefillRouter(fleet.router(fetches=lambda i: i == decode_id), Live(DisaggConfig()))
        router.use(prefill_fleet.router())
        fleet.client.avoid(decode_id)
        assert (await answered(router, request())).prefill == "remote"

    @pytest.mark.parametrize("error", [ConnectionLostError("gone"), OverloadedError("full"), InternalError("broken")])
    async def test_prefill_fails(self, fleet: Fleet, prefill_fleet: Fleet, error: Exception) -> None:
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        prefill_id, _ = await prefill_fleet.add_scripted(answers(error))
        router = both(decode=fleet, prefill=prefill_fleet)
        assert (await answered(router, request())).reason == "prefill_failed"
        lost_by = [prefill_id] if isinstance(error, ConnectionLostError) else []
        assert decoding.requests == [request(lost_by=lost_by)]
        assert router.figures.requests == {("local", "prefill_failed"): 1}

    async def test_prefill_hands_nothing_on(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(DONE))
        assert (await answered(both(decode=fleet, prefill=prefill_fleet), request())).reason == "prefill_failed"

    async def test_what_the_client_got_wrong_is_said(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(InvalidRequestError("bad", param="p")))
        with pytest.raises(InvalidRequestError):
            await answered(both(decode=fleet, prefill=prefill_fleet), request())
        assert not decoding.requests

    @pytest.mark.parametrize("error", [HandoffLostError("late"), ConnectionLostError("gone")])
    async def test_a_handoff_is_used_once(self, fleet: Fleet, prefill_fleet: Fleet, error: Exception) -> None:
        """Whoever had it may have freed what it names: all goes on without."""

        def script(asked: PreprocessedRequest) -> Iterable[LLMEngineOutput | Exception]:
            return [error] if asked.handoff is not None else [FIRST, DONE]

        scripted = [(await fleet.add_scripted(script))[1] for _ in range(3)]
        await prefill_fleet.add_scripted(answers(PREFILLED))
        moves: list[None] = []
        router = both(decode=fleet, prefill=prefill_fleet, on_lost=lambda: moves.append(None))
        report = await answered(router, request())
        assert (report.prefill, report.reason) == ("local", "handoff_lost")
        assert len(moves) == isinstance(error, ConnectionLostError)
        handoffs = [asked.handoff for worker in scripted for asked in worker.requests]
        assert sorted(handoffs, key=bool) == [None, HANDOFF]
        avoided = isinstance(error, ConnectionLostError)  # who only could not fetch is well
        assert len(fleet.client.available_ids()) == (2 if avoided else 3)

    async def test_not_after_the_first_output(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        _, decoding = await fleet.add_scripted(answers(FIRST, ConnectionLostError("gone")))
        await prefill_fleet.add_scripted(answers(PREFILLED))
        async with reading(both(decode=fleet, prefill=prefill_fleet).generate, request()) as reader:
            with pytest.raises(ConnectionLostError):
                await reader.end()
        assert len(decoding.requests) == 1

    async def test_prefill_worker_dies(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add_scripted(answers(FIRST, DONE))
        prefill_id, prefilling = await prefill_fleet.add_scripted(answers(), hang=True)
        answer = asyncio.create_task(answered(both(decode=fleet, prefill=prefill_fleet), request()))
        await eventually(lambda: prefilling.open == 1)
        await prefill_fleet.workers[prefill_id].close(graceful=False)
        assert (await within(answer)).reason == "prefill_failed"


class TestEnds:
    """A client that stops, leaves or has no more time: in each phase both legs hear of it."""

    async def test_stop_during_prefill(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add(stoppable)
        context = Context()
        async with reading(both(decode=fleet, prefill=prefill_fleet).generate, request(), context) as reader:
            await eventually(lambda: bool(prefill_fleet.in_flight))
            context.stop_generating()
            assert [output.finish_reason for output in await reader.end()] == [FinishReason.CANCELLED]
        assert not decoding.requests

    async def test_stop_during_decode(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        await fleet.add(stoppable)
        await prefill_fleet.add_scripted(answers(PREFILLED))
        context = Context()
        async with reading(both(decode=fleet, prefill=prefill_fleet).generate, request(), context) as reader:
            await eventually(lambda: bool(fleet.in_flight))
            context.stop_generating()
            assert [output.finish_reason for output in await reader.end()] == [FinishReason.CANCELLED]

    @pytest.mark.parametrize("phase", ["prefill", "decode"])
    async def test_client_leaves(self, fleet: Fleet, prefill_fleet: Fleet, phase: str) -> None:
        _, decoding = await fleet.add_scripted(answers(), hang=True)
        _, prefilling = await prefill_fleet.add_scripted(
            answers(*([] if phase == "prefill" else [LLMEngineOutput(handoff=HANDOFF)])), hang=True
        )
        async with reading(both(decode=fleet, prefill=prefill_fleet).generate, request()):
            await eventually(lambda: (prefilling.open, decoding.open) == (1, int(phase == "decode")))
        await eventually(lambda: (prefilling.open, decoding.open) == (0, 0))
        assert not fleet.in_flight
        assert not prefill_fleet.in_flight

    @pytest.mark.parametrize("phase", ["prefill", "decode"])
    async def test_deadline(self, fleet: Fleet, prefill_fleet: Fleet, phase: str) -> None:
        _, decoding = await fleet.add_scripted(answers(), hang=True)
        _, prefilling = await prefill_fleet.add_scripted(
            answers(*([] if phase == "prefill" else [PREFILLED])), hang=phase == "prefill"
        )
        context = Context(deadline_s=asyncio.get_running_loop().time() + 0.1)
        with pytest.raises(DeadlineExceededError):
            await within(outputs_of(both(decode=fleet, prefill=prefill_fleet).generate, request(), context))
        await eventually(lambda: (prefilling.open, decoding.open) == (0, 0))
        assert len(decoding.requests) == int(phase == "decode")

    async def test_prefill_worker_says_that_it_was_cancelled(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        _, decoding = await fleet.add_scripted(answers(FIRST, DONE))
        await prefill_fleet.add_scripted(answers(RequestCancelledError("stopped")))
        with pytest.raises(RequestCancelledError):
            await within(outputs_of(both(decode=fleet, prefill=prefill_fleet).generate, request()))
        assert not decoding.requests


class TestConditions:
    CONFIG = DisaggConfig(
        conditional_disagg=True,
        max_local_prefill_length=5,
        max_local_prefill_ratio=1.0,
        max_prefill_queue_tokens=100,
    )

    async def test_by_what_is_cached(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        router = await self._router(fleet, prefill_fleet, cached=6)
        report = await answered(router, request())
        assert (report.prefill, report.reason) == ("local", "short")
        assert (report.uncached_tokens, report.waiting_tokens) == (4, None)  # nobody was asked
        report = await answered(await self._router(fleet, prefill_fleet, cached=5), request())
        assert (report.prefill, report.reason, report.uncached_tokens) == ("remote", "conditions_not_met", 5)

    async def test_by_the_load_of_the_prefill_worker(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        report = await answered(await self._router(fleet, prefill_fleet, waiting=101), request())
        assert (report.reason, report.waiting_tokens) == ("prefill_busy", 101)
        report = await answered(await self._router(fleet, prefill_fleet, waiting=100), request())
        assert report.prefill == "remote"

    async def test_changed_while_it_runs(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        live = Live(self.CONFIG)
        router = await self._router(fleet, prefill_fleet, live=live)
        assert (await answered(router, request())).reason == "conditions_not_met"
        live.change({"max_local_prefill_length": "11"})
        assert (await answered(router, request())).reason == "short"
        live.change({"conditional_disagg": "no"})
        assert (await answered(router, request())).reason == "unconditional"

    async def test_where_nothing_is_known_own_prompts_count(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        """Those that are at prefill workers now, spread evenly."""
        await fleet.add_scripted(answers(FIRST, DONE))
        hanging = [(await prefill_fleet.add_scripted(answers(), hang=True))[1] for _ in range(2)]
        router = both(decode=fleet, prefill=prefill_fleet, config=self.CONFIG)
        long = request(token_ids=token_array(range(202)))
        async with reading(router.generate, long):
            await eventually(lambda: sum(worker.open for worker in hanging) == 1)
            report = await answered(router, request())
        assert (report.reason, report.waiting_tokens, report.uncached_tokens) == ("prefill_busy", 101, 10)
        async with reading(router.generate, request()) as reader:  # the long one has left
            await eventually(lambda: sum(worker.open for worker in hanging) == 1)
            assert not reader.items

    async def test_nobody_is_asked_what_the_policy_does_not_need(self, fleet: Fleet, prefill_fleet: Fleet) -> None:
        router = await self._router(fleet, prefill_fleet, cached=6, waiting=101, live=Live(self._with("prefill-load")))
        report = await answered(router, request())
        assert (report.reason, report.uncached_tokens, report.waiting_tokens) == ("prefill_busy", None, 101)
        router = await self._router(fleet, prefill_fleet, waiting=101, live=Live(self._with("length")))
        report = await answered(router, request())
        assert (report.prefill, report.uncached_tokens, report.waiting_tokens) == ("remote", 10, None)

    async def test_the_prefill_pool_is_not_asked_for_the_decode_worker(
        self, fleet: Fleet, prefill_fleet: Fleet
    ) -> None:
        router = await self._router(fleet, prefill_fleet, waiting=101)
        (decode_id,) = fleet.workers
        report = await answered(router, request(target=WorkerId(decode_id), dp_rank=0))
        assert report.waiting_tokens == 101

    def _with(self, policy: str) -> DisaggConfig:
        return dataclasses.replace(self.CONFIG, disagg_policy=policy)

    async def _router(
        self,
        fleet: Fleet,
        prefill_fleet: Fleet,
        *,
        cached: int = 0,
        waiting: int = 0,
        live: Live[DisaggConfig] | None = None,
    ) -> PrefillRouter:
        if not fleet.workers:
            await fleet.add_scripted(answers(FIRST, DONE))
            await prefill_fleet.add_scripted(answers(PREFILLED))
        decode = PushRouter(fleet.client, Foreseeing(cached, 0), lambda _: True, lambda _: True)
        router = PrefillRouter(decode, live or Live(self.CONFIG))
        router.use(PushRouter(prefill_fleet.client, Foreseeing(0, waiting), lambda _: True))
        return router


class Foreseeing(SelectorPlacer):
    """Says of every prompt that so many tokens are cached, and so many wait."""

    def __init__(self, cached: int, waiting: int) -> None:
        super().__init__(RouterMode.ROUND_ROBIN, random.Random(0))
        self._prospect = Prospect(cached_tokens=cached, waiting_tokens=waiting)

    async def prospect(self, request: PreprocessedRequest, context: Context, instances: Sequence[int]) -> Any:
        assert request.target is None or request.target.instance_id in instances
        return self._prospect


async def stoppable(request: PreprocessedRequest, context: Context) -> Any:
    """As an engine does: a stop ends the answer in good order."""
    await context.async_killed_or_stopped()
    yield LLMEngineOutput(finish_reason=FinishReason.CANCELLED)
