"""Prefill and decode engines in one process, with sockets between them; what becomes of a request in each phase."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec
import pytest

from dynamo.engines.base import EngineInfo
from dynamo.engines.engine_endpoint import EngineEndpoint
from dynamo.engines.mocker.decode_role import DecodeRole
from dynamo.engines.mocker.engine import MockerEngine
from dynamo.engines.mocker.handoff import Grant, HandoffParams
from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.held_prefills import _Held
from dynamo.engines.mocker.prefill_role import PrefillRole
from dynamo.engines.mocker.real_transport import RealTransport
from dynamo.engines.mocker.sampler import Sampler
from dynamo.engines.mocker.scheduler import Scheduler
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.timing import TimingModel
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.errors import HandoffLostError, InternalError, InvalidRequestError
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, PreprocessedRequest
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.context import Context
from dynamo.runtime.handler import closing
from dynamo.testing import eventually, within

MakeRequest = Callable[..., PreprocessedRequest]

INSTANT = TransferModel(bandwidth_gb_s=0.0, bytes_per_token=1024)
SLOW = TransferModel(latency_ms=3_600_000.0, bytes_per_token=1024)  # nothing ever arrives
SIZE = SchedulerConfig(block_size=4, num_blocks=100, max_model_len=200)


class Leg:
    """A prefill leg as a frontend has it: its stream is open until the worker ends it, or close()."""

    def __init__(self, endpoint: EngineEndpoint, request: PreprocessedRequest) -> None:
        self.context = Context()
        self.output: asyncio.Future[LLMEngineOutput] = asyncio.get_running_loop().create_future()  # the only one
        self.stream = asyncio.create_task(self._read(endpoint, prefill_leg(request)))

    async def close(self) -> None:
        self.stream.cancel()
        await asyncio.wait([self.stream])

    async def _read(self, endpoint: EngineEndpoint, request: PreprocessedRequest) -> None:
        async with closing(endpoint.generate(request, self.context)) as outputs:
            async for output in outputs:
                self.output.set_result(output)


class Worker:
    """An engine, and what its tests look at."""

    def __init__(self, config: HandoffConfig, size: SchedulerConfig = SIZE, *, speedup_ratio: float = 0.0) -> None:
        self.scheduler = Scheduler(size, TimingModel(speedup_ratio=speedup_ratio), Sampler(range(1000)))
        self.engine = MockerEngine(self.scheduler, handoffs=config)
        self.endpoint = EngineEndpoint(self.engine)
        self.metrics = self.engine.metrics
        self.legs: list[Leg] = []
        self.info = EngineInfo()

    async def serve(self, request: PreprocessedRequest) -> list[LLMEngineOutput]:
        """All outputs to a request."""

        async def outputs() -> list[LLMEngineOutput]:
            return [output async for output in self.engine.generate(request, Context())]

        return await within(outputs())

    async def empty(self) -> None:
        """Waits until nothing is held, waits or runs."""
        load = self.scheduler.load
        await eventually(lambda: not (load().kv_used_blocks or load().waiting_requests or load().running_requests))

    def begin(self, request: PreprocessedRequest) -> Leg:
        """The prefill leg of a request; it is closed with the worker at the latest."""
        leg = Leg(self.endpoint, request)
        self.legs.append(leg)
        return leg

    async def close(self) -> None:
        await self.engine.cleanup()
        for leg in self.legs:
            await leg.close()

    @property
    def role(self) -> PrefillRole | DecodeRole:
        role = self.engine._role
        assert isinstance(role, PrefillRole | DecodeRole)
        return role

    @property
    def transport(self) -> RealTransport:
        assert isinstance(self.role._transport, RealTransport)
        return self.role._transport


class Fleet:
    """Starts workers that know how to exchange KV caches."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self._stack = stack

    async def worker(
        self,
        role: WorkerType,
        *,
        model: TransferModel = INSTANT,
        real_bytes: bool = False,
        lease_s: float = 60.0,
        size: SchedulerConfig = SIZE,
        speedup_ratio: float = 0.0,
    ) -> Worker:
        config = HandoffConfig(role=role, model=model, real_bytes=real_bytes, lease_s=lease_s)
        worker = Worker(config, size, speedup_ratio=speedup_ratio)
        self._stack.push_async_callback(worker.close)
        worker.info = await worker.engine.start()
        return worker


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


def prefill_leg(request: PreprocessedRequest) -> PreprocessedRequest:
    return msgspec.structs.replace(request, prefill_only=True)


