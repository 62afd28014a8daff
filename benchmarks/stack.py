"""A frontend and simulated workers, each a process of its own."""

import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from benchmarks.http_load import HttpJob, HttpSample
from benchmarks.programs import START_TIMEOUT_S, BenchmarkError, Programs, programs
from benchmarks.prompt import Prompt

AGGREGATED = ("aggregated", "aggregated")  # what each worker does: --disaggregation-mode
DISAGGREGATED = ("prefill", "decode")
OUTPUT_TOKENS = 64
_MODEL = "m"
_POLL_S = 0.05
_DRIVE_TIMEOUT_S = 60.0  # beyond the time that a run is meant to take
_SECONDS_PER_TOKEN_MAX = 0.0016


class _Instance(msgspec.Struct):
    endpoint: str


class _Health(msgspec.Struct):
    instances: list[_Instance]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One that is serving."""

    programs: Programs
    port: int
    frontend_pid: int
    worker_pids: list[int]
    prompt: Prompt

    def measure(
        self,
        concurrency: int,
        *,
        warm_up_s: float,
        seconds: float | None = None,
        requests: int | None = None,
        output_tokens: int = OUTPUT_TOKENS,
    ) -> HttpSample:
        """Streams at this concurrency for a time or for a number of requests; BenchmarkError when nothing came back."""
        job = HttpJob(
            port=self.port,
            model=_MODEL,
            frontend_pid=self.frontend_pid,
            worker_pids=self.worker_pids,
            prompt=self.prompt,
            output_tokens=output_tokens,
            concurrency=concurrency,
            warm_up_s=warm_up_s,
            seconds=seconds,
            requests=requests,
        )
        expected_s = warm_up_s + (seconds or 0) + (requests or 0) * output_tokens * _SECONDS_PER_TOKEN_MAX
        sample = self.programs.drive("benchmarks.http_load", job, HttpSample, expected_s + _DRIVE_TIMEOUT_S)
        if not sample.tokens:
            raise BenchmarkError(f"no request completed: {sample.errors}")
        return sample


@contextmanager
def serving(model_dir: Path, prompt: Prompt, *, speedup: float, fleet: Sequence[str] = AGGREGATED) -> Iterator[Stack]:
    """Starts all processes and waits until the frontend knows the workers; ends them with the block."""
    with programs() as started:
        frontend_pid = started.start("frontend", "dynamo.frontend", "--http-port", "0")
        worker_pids = [
            started.start(f"worker{i}", "dynamo.mocker", *_worker_arguments(model_dir, speedup, role))
            for i, role in enumerate(fleet)
        ]
        url = started.wait_until_ready("frontend")
        for i in range(len(fleet)):
            started.wait_until_ready(f"worker{i}")
        wait_for_workers(url, len(fleet))
        yield Stack(
            programs=started,
            port=int(url.rpartition(":")[2]),
            frontend_pid=frontend_pid,
            worker_pids=worker_pids,
            prompt=prompt,
        )


def _worker_arguments(model_dir: Path, speedup: float, role: str) -> list[str]:
    return [
        *("--model-path", str(model_dir), "--model-name", _MODEL, "--speedup-ratio", f"{speedup:g}"),
        *("--max-model-len", "8192", "--block-size", "64", "--num-gpu-blocks-override", "16384"),
        *("--max-num-seqs", "256", "--disaggregation-mode", role),
        *("--kv-transfer-bandwidth", "0", "--kv-transfer-latency", "0"),
    ]


def wait_for_workers(url: str, workers: int) -> None:
    """Until the frontend at `url` can send requests to so many; BenchmarkError when that takes too long."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310 - an http URL
                health = msgspec.json.decode(answer.read(), type=_Health)
            if sum(instance.endpoint == "generate" for instance in health.instances) == workers:
                return
        except OSError:
            pass  # 503: no worker yet
        time.sleep(_POLL_S)
    raise BenchmarkError(f"the frontend does not see {workers} workers")
