"""Sending requests to workers: by turns, by load, by name, and to another one when the first fails."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from dynamo.errors import (
    ConnectionLostError,
    DrainingError,
    DynamoError,
    HandlerError,
    InvalidRequestError,
    NobodyLeftError,
    NoInstancesError,
    OverloadedError,
    ProtocolError,
    RequestCancelledError,
    UnreachableError,
)
from dynamo.llm.migration import Migration
from dynamo.llm.migration_config import MigrationConfig
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest, TextEngineOutput, WorkerId
from dynamo.router import PushRouter, RouterMode
from dynamo.router.placement import CountedPlacement, SelectorPlacer
from dynamo.runtime.context import Context
from dynamo.testing import eventually, within
from dynamo.testing.scripted import Scripted, answers
from dynamo.testing.stages import outputs_of, reading
from dynamo.tokens import token_array

from .conftest import Fleet

DONE = LLMEngineOutput(token_ids=[2], finish_reason=FinishReason.STOP)
FIRST = LLMEngineOutput(token_ids=[1], cached_tokens=0)


def request(target: int | None = None) -> PreprocessedRequest:
    worker = None if target is None else WorkerId(target)
    return PreprocessedRequest(model="m", token_ids=token_array([1, 2, 3]), target=worker)


async def served_by(router: PushRouter, target: int | None = None) -> int:
    outputs = await outputs_of(router.generate, request(target))
    assert [token for output in outputs for token in output.token_ids][-1] == 2
    assert outputs[0].worker_id is not None
    assert all(output.worker_id is None for output in outputs[1:])
    return outputs[0].worker_id.instance_id


async def text_of(router: PushRouter, body: dict[str, Any]) -> list[Any]:
    return [output.chunk for output in await outputs_of(router.generate_text, body)]


async def failure(router: PushRouter, target: int | None = None) -> DynamoError:
    with pytest.raises(DynamoError) as raised:
        await within(served_by(router, target))
    return raised.value


async def test_request_arrives_as_it_is(fleet: Fleet) -> None:
    _, worker = await fleet.add_scripted(answers(FIRST, DONE))
    await served_by(fleet.router())
    assert worker.requests == [request()]


async def test_turns(fleet: Fleet) -> None:
    ids = {await fleet.add(Scripted(answers(DONE))) for _ in range(3)}
    router = fleet.router()
    assert Counter([await served_by(router) for _ in range(9)]) == dict.fromkeys(ids, 3)


class TestFailover:
    @pytest.mark.parametrize("error", [OverloadedError("full"), DrainingError("bye"), ConnectionLostError("gone")])
    async def test_before_the_first_output(self, fleet: Fleet, error: DynamoError) -> None:
        _, failing = await fleet.add_scripted(answers(error))
        healthy = await fleet.add(Scripted(answers(FIRST, DONE)))
        router = fleet.router()
        assert [await served_by(router) for _ in range(6)] == [healthy] * 6
        assert len(failing.requests) == 1  # and then it was left alone for a while

    async def test_not_after_the_first_output(self, fleet: Fleet) -> None:
        for _ in range(2):
            await fleet.add(Scripted(answers(FIRST, ConnectionLostError("gone"))))
        async with reading(fleet.router().generate, request()) as reader:
            with pytest.raises(ConnectionLostError):
                await reader.end()
            assert [output.token_ids for output in reader.items] == [[1]]

    async def test_not_where_the_reader_failed(self, fleet: Fleet) -> None:
        """Whatever it says of trying again: that is none of the worker's business."""
        scripted = [(await fleet.add_scripted(answers(FIRST, DONE)))[1] for _ in range(2)]
        for error in (ConnectionLostError("the reader's own"), ZeroDivisionError()):

            def fail(output: LLMEngineOutput, error: Exception = error) -> bool:
                raise error

            with pytest.raises(type(error)) as raised:
                await within(fleet.router().generate(request(), Context(), fail))
            assert raised.value is error
        assert sum(len(worker.requests) for worker in scripted) == 2
        assert len(fleet.client.available_ids()) == 2

    @pytest.mark.parametrize("error", [InvalidRequestError("bad", param="p"), ValueError("tripped")])
    async def test_not_where_another_worker_would_say_the_same(self, fleet: Fleet, error: Exception) -> None:
        scripted = [(await fleet.add_scripted(answers(error)))[1] for _ in range(2)]
        raised = await failure(fleet.router())
        assert isinstance(raised, InvalidRequestError | HandlerError)
        assert sum(len(worker.requests) for worker in scripted) == 1

    async def test_worker_that_has_died(self, fleet: Fleet) -> None:
        healthy = await fleet.add(Scripted(answers(FIRST, DONE)))
        _, hanging = await fleet.add_scripted(answers(), hang=True)
        dying = next(i for i in fleet.workers if i != healthy)
        router = fleet.router()
        waiting = [asyncio.create_task(served_by(router)) for _ in range(4)]
        await eventually(lambda: hanging.open == 2)
        await fleet.workers[dying].close(graceful=False)
        assert await within(asyncio.gather(*waiting)) == [healthy] * 4

    async def test_workers_that_are_replaced_while_it_waits_for_one(self, fleet: Fleet) -> None:
        """As in the queue of a KV router."""
        first = await fleet.add(Scripted(answers(FIRST, DONE)))
        newcomers: list[int] = []

        class Queue(SelectorPlacer):
            async def place(
                self,
                request: PreprocessedRequest | None,
                context: Context,
                instances: Sequence[int],
                target: WorkerId | None,
            ) -> CountedPlacement:
                if first not in instances:
                    return await super().place(request, context, instances, target)
                if not newcomers:
                    newcomers.append(await fleet.add(Scripted(answers(FIRST, DONE))))
                    await fleet.workers.pop(first).close(graceful=False)
                    await eventually(lambda: first not in fleet.client.instance_ids())
                raise NoInstancesError("they have all gone")

        router = PushRouter(fleet.client, Queue(RouterMode.ROUND_ROBIN, random.Random(0)), lambda _: True)
        assert await within(served_by(router)) == newcomers[0]

    async def test_workers_that_go_while_it_waits_for_one(self, fleet: Fleet) -> None:
        await fleet.add(Scripted(answers(FIRST, DONE)))

        class Queue(SelectorPlacer):
            async def place(self, *_: object) -> CountedPlacement:
                raise NoInstancesError("they have all gone")

        router = PushRouter(fleet.client, Queue(RouterMode.ROUND_ROBIN, random.Random(0)), lambda _: True)
        assert isinstance(await failure(router), NoInstancesError)

    async def test_all_are_tried_once(self, fleet: Fleet) -> None:
        scripted = [(await fleet.add_scripted(answers(ConnectionLostError("gone"))))[1] for _ in range(3)]
        assert isinstance(await failure(fleet.router()), NoInstancesError)
        assert [len(worker.requests) for worker in scripted] == [1, 1, 1]

    async def test_the_state_that_workers_are_in_is_passed_on(self, fleet: Fleet) -> None:
        for error in (OverloadedError("full"), UnreachableError("gone")):
            await fleet.add(Scripted(answers(error)))
        raised = await failure(fleet.router())
        assert isinstance(raised, OverloadedError)
        assert raised.message == "full"

    async def test_a_request_that_somebody_had_begun_with_is_lost(self, fleet: Fleet) -> None:
        """Which says more than that others have no room for it: who asked may wait for them."""
        for error in (OverloadedError("full"), ConnectionLostError("gone")):
            await fleet.add(Scripted(answers(error)))
        assert isinstance(await failure(fleet.router()), NobodyLeftError)

    async def test_a_request_that_workers_die_of_does_not_kill_them_all(self, fleet: Fleet) -> None:
        moves: list[None] = []
        scripted = [(await fleet.add_scripted(answers(ConnectionLostError("gone"))))[1] for _ in range(5)]
        router = fleet.router(lost_max=2, on_lost=lambda: moves.append(None))
        raised = await failure(router)
        assert type(raised) is ConnectionLostError
        assert sum(len(worker.requests) for worker in scripted) == 3
        assert len(moves) == 2

    async def test_those_that_it_was_lost_by_before_count(self, fleet: Fleet) -> None:
        ids = [await fleet.add(Scripted(answers(ConnectionLostError("gone")))) for _ in range(3)]
        asked = msgspec.structs.replace(request(), lost_by=[ids[0]])
        with pytest.raises(ConnectionLostError):
            await outputs_of(fleet.router(lost_max=2).generate, asked)
        assert sorted(asked.lost_by) == sorted(ids)

    async def test_a_request_that_workers_die_of_kills_no_more_of_them_when_they_come_back(self, fleet: Fleet) -> None:
        scripted = [(await fleet.add_scripted(answers(ConnectionLostError("gone"))))[1] for _ in range(2)]
        migration = Migration(fleet.router(lost_max=3).generate, MigrationConfig(migration_limit=3))
        with pytest.raises(ConnectionLostError):
            await outputs_of(migration, request())
        assert sum(len(worker.requests) for worker in scripted) == 4

    async def test_refusals_do_not_count(self, fleet: Fleet) -> None:
        for _ in range(3):
            await fleet.add(Scripted(answers(OverloadedError("full"))))
        healthy = await fleet.add(Scripted(answers(FIRST, DONE)))
        router = fleet.router(lost_max=0, on_lost=lambda: pytest.fail("nobody was lost"))
        assert [await served_by(router) for _ in range(4)] == [healthy] * 4

    async def test_those_that_were_lost_with_it_come_last(self, fleet: Fleet) -> None:
        ids = [await fleet.add(Scripted(answers(FIRST, DONE))) for _ in range(3)]
        router = fleet.router()

        async def chosen(lost_by: list[int]) -> int:
            outputs = await outputs_of(router.generate, msgspec.structs.replace(request(), lost_by=lost_by))
            assert outputs[0].worker_id is not None
            return outputs[0].worker_id.instance_id

        assert {await chosen(ids[:2]) for _ in range(6)} == {ids[2]}
        assert {await chosen(ids) for _ in range(6)} == set(ids)

    async def test_a_worker_that_failed_is_taken_again_when_there_is_no_other(self, fleet: Fleet) -> None:
        outcomes: list[Any] = [OverloadedError("full"), DONE]
        only = await fleet.add(Scripted(lambda _: [outcomes.pop(0)]))
        router = fleet.router()
        assert isinstance(await failure(router), OverloadedError)
        assert await served_by(router) == only

    async def test_nobody(self, fleet: Fleet) -> None:
        assert isinstance(await failure(fleet.router()), NoInstancesError)

    async def test_item_of_the_wrong_shape(self, fleet: Fleet) -> None:
        await fleet.add(Scripted(answers("nonsense")))
        assert isinstance(await failure(fleet.router()), ProtocolError)


