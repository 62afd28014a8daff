"""What can be a handler, how endpoints are named, and what is counted."""

import asyncio
import dataclasses
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from dynamo.errors import InvalidRequestError, OverloadedError
from dynamo.runtime import Context, DistributedRuntime, RuntimeConfig
from dynamo.runtime.codec import encode_payload, payload_decoder
from dynamo.runtime.component import payload_handler, with_context
from dynamo.telemetry.metrics import EndpointMetrics
from dynamo.testing import eventually, within

NewRuntime = Callable[[], DistributedRuntime]


async def plain(request: Any) -> AsyncIterator[Any]:
    yield request, None


async def with_positional(request: Any, context: Context) -> AsyncIterator[Any]:
    yield request, context.id()


async def with_any_name(request: Any, ctx: Any) -> AsyncIterator[Any]:
    yield request, ctx.id()


async def with_default(request: Any, context: Context | None = None) -> AsyncIterator[Any]:
    yield request, context and context.id()


async def with_keyword(request: Any, *, context: Context) -> AsyncIterator[Any]:
    yield request, context.id()


async def with_setting(request: Any, temperature: float = 0.5) -> AsyncIterator[Any]:
    yield request, temperature


async def with_setting_and_context(request: Any, temperature: float = 0.5, context: Any = None) -> AsyncIterator[Any]:
    yield request, context.id()


async def with_rest(request: Any, *rest: Any) -> AsyncIterator[Any]:
    yield request, None


