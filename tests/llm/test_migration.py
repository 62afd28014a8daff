"""Streams whose workers are lost: what arrives is what would have arrived."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamo.errors import (
    CannotResumeError,
    ConnectionLostError,
    DeadlineExceededError,
    DrainingError,
    DynamoError,
    HandlerError,
    InternalError,
    NobodyLeftError,
    NoInstancesError,
    OverloadedError,
    RequestCancelledError,
    WorkerStalledError,
)
from dynamo.llm.migration import Migration
from dynamo.llm.migration_config import MigrationConfig
from dynamo.protocols.disagg import DisaggReport, PrefillReason
from dynamo.protocols.generation import (
    FinishReason,
    GuidedDecoding,
    LLMEngineOutput,
    Logprob,
    OutputOptions,
    PreprocessedRequest,
    StopConditions,
    TokenLogprobs,
    WorkerId,
    merge_outputs,
)
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage
from dynamo.testing import within
from dynamo.testing.stages import outputs_of, reading
from dynamo.tokens import token_array

PROMPT = (1, 2, 3)
SCRIPT = tuple(range(100, 120))  # what the model says to the prompt
LOST = ConnectionLostError("gone")
HANG = object()

# How one attempt to be served goes: so many tokens, and then what happens; None: it ends as it should.
Attempt = tuple[int, Any]


def request(**fields: Any) -> PreprocessedRequest:
    fields = {
        "stop_conditions": StopConditions(max_tokens=len(SCRIPT)),
        "output_options": OutputOptions(logprobs=0),
    } | fields
    return PreprocessedRequest(model="m", token_ids=token_array(PROMPT), **fields)


@dataclass
class Fleet:
    """A Stage in place of a router and workers of one deterministic model, which fail as they are told."""

    attempts: list[Attempt] = field(default_factory=list)  # afterwards all goes well
    tokens_per_step: int = 1
    ends_late: bool = False  # the finish comes in an output of its own
    change: Callable[[PreprocessedRequest, list[LLMEngineOutput]], None] = lambda asked, outputs: None
    requests: list[PreprocessedRequest] = field(default_factory=list)
    open: int = 0
    hung: asyncio.Event = field(default_factory=asyncio.Event)

    async def __call__(self, request: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
        assert not self.open, "the leg before is not over"
        self.requests.append(request)
        tokens, then = self.attempts.pop(0) if self.attempts else (len(SCRIPT), None)
        self.open += 1
        try:
            for output in self._outputs(request, tokens, cut=then is not None):
                if not deliver(output):
                    return
            if then is HANG:
                self.hung.set()
                await asyncio.get_running_loop().create_future()
            elif then is not None:
                raise then
        finally:
            self.open -= 1

    def _outputs(self, request: PreprocessedRequest, tokens: int, *, cut: bool) -> list[LLMEngineOutput]:
        said = request.resumed_tokens
        prompt = tuple(request.token_ids)
        assert prompt == PROMPT + SCRIPT[:said]
        end = said + (request.stop_conditions.max_tokens or len(SCRIPT))
        reach = min(end, said + tokens) if cut else end
        outputs = [
            LLMEngineOutput(token_ids=list(ids), logprobs=[logprobs_of(i) for i in ids])
            for start in range(said, reach, self.tokens_per_step)
            if (ids := SCRIPT[start : min(reach, start + self.tokens_per_step)])
        ]
        if not outputs:
            return []
        first = outputs[0]
        first.worker_id, first.cached_tokens = WorkerId(len(self.requests)), len(prompt) - 1
        first.disaggregation = DisaggReport(prefill="local", reason=PrefillReason.SHORT, prompt_tokens=len(prompt))
        if request.output_options.prompt_logprobs is not None:
            first.prompt_logprobs = [None, *map(logprobs_of, prompt[1:])]
        if reach == end and not self.ends_late:
            outputs[-1].finish_reason = FinishReason.LENGTH
        elif not cut:
            outputs.append(LLMEngineOutput(finish_reason=FinishReason.LENGTH))
        self.change(request, outputs)
        return outputs


def logprobs_of(token_id: int) -> TokenLogprobs:
    return TokenLogprobs(Logprob(token_id, -token_id / 7), [])


def migration(
    tokens: Stage[PreprocessedRequest, LLMEngineOutput],
    *,
    limit: int = 3,
    wait_s: float = 10.0,
    timeout_s: float = 0.0,
    **options: Any,
) -> Migration:
    config = MigrationConfig(migration_limit=limit, migration_wait_s=wait_s, inter_token_timeout_s=timeout_s)
    return Migration(tokens, config, **options)


async def undisturbed(asked: PreprocessedRequest) -> LLMEngineOutput:
    return merge_outputs(await outputs_of(migration(Fleet()), asked))


async def answered(fleet: Fleet, asked: PreprocessedRequest | None = None, **options: Any) -> LLMEngineOutput:
    return merge_outputs(await outputs_of(migration(fleet, **options), asked or request()))


async def failure(fleet: Fleet, asked: PreprocessedRequest | None = None, **options: Any) -> DynamoError:
    with pytest.raises(DynamoError) as raised:
        await answered(fleet, asked, **options)
    return raised.value


class TestWhatArrives:
    @given(
        attempts=st.lists(st.tuples(st.integers(1, 12), st.just(LOST)), max_size=4),
        max_tokens=st.integers(1, len(SCRIPT)),
        tokens_per_step=st.integers(1, 4),
        ends_late=st.booleans(),
        prompt_logprobs=st.sampled_from([None, 0]),
    )
    @settings(deadline=None)
    async def test_is_what_would_have_arrived(
        self,
        attempts: list[Attempt],
        max_tokens: int,
        tokens_per_step: int,
        ends_late: bool,
        prompt_logprobs: int | None,
    ) -> None:
        asked = request(
            stop_conditions=StopConditions(max_tokens=max_tokens),
            output_options=OutputOptions(logprobs=0, prompt_logprobs=prompt_logprobs),
        )
        fleet = Fleet(list(attempts), tokens_per_step, ends_late)
        outputs = await outputs_of(migration(fleet, limit=4), asked)
        assert [output.finish_reason is None for output in outputs[:-1]] == [True] * (len(outputs) - 1)
        assert all(output.worker_id is None and output.disaggregation is None for output in outputs[1:])
        assert merge_outputs(outputs) == await undisturbed(asked)

    async def test_all_of_it_is_asked_for_once(self) -> None:
        fleet = Fleet([(3, LOST), (4, LOST)])
        assert await answered(fleet) == await undisturbed(request())
        assert [asked.resumed_tokens for asked in fleet.requests] == [0, 3, 7]
        assert [asked.lost_by for asked in fleet.requests] == [[], [1], [1, 2]]

    async def test_moves_are_counted_and_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        moves: list[None] = []
        await answered(Fleet([(3, LOST), (4, LOST)]), on_move=lambda: moves.append(None))
        assert len(moves) == 2
        assert "instance 1 is lost after 3 tokens" in caplog.text
        assert "instance 2 is lost after 7 tokens" in caplog.text

    async def test_an_error_after_the_end_is_none(self) -> None:
        fleet = Fleet([(len(SCRIPT), LOST)])
        assert await answered(fleet) == await undisturbed(request())
        assert len(fleet.requests) == 1

    async def test_an_end_that_was_not_said_is_made(self) -> None:
        fleet = Fleet([(len(SCRIPT), LOST)], ends_late=True)
        assert await answered(fleet, limit=0) == await undisturbed(request())
        assert len(fleet.requests) == 1

    async def test_an_engine_that_gives_up_for_reasons_of_its_own(self) -> None:
        def give_up(asked: PreprocessedRequest, outputs: list[LLMEngineOutput]) -> None:
            if not asked.resumed_tokens:
                outputs[3].finish_reason = FinishReason.CANCELLED
                del outputs[4:]

        fleet = Fleet(change=give_up)
        assert await answered(fleet) == await undisturbed(request())
        assert [asked.resumed_tokens for asked in fleet.requests] == [0, 4]

    async def test_an_engine_that_gives_up_because_it_was_asked_to(self) -> None:
        context = Context()

        def give_up(asked: PreprocessedRequest, outputs: list[LLMEngineOutput]) -> None:
            context.stop_generating()
            outputs[3].finish_reason = FinishReason.CANCELLED
            del outputs[4:]

        outputs = await outputs_of(migration(Fleet(change=give_up)), request(), context)
        assert outputs[-1].finish_reason is FinishReason.CANCELLED

    async def test_nothing_more_than_the_reader_wants(self) -> None:
        fleet = Fleet([(3, LOST)])
        assert len(await outputs_of(migration(fleet), request(), enough=5)) == 5
        assert [asked.resumed_tokens for asked in fleet.requests] == [0, 3]


class TestWhatEndsIt:
    async def test_limit(self) -> None:
        fleet = Fleet([(2, LOST)] * 5)
        assert await failure(fleet, limit=3) is LOST
        assert len(fleet.requests) == 4

    async def test_those_that_were_lost_before_they_said_anything_count(self) -> None:
        fleet = Fleet([(2, LOST), (0, NobodyLeftError("lost")), (2, LOST), (2, LOST)])

        async def router(asked: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
            try:
                await fleet(asked, context, deliver)
            except NobodyLeftError:
                asked.lost_by.append(7)
                raise

        with pytest.raises(ConnectionLostError):
            await outputs_of(migration(router, limit=3), request())
        assert [asked.resumed_tokens for asked in fleet.requests] == [0, 2, 2, 4]

    async def test_limit_of_none_at_all(self) -> None:
        fleet = Fleet([(2, LOST)])
        assert await failure(fleet, limit=0) is LOST
        assert len(fleet.requests) == 1

    @pytest.mark.parametrize("error", [HandlerError("tripped"), InternalError("defect")])
    async def test_error_that_another_worker_would_have_too(self, error: DynamoError) -> None:
        fleet = Fleet([(2, error)])
        assert await failure(fleet) is error
        assert len(fleet.requests) == 1

    async def test_worker_that_the_client_has_named(self) -> None:
        fleet = Fleet([(2, LOST)])
        assert await failure(fleet, request(target=WorkerId(1))) is LOST
        assert len(fleet.requests) == 1

    async def test_within_a_grammar(self) -> None:
        fleet = Fleet([(2, LOST)])
        error = await failure(fleet, request(guided_decoding=GuidedDecoding(json_object=True)))
        assert isinstance(error, CannotResumeError)
        assert error.__cause__ is LOST
        assert (error.code, error.http_status, error.retryable) == ("cannot_resume", 503, True)
        assert len(fleet.requests) == 1

    async def test_an_error_when_the_reader_has_enough(self) -> None:
        fleet = Fleet()

        async def fails_late(asked: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]) -> None:
            await fleet(asked, context, deliver)
            raise LOST

        assert len(await outputs_of(migration(fails_late), request(), enough=5)) == 5
        assert len(fleet.requests) == 1

    async def test_the_reader_s_own_error(self) -> None:
        """Whatever it says of trying again."""

        def fail(output: LLMEngineOutput) -> bool:
            raise LOST

        fleet = Fleet()
        with pytest.raises(ConnectionLostError):
            await within(_run(migration(fleet), request(), Context(), fail))
        assert len(fleet.requests) == 1

    @pytest.mark.parametrize("stop", [Context.kill, Context.stop_generating])
    async def test_a_stop_is_no_reason_to_go_on(self, stop: Callable[[Context], None]) -> None:
        context, fleet = Context(), Fleet([(2, LOST)])

        def deliver(output: LLMEngineOutput) -> bool:
            stop(context)
            return True

        with pytest.raises(RequestCancelledError):
            await within(_run(migration(fleet), request(), context, deliver))
        assert len(fleet.requests) == 1


class TestNobodyLeft:
    async def test_a_worker_that_comes_in_time(self) -> None:
        nobody: list[Attempt] = [
            (0, NoInstancesError("none")),
            (0, OverloadedError("full")),
            (0, NobodyLeftError("lost")),
        ]
        fleet = Fleet([(5, LOST), *nobody])
        assert await answered(fleet) == await undisturbed(request())
        assert [asked.resumed_tokens for asked in fleet.requests] == [0, 5, 5, 5, 5]

    async def test_a_request_that_was_lost_before_its_first_output(self) -> None:
        fleet = Fleet([(0, NobodyLeftError("lost")), (0, NoInstancesError("none"))])
        expected = await undisturbed(request())
        expected.worker_id = WorkerId(3)
        assert await answered(fleet) == expected

    async def test_a_request_whose_only_known_worker_is_leaving(self) -> None:
        """Another one has taken its place, perhaps, which is not known here yet."""
        fleet = Fleet([(0, DrainingError("leaves")), (0, NoInstancesError("none"))])
        assert (await answered(fleet)).token_ids == (await undisturbed(request())).token_ids
        assert len(fleet.requests) == 3

    @pytest.mark.parametrize("error", [NoInstancesError("none"), OverloadedError("full"), LOST])
    async def test_a_request_that_nobody_has_begun_with_is_refused_at_once(self, error: DynamoError) -> None:
        fleet = Fleet([(0, error)])
        assert await failure(fleet) is error
        assert len(fleet.requests) == 1

    async def test_none_that_comes_in_time(self) -> None:
        error = NoInstancesError("none")
        fleet = Fleet([(5, LOST), *[(0, error)] * 50])
        assert await failure(fleet, wait_s=0.2) is error

    async def test_no_longer_than_the_deadline(self) -> None:
        fleet = Fleet([(5, LOST), *[(0, NoInstancesError("none"))] * 50])
        context = Context(deadline_s=time.monotonic() + 0.1)
        with pytest.raises(DeadlineExceededError):
            await outputs_of(migration(fleet), request(), context)

    @pytest.mark.parametrize("stop", [Context.kill, Context.stop_generating])
    async def test_a_stop_ends_the_waiting(self, stop: Callable[[Context], None]) -> None:
        fleet, context = Fleet([(5, LOST), *[(0, NoInstancesError("none"))] * 50]), Context()
        async with reading(migration(fleet), request(), context) as reader:
            await reader.until(5)
            stop(context)
            with pytest.raises(RequestCancelledError):
                await reader.end()


class TestStalls:
    async def test_a_worker_that_falls_silent_is_lost(self) -> None:
        fleet = Fleet([(3, HANG)])
        assert await answered(fleet, timeout_s=0.05) == await undisturbed(request())
        assert fleet.requests[1].lost_by == [1]

    async def test_and_its_error_is_the_answer_where_nobody_may_go_on(self) -> None:
        error = await failure(Fleet([(3, HANG)]), limit=0, timeout_s=0.05)
        assert isinstance(error, WorkerStalledError)
        assert error.retryable

    async def test_before_the_first_output_it_may_take_its_time(self) -> None:
        """Prompts may wait long, and be long."""
        fleet = Fleet([(0, HANG)])
        async with reading(migration(fleet, timeout_s=0.01), request()) as reader:
            await within(fleet.hung.wait())
            await asyncio.wait([reader.task], timeout=0.1)
            assert not reader.task.done()

    async def test_not_while_the_reader_is_behind(self) -> None:
        context, fleet = Context(), Fleet([(3, HANG)])
        async with reading(migration(fleet, limit=0, timeout_s=0.05), request(), context) as reader:
            await reader.until(3)
            context.pause()
            await asyncio.wait([reader.task], timeout=0.2)
            assert not reader.task.done()
            context.resume()
            with pytest.raises(WorkerStalledError):
                await reader.end()

    async def test_a_timeout_of_the_workers_own_is_its_error(self) -> None:
        with pytest.raises(TimeoutError):
            await outputs_of(migration(Fleet([(3, TimeoutError())]), timeout_s=5), request())


async def test_idle() -> None:
    fleet = Fleet([(3, HANG)])
    stage = migration(fleet)
    assert stage.idle
    async with reading(stage, request()) as reader:
        await reader.until(3)
        assert not stage.idle
        waiting = asyncio.create_task(stage.until_idle())
    await within(waiting)
    assert stage.idle


async def _run(
    stage: Migration, asked: PreprocessedRequest, context: Context, deliver: Deliver[LLMEngineOutput]
) -> None:
    await stage(asked, context, deliver)