class TestLeastLoaded:
    async def test_counts_what_is_in_flight(self, fleet: Fleet) -> None:
        for _ in range(3):
            await fleet.add(Scripted(answers(FIRST), hang=True))
        router = fleet.router(RouterMode.LEAST_LOADED)
        async with AsyncExitStack() as stack:
            readers = [await stack.enter_async_context(reading(router.generate, request())) for _ in range(8)]
            async with reading(router.generate, request()) as leaving:
                chosen = [(await reader.until(1))[0].worker_id for reader in (*readers, leaving)]
                assert set(Counter(chosen).values()) == {3}
            async with reading(router.generate, request()) as reader:
                assert (await reader.until(1))[0].worker_id == chosen[-1]

    async def test_a_failed_attempt_is_not_in_flight(self, fleet: Fleet) -> None:
        busy = await fleet.add(Scripted(answers(DONE)))
        refusing = await fleet.add(Scripted(answers(OverloadedError("full"))))
        router = fleet.router(RouterMode.LEAST_LOADED)
        for _ in range(5):
            assert await served_by(router) == busy
        assert isinstance(await failure(router, refusing), OverloadedError)
        assert not fleet.in_flight


class TestDirect:
    async def test_target(self, fleet: Fleet) -> None:
        ids = [await fleet.add(Scripted(answers(FIRST, DONE))) for _ in range(3)]
        for mode in RouterMode:
            router = fleet.router(mode)
            assert [await served_by(router, target) for target in ids] == ids

    async def test_target_that_is_unknown(self, fleet: Fleet) -> None:
        await fleet.add(Scripted(answers(DONE)))
        error = await failure(fleet.router(), target=12)
        assert isinstance(error, InvalidRequestError)
        assert error.param == "nvext.backend_instance_id"
        assert "12" in error.message

    async def test_target_that_serves_another_model(self, fleet: Fleet) -> None:
        own, other = [await fleet.add(Scripted(answers(DONE))) for _ in range(2)]
        assert isinstance(await failure(fleet.router(serves={own}.__contains__), target=other), InvalidRequestError)

    async def test_target_that_fails_is_not_replaced(self, fleet: Fleet) -> None:
        failing = await fleet.add(Scripted(answers(OverloadedError("full"))))
        await fleet.add(Scripted(answers(DONE)))
        router = fleet.router()
        for _ in range(2):  # also when it is left alone by others
            assert isinstance(await failure(router, failing), OverloadedError)
            fleet.client.avoid(failing)

    async def test_direct_mode_needs_a_target(self, fleet: Fleet) -> None:
        only = await fleet.add(Scripted(answers(FIRST, DONE)))
        router = fleet.router(RouterMode.DIRECT)
        error = await failure(router)
        assert isinstance(error, InvalidRequestError)
        assert error.param == "nvext.backend_instance_id"
        assert await served_by(router, only) == only