async def prefilled(worker: Worker, request: PreprocessedRequest) -> PreprocessedRequest:
    """The decode leg of a request whose prompt a worker has prefilled; the stream of its prefill leg stays open."""
    output = await within(worker.begin(request).output)
    assert output.finish_reason == FinishReason.LENGTH
    return msgspec.structs.replace(request, handoff=output.handoff)


def tokens(outputs: list[LLMEngineOutput]) -> list[int]:
    return [token_id for output in outputs for token_id in output.token_ids]


@asynccontextmanager
async def under_way(worker: Worker, request: PreprocessedRequest) -> AsyncIterator["asyncio.Task[object]"]:
    """A request that somebody waits for until the end of the block, if it lasts so long."""
    task: asyncio.Task[object] = asyncio.create_task(worker.serve(request))
    try:
        await asyncio.sleep(0)
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("real_bytes", [False, True])
@pytest.mark.parametrize("prefix_caching", [False, True])
async def test_the_answer_is_that_of_one_engine(
    fleet: Fleet, request_of: MakeRequest, real_bytes: bool, prefix_caching: bool
) -> None:
    size = SchedulerConfig(block_size=4, num_blocks=100, max_model_len=200, enable_prefix_caching=prefix_caching)
    prefill = await fleet.worker(WorkerType.Prefill, real_bytes=real_bytes, size=size)
    decode = await fleet.worker(WorkerType.Decode, real_bytes=real_bytes, size=size)
    aggregated = await fleet.worker(WorkerType.Aggregated, size=size)
    for length in (1, 4, 5, 9, 30, 31):
        request = request_of(range(100, 100 + length), max_tokens=20)
        outputs = await decode.serve(await prefilled(prefill, request))

        assert tokens(outputs) == tokens(await aggregated.serve(request))
        assert outputs[0].cached_tokens == length - 1
        await prefill.empty()
        await decode.empty()
        await within(prefill.legs[-1].stream)
    lacking = [0, 3, 0, 4, 21, 2] if prefix_caching else [0, 3, 4, 8, 29, 30]
    assert decode.metrics.tokens == sum(lacking)
    assert decode.metrics.ended == {"ok": sum(tokens > 0 for tokens in lacking)}
    blocks = sum(-(-tokens // 4) for tokens in lacking)
    assert decode.metrics.size_bytes == 1024 * (4 * blocks if real_bytes else sum(lacking))
    assert prefill.metrics.held == prefill.metrics.expired == 0


async def test_many_at_once(fleet: Fleet, request_of: MakeRequest) -> None:
    prefills = [await fleet.worker(WorkerType.Prefill, real_bytes=True) for _ in range(2)]
    decodes = [await fleet.worker(WorkerType.Decode, real_bytes=True) for _ in range(2)]
    requests = [request_of([*range(20), number % 8, *range(number)], max_tokens=20) for number in range(32)]

    async def serve(number: int) -> list[LLMEngineOutput]:
        leg = await prefilled(prefills[number % 2], requests[number])
        return await decodes[number // 2 % 2].serve(leg)

    answers = await asyncio.gather(*map(serve, range(32)))
    for request, outputs in zip(requests, answers, strict=True):
        assert tokens(outputs) == Sampler(range(1000)).script(request, 100).tokens(0, 20)
    for worker in (*prefills, *decodes):
        await worker.empty()
        assert worker.transport._arena.used == 0


async def test_a_transfer_takes_the_time_of_its_model(fleet: Fleet, request_of: MakeRequest) -> None:
    model = TransferModel(bandwidth_gb_s=1e-3, bytes_per_token=1000, latency_ms=5.0)  # 1000 tokens per second
    prefill = await fleet.worker(WorkerType.Prefill, model=model)
    decode = await fleet.worker(WorkerType.Decode, model=model)
    legs = [await prefilled(prefill, request_of(range(start, start + 21), max_tokens=1)) for start in (0, 100)]
    await asyncio.gather(*map(decode.serve, legs))

    assert decode.metrics.duration.sum >= 0.025 + 0.045
    assert decode.metrics.tokens == 40


async def test_what_each_role_refuses(fleet: Fleet, request_of: MakeRequest) -> None:
    request = request_of(range(10), max_tokens=2)
    prefill, decode, aggregated = [await fleet.worker(role) for role in (*_ROLES, WorkerType.Aggregated)]
    decode_leg = await prefilled(prefill, request)
    foreign = msgspec.structs.replace(request, handoff=Handoff(engine="vllm", params=b""))
    broken = msgspec.structs.replace(request, handoff=Handoff(engine="mocker", params=b"?"))

    for worker in (decode, aggregated):
        with pytest.raises(InvalidRequestError):
            await worker.serve(prefill_leg(request))
    for worker, useless in [
        (prefill, decode_leg),
        (decode, foreign),
        (decode, broken),
        (aggregated, foreign),
        (aggregated, decode_leg),
    ]:
        with pytest.raises(HandoffLostError):
            await worker.serve(useless)
    for worker in (prefill, decode):
        assert len(await worker.serve(request)) == 2


_ROLES = (WorkerType.Prefill, WorkerType.Decode)


async def test_each_role_tells_the_format_of_its_handoffs(fleet: Fleet) -> None:
    roles = (*_ROLES, WorkerType.Aggregated)
    formats = [(await fleet.worker(role, real_bytes=True)).info.handoff_format for role in roles]
    assert formats == ["mocker/4/bytes/1024", "mocker/4/bytes/1024", ""]


async def test_a_handoff_is_good_for_one_decode(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill, decode, other = [await fleet.worker(role) for role in (*_ROLES, WorkerType.Decode)]
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    await decode.serve(leg)

    with pytest.raises(HandoffLostError, match="not held"):
        await other.serve(leg)
    await other.empty()
    assert other.metrics.ended == {"handoff_lost": 1}


async def test_nobody_gets_what_was_begun_by_another(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    slow, other = [await fleet.worker(WorkerType.Decode, model=SLOW) for _ in range(2)]
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    async with under_way(slow, leg):
        await eventually(lambda: _begun(prefill))
        with pytest.raises(HandoffLostError, match="not held"):
            await other.serve(leg)
    await slow.empty()
    await prefill.empty()


def _held(prefill: Worker) -> list[_Held]:
    assert isinstance(prefill.role, PrefillRole)
    return list(prefill.role._held._held.values())


def _begun(prefill: Worker) -> bool:
    return any(held.begun for held in _held(prefill))


async def test_an_open_stream_is_no_load_but_its_blocks(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    await prefilled(prefill, request_of(range(10)))
    [load] = prefill.endpoint.load()

    assert (load.running_requests, load.waiting_requests, load.prefill_tokens, load.kv_used_blocks) == (0, 0, 0, 3)
    assert not prefill.legs[0].stream.done()


async def test_what_nobody_fetches_is_freed(
    fleet: Fleet, request_of: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """However long its stream is open."""
    prefill = await fleet.worker(WorkerType.Prefill, lease_s=0.005)
    decode = await fleet.worker(WorkerType.Decode)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    assert (prefill.metrics.held, prefill.scheduler.pool.used) == (1, 3)
    with caplog.at_level(logging.WARNING):
        await within(prefill.legs[0].stream)

    await prefill.empty()
    assert (prefill.metrics.held, prefill.metrics.expired) == (0, 1)
    assert caplog.text.count("10 tokens") == 1
    with pytest.raises(HandoffLostError):
        await decode.serve(leg)


async def test_a_transfer_that_outlasts_its_lease_is_lost(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill, lease_s=0.05)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))

    with pytest.raises(HandoffLostError, match="longer"):
        await decode.serve(leg)
    await decode.empty()
    await prefill.empty()
    assert prefill.metrics.expired == 0, "its end was told"


async def test_a_decode_worker_that_vanishes_does_not_keep_a_prompt(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = await fleet.worker(WorkerType.Prefill, lease_s=0.05)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW)
    assert isinstance(decode.role, DecodeRole)
    monkeypatch.setattr(decode.role._receiver, "end", lambda params: None)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    async with under_way(decode, leg):
        await prefill.empty()
    assert prefill.metrics.expired == 1


async def test_what_waits_for_its_turn_outlives_the_time_of_a_transfer(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = await fleet.worker(WorkerType.Prefill, lease_s=0.1)
    decode, vanishing = await fleet.worker(WorkerType.Decode), await fleet.worker(WorkerType.Decode, model=SLOW)
    assert isinstance(vanishing.role, DecodeRole)
    monkeypatch.setattr(vanishing.role._receiver, "end", lambda params: None)
    waiting, begun = [await prefilled(prefill, request_of(range(s, s + 10), max_tokens=2)) for s in (0, 100)]
    async with under_way(vanishing, begun):
        await within(prefill.legs[1].stream)
        assert (prefill.metrics.held, prefill.metrics.expired) == (1, 1)
        assert len(await decode.serve(waiting)) == 2
    await prefill.empty()


# Streams that are closed, while nobody, or somebody, fetches


@pytest.mark.parametrize("by", ["close", "stop"])
async def test_what_nobody_will_fetch_is_freed_at_once(fleet: Fleet, request_of: MakeRequest, by: str) -> None:
    prefill, decode = [await fleet.worker(role) for role in _ROLES]
    request = await prefilled(prefill, request_of(range(10), max_tokens=2))
    leg, [held] = prefill.legs[0], _held(prefill)
    if by == "close":
        await leg.close()
    else:
        leg.context.stop_generating()
        await within(leg.stream)

    assert held.expiry.cancelled()
    assert prefill.metrics.held == prefill.metrics.expired == prefill.scheduler.pool.used == 0
    with pytest.raises(HandoffLostError, match="not held"):
        await decode.serve(request)


@pytest.mark.parametrize("by", ["close", "stop"])
async def test_what_somebody_fetches_is_kept_until_it_has_it(fleet: Fleet, request_of: MakeRequest, by: str) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    decode = await fleet.worker(WorkerType.Decode, model=TransferModel(latency_ms=200.0))
    request = await prefilled(prefill, request_of(range(10), max_tokens=2))
    leg, [held] = prefill.legs[0], _held(prefill)
    without_anybody = held.expiry
    async with under_way(decode, request) as decoding:
        await eventually(lambda: held.begun)
        assert without_anybody.cancelled()
        if by == "close":
            await leg.close()
        else:
            leg.context.stop_generating()
            await within(leg.stream)
        assert (prefill.metrics.held, prefill.scheduler.pool.used) == (1, 3)
        await within(asyncio.wait([decoding]))
        assert decoding.exception() is None
    await prefill.empty()
    assert prefill.metrics.expired == 0


async def test_room_that_is_held_is_given_to_the_next_when_it_is_fetched(fleet: Fleet, request_of: MakeRequest) -> None:
    size = SchedulerConfig(block_size=4, num_blocks=4, max_model_len=200)
    prefill = await fleet.worker(WorkerType.Prefill, size=size)
    decode = await fleet.worker(WorkerType.Decode)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    second = prefill.begin(request_of(range(100, 110)))
    await eventually(lambda: prefill.scheduler.load().waiting_requests == 1 and not prefill.scheduler.has_work)
    assert not second.output.done()
    await decode.serve(leg)
    await within(second.output)


# Phases in which a request may be given up


async def test_given_up_before_its_prefill(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    async with under_way(prefill, prefill_leg(request_of(range(10)))):
        assert prefill.scheduler.load().waiting_requests == 1
    await prefill.empty()


async def test_given_up_while_its_prefill_lasts(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its blocks are somebody else's by the time at which they would be filled."""
    prefill = await fleet.worker(WorkerType.Prefill, speedup_ratio=1.0, real_bytes=True)
    prepared: list[SequenceState] = []

    async def prepare(sequence: SequenceState) -> None:
        prepared.append(sequence)

    monkeypatch.setattr(prefill.transport, "prepare", prepare)
    async with under_way(prefill, prefill_leg(request_of(range(10)))):
        await eventually(lambda: prefill.scheduler.held == 1)
    await prefill.empty()
    await prefilled(prefill, request_of(range(5)))
    assert [len(sequence.prompt) for sequence in prepared] == [5]
    assert prefill.metrics.held == 1


async def test_given_up_while_its_blocks_are_filled(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = await fleet.worker(WorkerType.Prefill, real_bytes=True)
    transport = prefill.transport
    filling, go_on = asyncio.Event(), asyncio.Event()
    prepare = transport.prepare

    async def slowly(sequence: SequenceState) -> None:
        await prepare(sequence)
        filling.set()
        await go_on.wait()

    monkeypatch.setattr(transport, "prepare", slowly)
    async with under_way(prefill, prefill_leg(request_of(range(10)))):
        await within(filling.wait())
        assert transport._arena.used == 3
    await prefill.empty()
    role = prefill.role
    assert isinstance(role, PrefillRole)
    assert role._handing_over
    go_on.set()
    await eventually(lambda: not role._handing_over)
    assert prefill.metrics.held == transport._arena.used == 0


async def test_given_up_in_the_moment_in_which_it_is_handed_over(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    role = prefill.role
    assert isinstance(role, PrefillRole)
    hold = role._held.hold

    async def hold_and_cancel(sequence: SequenceState, agent: bytes) -> Handoff:
        handoff = await hold(sequence, agent)
        waiting.cancel()
        return handoff

    monkeypatch.setattr(role._held, "hold", hold_and_cancel)
    async with under_way(prefill, prefill_leg(request_of(range(10)))) as waiting:
        await asyncio.wait([waiting])
    assert waiting.cancelled()
    await prefill.empty()
    assert prefill.metrics.held == 0


async def test_given_up_while_it_waits_for_room(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    size = SchedulerConfig(block_size=4, num_blocks=4, max_model_len=200)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW, size=size)
    first, second = [await prefilled(prefill, request_of(range(s, s + 10), max_tokens=2)) for s in (0, 100)]
    async with under_way(decode, first):
        await eventually(lambda: decode.scheduler.pool.used == 3)
        async with under_way(decode, second):
            assert decode.scheduler.load().waiting_requests == 2
        await eventually(lambda: prefill.metrics.held == 1)
    await prefill.empty()
    await decode.empty()


@pytest.mark.parametrize("by", ["close", "abort"])
async def test_given_up_while_its_prompt_comes(fleet: Fleet, request_of: MakeRequest, by: str) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    context = Context("the-one")
    async with closing(decode.engine.generate(leg, context)) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        await eventually(lambda: _begun(prefill))
        if by == "abort":
            await decode.engine.abort("the-one")
            assert await within(first) == LLMEngineOutput(finish_reason=FinishReason.CANCELLED)
        else:
            first.cancel()
            await asyncio.wait([first])
    await decode.empty()
    await prefill.empty()
    assert decode.metrics.ended == {"cancelled": 1}
    assert prefill.metrics.expired == 0


async def test_blocks_that_are_written_to_are_not_anybody_elses(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = [await fleet.worker(role, real_bytes=True) for role in _ROLES]
    writing, stopped = asyncio.Event(), asyncio.Event()

    async def fetch(*_: object) -> int:
        writing.set()
        try:
            return await asyncio.Future[int]()
        finally:
            await stopped.wait()

    monkeypatch.setattr(decode.transport, "fetch", fetch)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    context = Context("the-one")
    async with closing(decode.engine.generate(leg, context)) as outputs:
        first = asyncio.ensure_future(anext(outputs))
        await within(writing.wait())
        await decode.engine.abort("the-one")
        await within(first)
    for _ in range(5):
        await asyncio.sleep(0)  # it was given up twice by now, and would have stopped
    assert decode.scheduler.pool.used == 3
    stopped.set()
    await decode.empty()
    await prefill.empty()


async def test_given_up_in_the_moment_in_which_it_begins_to_come(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    async with under_way(decode, leg):
        while not decode.scheduler._receiving:  # noqa: ASYNC110 - the moment is over before an event could tell
            await asyncio.sleep(0)
    await decode.empty()
    await prefill.empty()


async def test_given_up_while_it_decodes(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill, decode = [await fleet.worker(role) for role in _ROLES]
    leg = await prefilled(prefill, request_of(range(10), ignore_eos=True))
    async with closing(decode.engine.generate(leg, Context())) as outputs:
        await within(anext(outputs))
    await decode.empty()
    await prefill.empty()


# Workers that go, and bytes that are wrong


@pytest.mark.parametrize("real_bytes", [False, True])
async def test_a_holder_that_is_gone(fleet: Fleet, request_of: MakeRequest, real_bytes: bool) -> None:
    prefill, decode = [await fleet.worker(role, real_bytes=real_bytes) for role in _ROLES]
    request = request_of(range(10), max_tokens=2)
    leg = await prefilled(prefill, request)
    await prefill.engine.cleanup()

    with pytest.raises(HandoffLostError):
        await decode.serve(leg)
    await decode.empty()
    await eventually(lambda: not decode.engine._port.agent._peers)
    assert len(await decode.serve(request)) == 2


async def test_a_holder_that_has_a_defect(
    fleet: Fleet, request_of: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = [await fleet.worker(role) for role in _ROLES]
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))

    def grant(*_: object) -> Grant:
        raise ZeroDivisionError

    monkeypatch.setattr(prefill.role._transport, "grant", grant)
    with pytest.raises(HandoffLostError, match="the holder has failed"):
        await decode.serve(leg)
    await decode.empty()
    await prefill.empty()


async def test_a_holder_that_goes_while_it_sends(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    decode = await fleet.worker(WorkerType.Decode, model=TransferModel(latency_ms=500.0))
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    async with under_way(decode, leg) as decoding:
        await eventually(lambda: _begun(prefill))
        await prefill.engine.cleanup()
        with pytest.raises(HandoffLostError):
            await decoding
    await decode.empty()


async def test_a_decode_engine_that_stops_tells_the_holder(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    decode = await fleet.worker(WorkerType.Decode, model=SLOW)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    async with under_way(decode, leg):
        await eventually(lambda: _begun(prefill))
        await decode.engine.cleanup()
    await prefill.empty()


async def test_bytes_that_are_not_the_prompts(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill, decode = [await fleet.worker(role, real_bytes=True) for role in _ROLES]
    request = request_of(range(10), max_tokens=2)
    leg = await prefilled(prefill, request)
    arena = prefill.transport._arena
    arena._view[:] = bytes(len(arena._view))

    with pytest.raises(InternalError, match="3 of 3"):
        await decode.serve(leg)
    assert decode.metrics.ended == {"internal_error": 1}
    await decode.empty()
    await prefill.empty()
    assert decode.transport._arena.used == 0


async def test_a_handoff_names_its_holder_only(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill = await fleet.worker(WorkerType.Prefill)
    legs = [await prefilled(prefill, request_of(range(10), max_tokens=2)) for _ in range(2)]
    first, second = [HandoffParams.of(leg.handoff) for leg in legs if leg.handoff is not None]

    assert first.agent == second.agent
    assert first.id != second.id


async def test_a_handoff_serves_its_own_prompt_only(fleet: Fleet, request_of: MakeRequest) -> None:
    """Of a longer one the holder has not enough: nothing is granted."""
    prefill, decode = await fleet.worker(WorkerType.Prefill), await fleet.worker(WorkerType.Decode)
    leg = await prefilled(prefill, request_of(range(10), max_tokens=2))
    longer = request_of(range(500, 590), max_tokens=2)
    with pytest.raises(HandoffLostError, match="has no such part"):
        await decode.serve(msgspec.structs.replace(longer, handoff=leg.handoff))
    await prefill.empty()  # the decode worker has said that it needs it no more
    assert await decode.serve(await prefilled(prefill, request_of(range(10), max_tokens=2)))


async def change(worker: Worker, role: WorkerType) -> None:
    assert worker.info.change_role is not None
    await worker.info.change_role(role)


@pytest.mark.parametrize("real_bytes", [False, True])
async def test_two_change_places(fleet: Fleet, request_of: MakeRequest, real_bytes: bool) -> None:
    """With their caches; and each knows the other by the name that it had."""
    prefill, decode = [await fleet.worker(role, real_bytes=real_bytes) for role in _ROLES]
    request = request_of(range(22), max_tokens=3)
    expected = tokens(await decode.serve(await prefilled(prefill, request)))
    await prefill.empty()
    for _ in range(3):
        await asyncio.gather(change(prefill, WorkerType.Decode), change(decode, WorkerType.Prefill))
        prefill, decode = decode, prefill
        with pytest.raises(InvalidRequestError):
            await decode.serve(prefill_leg(request))
        output = await within(prefill.begin(request).output)
        assert output.cached_tokens == 20
        answer = await decode.serve(msgspec.structs.replace(request, handoff=output.handoff))
        assert tokens(answer) == expected
        await prefill.empty()
        await decode.empty()


async def test_what_is_held_is_fetched_before_the_role_is_left(fleet: Fleet, request_of: MakeRequest) -> None:
    prefill, decode = [await fleet.worker(role) for role in _ROLES]
    request = request_of(range(10), max_tokens=2)
    leg = await prefilled(prefill, request)
    changing = asyncio.create_task(change(prefill, WorkerType.Decode))
    await asyncio.sleep(0)
    assert not changing.done()
    assert len(await decode.serve(leg)) == 2
    await within(changing)
    await prefill.empty()


async def test_or_its_time_is_up(fleet: Fleet, request_of: MakeRequest, caplog: pytest.LogCaptureFixture) -> None:
    prefill, _ = [await fleet.worker(role, lease_s=0.01) for role in _ROLES]
    await prefilled(prefill, request_of(range(10), max_tokens=2))
    await within(change(prefill, WorkerType.Decode))
    assert "nobody has come for a prompt of 10 tokens" in caplog.text


async def test_who_does_all_does_not_change(fleet: Fleet) -> None:
    assert (await fleet.worker(WorkerType.Aggregated)).info.change_role is None
