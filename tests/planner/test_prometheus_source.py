"""The traffic as Prometheus tells it: by a stand-in that speaks its API."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dynamo.errors import ConfigError, UnavailableError
from dynamo.frontend.tracker import ModelMetrics
from dynamo.planner.observation import Traffic
from dynamo.planner.prometheus_source import PrometheusSource
from dynamo.telemetry.metrics import FrontendMetrics
from dynamo.testing import within
from dynamo.testing.free_port import free_port

from .prometheus_stand_in import PrometheusStandIn, prometheus

ALL = {
    "ended": "30", "begun": "6.5", "prompt_tokens": "100", "cached_tokens": "25.5", "output_tokens": "40",
    "ttft_s": "0.25", "itl_s": "0.01",
}  # fmt: skip


@pytest.fixture
def server() -> Iterator[PrometheusStandIn]:
    with prometheus() as stand_in:
        yield stand_in


def source(url: str, *, labels: str = "", model: str | None = None) -> PrometheusSource:
    return PrometheusSource(url, window_s=60.0, labels=labels, model=model, timeout_s=5.0)


async def ask(url: str) -> Traffic:
    return await within(source(url).traffic())


async def test_all_figures(server: PrometheusStandIn) -> None:
    server.figures = ALL
    assert await ask(server.url + "/") == Traffic(
        duration_s=60, requests=36.5, prompt_tokens=100, cached_tokens=25.5, output_tokens=40, ttft_s=0.25, itl_s=0.01
    )


async def test_windows_overlap_and_no_request_counts_twice(server: PrometheusStandIn) -> None:
    server.figures = ALL
    times_s = iter((100.0, 105.0, 120.0, 300.0))
    asked = PrometheusSource(
        server.url, window_s=60.0, labels="", model=None, timeout_s=5.0, clock=lambda: next(times_s)
    )
    told = [await within(asked.traffic()) for _ in range(4)]
    seen = [(traffic.duration_s, traffic.requests) for traffic in told]
    assert seen == [(60, 36.5), (5, pytest.approx(36.5 / 12)), (15, 36.5 / 4), (60, 36.5)]


async def test_no_traffic_is_a_value(server: PrometheusStandIn) -> None:
    """Means over nothing are NaN there."""
    server.figures = dict.fromkeys(ALL, "NaN") | {"ended": "0", "begun": "0"}
    traffic = await ask(server.url)
    assert traffic.requests == 0
    assert {traffic.prompt_tokens, traffic.output_tokens, traffic.ttft_s, traffic.itl_s} == {None}


@pytest.mark.parametrize("figures", [{}, ALL | {"ended": "NaN"}, ALL | {"ended": "+Inf"}, ALL | {"ended": "many"}])
async def test_without_requests_there_is_no_data(server: PrometheusStandIn, figures: dict[str, str]) -> None:
    server.figures = figures
    with pytest.raises(UnavailableError, match=r"no dynamo_frontend_request_duration_seconds of the last 60 s"):
        await ask(server.url)


@pytest.mark.parametrize("value", ["NaN", "-Inf", "-3", "?"])
async def test_figures_that_make_no_sense(server: PrometheusStandIn, value: str) -> None:
    server.figures = ALL | {"ttft_s": value}
    traffic = await ask(server.url)
    assert (traffic.ttft_s, traffic.itl_s) == (None, 0.01)


async def test_more_has_ended_than_begun(server: PrometheusStandIn) -> None:
    """Increase is extrapolated there, so that it need not go together."""
    server.figures = {"ended": "1.5", "begun": "-2"}
    assert (await ask(server.url)).requests == 0


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ((400, b'{"status":"error","errorType":"bad_data","error":"parse error"}'), "answers 400: parse error"),
        ((502, b"<html>"), "answers 502: no reason given"),
        ((200, b"<html>"), "does not answer as Prometheus does"),
        ((200, b'{"status":"success","data":{"resultType":"scalar","result":[]}}'), "as Prometheus does"),
        ((200, b'{"status":"error","error":"too much"}'), "does not answer the question: too much"),
        ((200, b"\xff\xfe"), "as Prometheus does"),
        ((200, b'{"x":' + b"[" * 100_000), "as Prometheus does"),
    ],
)
async def test_wrong_answers(server: PrometheusStandIn, raw: tuple[int, bytes], reason: str) -> None:
    server.raw = raw
    with pytest.raises(UnavailableError) as failed:
        await ask(server.url)
    assert reason in str(failed.value)


@asynccontextmanager
async def answering(*parts: bytes, pause_s: float = 0.0) -> AsyncIterator[str]:
    """The URL of a server that says this to everybody, piece by piece."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError), contextlib.closing(writer):
            await reader.readuntil(b"\r\n\r\n")
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause_s)

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_redirect_to_nowhere() -> None:
    async with answering(b"HTTP/1.1 302 Found\r\nLocation: http://[\r\n\r\n") as url:
        with pytest.raises(UnavailableError, match="as Prometheus does"):
            await ask(url)


async def test_an_answer_that_takes_for_ever() -> None:
    """Each byte comes in time."""
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n", *[b" "] * 1000, pause_s=0.02) as url:
        slow = PrometheusSource(url, window_s=60.0, labels="", model=None, timeout_s=0.1)
        with pytest.raises(UnavailableError, match="takes too long"):
            await within(slow.traffic(), 5)


async def test_nobody_there() -> None:
    with pytest.raises(UnavailableError, match="does not answer"):
        await ask(f"http://127.0.0.1:{free_port()}")


async def test_somebody_else_there() -> None:
    """Who does not speak HTTP."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"220 mail.example.org ESMTP\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(UnavailableError, match="does not answer: 220 mail"):
            await ask(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["prometheus:9090", "file:///etc/passwd", "http://", "http://h/?x=1"])
def test_no_url(url: str) -> None:
    with pytest.raises(ConfigError, match="--prometheus-url"):
        source(url)


def test_which_series_count() -> None:
    query = source("http://h", labels='job="f"', model='a"b').query
    assert set(re.findall(r"\{[^}]*\}", query)) == {'{job="f",model="a\\"b"}'}
    assert set(re.findall(r"\[[^\]]*\]", query)) == {"[60000ms]"}
    assert "{" not in source("http://h").query


def test_every_series_that_is_asked_for_is_one_of_the_frontends() -> None:
    registry = CollectorRegistry()
    series = ModelMetrics(FrontendMetrics(registry), "m")
    series.output_sequence.observe(1)
    text = generate_latest(registry).decode()
    asked = set(re.findall(r"dynamo_frontend_\w+", source("http://h").query))
    assert len(asked) == 11
    for name in asked:
        assert f"\n{name}{{" in text, name