class Object:
    async def __call__(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield request, context.id()

    async def method(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield request, context.id()


def returns_a_stream(request: Any, context: Context) -> AsyncIterator[Any]:
    return with_positional(request, context)


async def encoded(payload: Raw, handler: Any, request_type: Any = Any) -> list[Any]:
    decode = payload_decoder()
    return [decode(reply) async for reply in payload_handler(handler, request_type)(payload, Context("id"))]


async def answer(handler: Any, request: Any, request_type: Any = Any) -> list[Any]:
    return await encoded(Raw(encode_payload(request)), handler, request_type)


@pytest.mark.parametrize(
    ("handler", "second"),
    [
        (plain, None),
        (with_positional, "id"),
        (with_any_name, "id"),
        (with_default, "id"),
        (with_keyword, "id"),
        (with_setting, 0.5),
        (with_setting_and_context, "id"),
        (with_rest, None),
        (Object(), "id"),
        (Object().method, "id"),
        (returns_a_stream, "id"),
        (functools.partial(with_positional), "id"),
        (lambda request: plain(request), None),
    ],
)
async def test_forms_of_handlers(handler: Any, second: Any) -> None:
    assert await answer(handler, 5) == [[5, second]]


async def coroutine(request: Any) -> Any:
    return request


def generator(request: Any) -> Any:
    yield request


class CoroutineObject:
    async def __call__(self, request: Any) -> Any:
        return request


async def without_request() -> AsyncIterator[Any]:
    yield 1


@pytest.mark.parametrize(
    "handler",
    [coroutine, generator, CoroutineObject(), functools.partial(coroutine), without_request, None, "handler", object()],
)
async def test_what_cannot_be_a_handler(handler: Any) -> None:
    with pytest.raises(TypeError):
        with_context(handler)


async def test_mistake_in_a_handler_shows_when_it_is_served(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    with pytest.raises(TypeError, match="yield"):
        await runtime.endpoint("test.backend.generate").serve_endpoint(coroutine)  # type: ignore[arg-type]
    await runtime.endpoint("test.backend.generate").start(plain)


async def test_function_that_returns_no_stream() -> None:
    with pytest.raises(TypeError, match="__aiter__"):
        await answer(lambda request: request, 5)


async def test_typed_requests() -> None:
    class Point(msgspec.Struct):
        x: int

    async def handler(request: Point) -> AsyncIterator[Any]:
        yield type(request).__name__, request.x

    assert await answer(handler, {"x": 1}, Point) == [["Point", 1]]
    with pytest.raises(InvalidRequestError, match=r"`int`.*`str`"):
        await answer(handler, {"x": "1"}, Point)
    with pytest.raises(InvalidRequestError):
        await encoded(Raw(b"\xa2\xff\xff"), handler)


async def test_both_ways_to_name_an_endpoint(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    chain = runtime.namespace("dynamo").component("back-end").endpoint("generate_1")
    path = runtime.endpoint("dynamo.back-end.generate_1")
    assert chain.id == path.id == runtime.endpoint("dyn://dynamo.back-end.generate_1").id
    assert str(chain) == "dynamo.back-end.generate_1"
    assert chain.connection_id() == runtime.instance_id


@pytest.mark.parametrize(
    "path", ["", "a", "a.b", "a.b.c.d", "a..c", "a.b.c/d", "a.b.", " a.b.c", "http://a.b.c", "a.b.c\n"]
)
async def test_paths_that_name_no_endpoint(new_runtime: NewRuntime, path: str) -> None:
    with pytest.raises(ValueError, match=r"namespace\.component\.endpoint"):
        new_runtime().endpoint(path)


async def test_parts_that_name_no_endpoint(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    with pytest.raises(ValueError, match=r"namespace\.component\.endpoint"):
        runtime.namespace("a/b").component("c").endpoint("d")


async def test_serving_twice(new_runtime: NewRuntime) -> None:
    runtime = new_runtime()
    await runtime.endpoint("a.b.c").start(plain)
    with pytest.raises(ValueError, match=r"a\.b\.c"):
        await runtime.endpoint("a.b.c").start(plain)
    await runtime.endpoint("a.b.d").start(plain)


async def test_calls_are_counted() -> None:
    metrics = EndpointMetrics()
    opened = asyncio.Event()

    async def handler(request: str) -> AsyncIterator[int]:
        if request == "overloaded":
            raise OverloadedError("later")
        if request == "bug":
            raise KeyError("x")
        if request == "object":
            yield object()  # type: ignore[misc]
        yield 1
        await opened.wait()

    serve = payload_handler(handler, str, metrics)

    async def run(request: Any) -> None:
        async for _ in serve(Raw(encode_payload(request)), Context()):
            pass

    first, second = asyncio.create_task(run("x")), asyncio.create_task(run("y"))
    await asyncio.sleep(0)
    assert (metrics.requests, metrics.inflight) == (2, 2)
    second.cancel()
    await asyncio.wait([second])
    assert (metrics.inflight, metrics.errors) == (1, {"cancelled": 1})
    opened.set()
    await first
    for request in ("overloaded", "bug", "bug", "object", 5):
        with pytest.raises(Exception):  # noqa: B017, PT011 - their kinds are what the metrics say
            await run(request)
    closed = serve(Raw(encode_payload("z")), Context())
    await anext(closed)
    await closed.aclose()
    assert (metrics.requests, metrics.inflight) == (8, 0)
    assert metrics.errors == {"cancelled": 2, "overloaded": 1, "handler_error": 3, "invalid_request": 1}
    assert sum(metrics.duration.counts) == 8


async def test_endpoint_that_does_not_answer_its_health_check(config: RuntimeConfig) -> None:
    fast = dataclasses.replace(config, canary_interval_s=0.02, engine_stall_timeout_s=0.1)
    runtime = DistributedRuntime(config=fast)
    checks: list[Any] = []
    answers = asyncio.Event()
    answers.set()

    async def handler(request: Any) -> AsyncIterator[Any]:
        if request != "a user's":
            checks.append(request)
            await answers.wait()
        yield "an answer"

    endpoint = runtime.endpoint("a.b.c")
    await endpoint.start(handler, health_check_payload={"prompt": "?"})
    client = await endpoint.client()
    await within(client.wait_for_instances())
    await eventually(lambda: len(checks) >= 3)
    assert checks[0] == {"prompt": "?"}
    assert runtime.health.ready
    answers.clear()
    await eventually(lambda: not client.instance_ids())
    assert not runtime.health.ready
    answers.set()
    await within(client.wait_for_instances())
    stream = await client.generate("a user's", annotated=False)
    assert await within(anext(stream)) == "an answer"
    assert runtime.shared.metrics.endpoint("a", "b", "c").requests == 1  # health checks are no requests of users
    await within(runtime.close())


async def test_health_check_that_cannot_be_sent(new_runtime: NewRuntime) -> None:
    with pytest.raises(TypeError):
        await new_runtime().endpoint("a.b.c").start(plain, health_check_payload={"prompt": object()})
