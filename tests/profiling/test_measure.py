"""One point of a profile, measured at a server that answers as a test has it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import pytest

from dynamo.errors import InvalidRequestError, UnavailableError
from dynamo.profiling.measure import _itl_s, measure_decode, output_tokens
from dynamo.profiling.prompts import Prompts
from dynamo.profiling.stream import Completion, Server, complete

OK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices": [{"text": "a"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 2}}\n\ndata: [DONE]\n\n'
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def failure(status: bytes) -> bytes:
    return b"HTTP/1.1 " + status + b"\r\nContent-Length: 4\r\n\r\nnope"


@asynccontextmanager
async def answering(*parts: bytes) -> AsyncIterator[Server]:
    """A server that says this to everybody, and hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield Server(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="tiny")


async def test_an_answer_in_pieces() -> None:
    whole = OK + chunk(TOKEN) + chunk(TOKEN + USAGE) + END
    async with answering(*(whole[i : i + 1] for i in range(len(whole)))) as server:
        answer = await complete(server, [1, 2, 3], 2)
    assert (len(answer.events_s), answer.tokens) == (2, 2)
    assert 0 < answer.ttft_s <= answer.events_s[-1] - answer.sent_s


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ((failure(b"400 Bad Request"),), InvalidRequestError),
        ((failure(b"503 Service Unavailable"),), UnavailableError),
        ((OK, chunk(TOKEN)), UnavailableError),
        ((OK, END), UnavailableError),
        ((OK, chunk(TOKEN), END), UnavailableError),
        ((OK, chunk(b"data: {nonsense\n\n"), END), UnavailableError),
        ((b"SSH-2.0\r\n",), UnavailableError),
        ((), UnavailableError),
    ],
)
async def test_no_answer(parts: tuple[bytes, ...], error: type[Exception]) -> None:
    async with answering(*parts) as server:
        with pytest.raises(error):
            await complete(server, [1], 2)


async def test_no_server() -> None:
    async with answering() as server:
        pass
    with pytest.raises(UnavailableError, match="does not answer"):
        await complete(server, [1], 2)


def completion(first_s: float, gap_s: float, count: int, *, per_event: int = 1) -> Completion:
    return Completion(sent_s=0.0, events_s=[first_s + i * gap_s for i in range(count)], tokens=count * per_event)


@pytest.mark.parametrize("per_event", [1, 2])
def test_counts_only_while_all_decode(per_event: int) -> None:
    """The first request was alone for a second, with tokens five times as fast."""
    alone = [i * 0.01 for i in range(100)]
    first = Completion(sent_s=0.0, events_s=[*alone, *completion(1.0, 0.05, 30).events_s], tokens=130 * per_event)
    assert _itl_s([first, completion(1.0, 0.05, 30, per_event=per_event)]) == pytest.approx(0.05 / per_event)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ((completion(0.0, 0.01, 30), completion(9.0, 0.01, 30)), "did not all decode at once"),
        ((completion(1.0, 0.0, 30),), "came at once"),
    ],
)
def test_what_cannot_be_measured(answers: Sequence[Completion], message: str) -> None:
    with pytest.raises(UnavailableError, match=message):
        _itl_s(answers)


async def test_a_context_that_is_too_short() -> None:
    assert output_tokens(64, 64) > 64
    with pytest.raises(UnavailableError, match="too short"):
        await measure_decode(Server(url="http://127.0.0.1:1", model="m"), Prompts(), 64, 64)


@pytest.mark.parametrize("status", [b"400 Bad Request", b"503 Service Unavailable"])
async def test_one_of_many_that_fails_is_told_by_itself(status: bytes) -> None:
    measure: Callable[..., Awaitable[object]] = measure_decode
    async with answering(failure(status)) as server:
        with pytest.raises((InvalidRequestError, UnavailableError), match="nope"):
            await measure(server, Prompts(), 1000, 4)


def test_no_two_prompts_are_alike() -> None:
    prompts, others = Prompts(), Prompts()
    assert len({tuple(each.of(16)) for each in [prompts, others] * 50}) == 100
