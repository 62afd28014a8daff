"""`python -m benchmarks.http_load JOB`: streams chat completions from a frontend and measures it."""

import asyncio
import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence

import msgspec
import uvloop

from benchmarks.meter import Meter
from benchmarks.process_tree import descriptors, pss_mib
from benchmarks.prompt import Prompt
from benchmarks.sse_stream import Expected, SseStream, Tally

HOST = "127.0.0.1"


class HttpJob(msgspec.Struct, frozen=True, kw_only=True):
    """What to send where, and whom to measure. A run ends after `seconds` or `requests`, one of which is given."""

    port: int
    model: str
    frontend_pid: int
    worker_pids: list[int]
    prompt: Prompt
    output_tokens: int
    concurrency: int
    warm_up_s: float
    seconds: float | None = None
    requests: int | None = None


class HttpSample(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured."""

    requests: int
    tokens: int
    events: int  # with text
    errors: dict[str, int]
    elapsed_s: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    frontend_cpu_s: float
    worker_cpu_s: float
    client_cpu_s: float
    frontend_pss_mib: float  # near the end of a run of seconds, with all streams open; after a run of requests
    frontend_descriptors: int  # at the end, when the client has gone
    foreign_percent: float


async def measure(job: HttpJob) -> HttpSample:
    """Warms up, then measures."""
    if job.warm_up_s:
        await _run(job, job.warm_up_s, None)
    meter = Meter({"frontend": [job.frontend_pid], "worker": job.worker_pids, "client": [os.getpid()]})
    tally, pss = await _run(job, job.seconds, job.requests)
    spent = meter.stop()
    ttft_s = sorted(tally.ttft_s)
    return HttpSample(
        requests=tally.requests,
        tokens=tally.tokens,
        events=tally.events,
        errors=dict(tally.errors),
        elapsed_s=spent.elapsed_s,
        ttft_p50_ms=1000 * _percentile(ttft_s, 0.5),
        ttft_p99_ms=1000 * _percentile(ttft_s, 0.99),
        frontend_cpu_s=spent.cpu_s["frontend"],
        worker_cpu_s=spent.cpu_s["worker"],
        client_cpu_s=spent.cpu_s["client"],
        frontend_pss_mib=pss,
        frontend_descriptors=descriptors(job.frontend_pid),
        foreign_percent=spent.foreign_percent,
    )


async def _run(job: HttpJob, seconds: float | None, count: int | None) -> tuple[Tally, float]:
    """Requests on all connections until the time is over or all are sent; what came back, and the frontend's PSS."""
    tally = Tally()
    expected = Expected(job.prompt.tokens, job.output_tokens)
    requests = _requests(job, seconds, count)
    streams = [await _connect(job.port, requests, expected, tally) for _ in range(job.concurrency)]
    ended = asyncio.gather(*(stream.closed for stream in streams))
    await asyncio.wait({ended}, timeout=None if seconds is None else 0.9 * seconds)
    pss = await asyncio.to_thread(pss_mib, job.frontend_pid)  # takes milliseconds: not in the way of the clock
    await ended
    return tally, pss


async def _connect(port: int, requests: Iterator[bytes], expected: Expected, tally: Tally) -> SseStream:
    sock = socket.create_connection((HOST, port), timeout=5)  # uvloop's own has a slow setsockopt
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    _, stream = await loop.create_connection(lambda: SseStream(sock, requests, expected, tally), sock=sock)
    return stream


def _requests(job: HttpJob, seconds: float | None, count: int | None) -> Iterator[bytes]:
    deadline_s = float("inf") if seconds is None else time.perf_counter() + seconds
    for sent, text in enumerate(job.prompt.unique()):
        if time.perf_counter() >= deadline_s or sent == count:
            return
        body = msgspec.json.encode(
            {
                "model": job.model,
                "max_tokens": job.output_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                "messages": [{"role": "user", "content": text}],
            }
        )
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {HOST}:{job.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        yield head.encode() + body


def _percentile(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))] if ordered else 0.0


if __name__ == "__main__":
    sample = uvloop.run(measure(msgspec.json.decode(sys.argv[1], type=HttpJob)))
    sys.stdout.buffer.write(msgspec.json.encode(sample))