class TestSharedEndpoint:
    async def test_only_the_models_own_workers_are_used(self, fleet: Fleet) -> None:
        own, other = [await fleet.add_scripted(answers(FIRST, DONE)) for _ in range(2)]
        router = fleet.router(serves={own[0]}.__contains__)
        assert router.workers() == [own[0]]
        assert {await served_by(router) for _ in range(4)} == {own[0]}
        assert not other[1].requests

    async def test_worker_left_alone_is_still_there_for_a_model_that_has_no_other(self, fleet: Fleet) -> None:
        own, _ = [await fleet.add(Scripted(answers(FIRST, DONE))) for _ in range(2)]
        router = fleet.router(serves={own}.__contains__)
        fleet.client.avoid(own)
        assert router.workers() == [own]
        assert await served_by(router) == own


class TestCancel:
    async def test_a_reader_that_leaves_ends_the_work(self, fleet: Fleet) -> None:
        _, worker = await fleet.add_scripted(answers(FIRST), hang=True)
        async with reading(fleet.router().generate, request()) as reader:
            await reader.until(1)
            assert worker.open == 1
        await eventually(lambda: worker.open == 0 and worker.closed_early == 1)

    async def test_a_reader_that_has_enough_ends_the_work(self, fleet: Fleet) -> None:
        _, worker = await fleet.add_scripted(answers(FIRST, FIRST), hang=True)
        router = fleet.router()
        assert len(await outputs_of(router.generate, request(), enough=1)) == 1
        await eventually(lambda: worker.open == 0 and worker.closed_early == 1)
        assert not fleet.in_flight

    async def test_kill_is_no_reason_to_try_another(self, fleet: Fleet) -> None:
        scripted = [(await fleet.add_scripted(answers(), hang=True))[1] for _ in range(2)]
        context = Context()
        async with reading(fleet.router().generate, request(), context) as reader:
            await eventually(lambda: sum(worker.open for worker in scripted) == 1)
            context.kill()
            with pytest.raises(RequestCancelledError):
                await reader.end()
        await eventually(lambda: sum(worker.closed_early for worker in scripted) == 1)
        assert sum(len(worker.requests) for worker in scripted) == 1

    async def test_context_travels(self, fleet: Fleet) -> None:
        _, worker = await fleet.add_scripted(answers(DONE))
        context = Context("my-id", traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        await outputs_of(fleet.router().generate, request(), context)
        assert worker.contexts[0].id() == "my-id"
        assert worker.contexts[0].traceparent == context.traceparent


class TestText:
    async def test_request_and_chunks_as_they_are(self, fleet: Fleet) -> None:
        seen = []

        async def handler(body: dict[str, Any]) -> AsyncIterator[Any]:
            seen.append(body)
            yield {"choices": [{"text": "a"}]}
            yield "b"

        await fleet.add(handler, request_type=Any)
        body = {"model": "m", "own": [1, 2.5, None, {"é": True}]}
        assert await text_of(fleet.router(), body) == [{"choices": [{"text": "a"}]}, "b"]
        assert seen == [body]

    async def test_the_worker_is_named_with_the_first_chunk(self, fleet: Fleet) -> None:
        worker = WorkerId(await fleet.add(Scripted(answers("a", "b", "c")), request_type=Any))
        outputs = await outputs_of(fleet.router().generate_text, {})
        assert outputs == [TextEngineOutput("a", worker), TextEngineOutput("b"), TextEngineOutput("c")]

    async def test_the_worker_that_answered_is_named(self, fleet: Fleet) -> None:
        """Not one that was asked before it."""
        await fleet.add(Scripted(answers(OverloadedError("full"))), request_type=Any)
        healthy = WorkerId(await fleet.add(Scripted(answers("a")), request_type=Any))
        router = fleet.router()
        for _ in range(2):
            assert await outputs_of(router.generate_text, {}) == [TextEngineOutput("a", healthy)]

    @pytest.mark.parametrize("nvext", [None, {}, {"backend_instance_id": None}])
    async def test_no_target(self, fleet: Fleet, nvext: Any) -> None:
        await fleet.add(Scripted(answers("a")), request_type=Any)
        body = {"nvext": nvext}
        assert await text_of(fleet.router(), body) == ["a"]
        with pytest.raises(InvalidRequestError):
            await text_of(fleet.router(RouterMode.DIRECT), body)

    async def test_target(self, fleet: Fleet) -> None:
        ids = [await fleet.add(Scripted(answers(name)), request_type=Any) for name in "abc"]
        for mode in (RouterMode.DIRECT, RouterMode.RANDOM):
            for target, name in zip(ids, "abc", strict=True):
                assert await text_of(fleet.router(mode), {"nvext": {"backend_instance_id": target}}) == [name]

    async def test_what_cannot_travel(self, fleet: Fleet) -> None:
        await fleet.add(Scripted(answers("a")), request_type=Any)
        with pytest.raises(InvalidRequestError, match="64 bits"):
            await text_of(fleet.router(), {"seed": 2**64})
