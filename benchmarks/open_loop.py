"""`python -m benchmarks.open_loop JOB`: streams chat completions that arrive whether or not others were answered."""

import asyncio
import random
import resource
import sys
import time
from typing import cast

import msgspec
import uvloop

from benchmarks.answer import is_whole, text_events
from benchmarks.prompt import Prompt

HOST = "127.0.0.1"
_END = b"\r\n0\r\n\r\n"


class OpenLoopJob(msgspec.Struct, frozen=True, kw_only=True):
    """Arrivals of a Poisson process; those of the first `warm_up_s` are not counted."""

    port: int
    model: str
    prompt: Prompt
    output_tokens: int
    rate_per_s: float
    warm_up_s: float
    seconds: float
    patience_s: float  # after the last arrival: what is unanswered then is given up
    seed: int


class Shot(msgspec.Struct, kw_only=True):
    """What became of one request."""

    status: int = 0  # of HTTP; 0: no answer
    ttft_s: float | None = None
    tpot_s: float | None = None  # mean; None: the answer was not complete
    waited_s: float = 0.0  # until its end, or until it was given up
    at_s: float = 0.0  # when it was to be sent, since the first arrivals could come
    whole: bool = False  # whether all of an answer has come; one that ends with an error is none


async def fire(job: OpenLoopJob) -> list[Shot]:
    """Those that arrived when it counts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if hard != resource.RLIM_INFINITY else soft, hard))
    rng, texts = random.Random(job.seed), job.prompt.unique()  # noqa: S311 - arrivals, no secrets
    started_s = next_s = time.perf_counter()
    streams: list[_Stream] = []
    connecting: set[asyncio.Task[None]] = set()
    while True:
        next_s += rng.expovariate(job.rate_per_s)
        if next_s > started_s + job.warm_up_s + job.seconds:
            break
        await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
        stream = _Stream(_request(job, next(texts)), job.output_tokens, next_s)
        streams.append(stream)
        connecting.add(asyncio.create_task(_connect(stream, job.port)))
    counted = [stream for stream in streams if stream.sent_s >= started_s + job.warm_up_s]
    await asyncio.wait([stream.ended for stream in streams], timeout=job.patience_s)
    for stream in streams:
        stream.give_up()
        stream.shot.at_s = stream.sent_s - started_s
    return [stream.shot for stream in counted]


async def _connect(stream: "_Stream", port: int) -> None:
    try:
        await asyncio.get_running_loop().create_connection(lambda: stream, HOST, port)
    except OSError:
        stream.give_up()  # no status: refused by the kernel


class _Stream(asyncio.Protocol):
    """One request on a connection of its own."""

    def __init__(self, request: bytes, tokens: int, sent_s: float) -> None:
        """`sent_s`: when it was to be sent, which a busy client may be late for."""
        self._request = request
        self._tokens = tokens
        self._parts: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self.sent_s = sent_s
        self.shot = Shot()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without inheriting from it
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_s, shot = time.perf_counter(), self.shot
        self._parts.append(data)
        if shot.ttft_s is None:
            body = b"".join(self._parts)
            shot.status = int(body[9:12] or b"0")
            if text_events(body):
                shot.ttft_s = now_s - self.sent_s
        if data.endswith(_END) and shot.ttft_s is not None:
            shot.tpot_s = (now_s - self.sent_s - shot.ttft_s) / max(1, self._tokens - 1)

    def connection_lost(self, error: Exception | None) -> None:
        self._finish()

    def give_up(self) -> None:
        self._finish()
        if self._transport is not None:
            self._transport.close()

    def _finish(self) -> None:
        if not self.ended.done():
            self.shot.waited_s = time.perf_counter() - self.sent_s
            self.shot.whole = is_whole(b"".join(self._parts))
            self.ended.set_result(None)


def _request(job: OpenLoopJob, text: str) -> bytes:
    body = msgspec.json.encode(
        {
            "model": job.model,
            "max_tokens": job.output_tokens,
            "stream": True,
            "messages": [{"role": "user", "content": text}],
        }
    )
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}:{job.port}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


if __name__ == "__main__":
    shots = uvloop.run(fire(msgspec.json.decode(sys.argv[1], type=OpenLoopJob)))
    sys.stdout.buffer.write(msgspec.json.encode(shots))
