"""The traffic as Prometheus has it, from the frontends' metrics.

By its HTTP API, as its documentation describes it under "HTTP API", "Instant queries".
"""

import asyncio
import http.client
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Annotated

import msgspec

from dynamo.errors import UnavailableError
from dynamo.planner.observation import Traffic
from dynamo.planner.server_url import server_url

_ANSWER_BYTES_MAX = 1 << 20
_PREFIX = "dynamo_frontend_"
# What is asked for, by the name under which it is told. `{s}`: labels; `{w}`: the window, as in [60s].
_FIGURES = {
    "ended": "sum(increase({p}request_duration_seconds_count{s}{w}))",
    "begun": "sum(delta({p}inflight_requests{s}{w}))",  # and not ended
    "prompt_tokens": "sum(increase({p}input_sequence_tokens_sum{s}{w})) / "
    "sum(increase({p}input_sequence_tokens_count{s}{w}))",
    "cached_tokens": "sum(increase({p}cached_tokens_sum{s}{w})) / sum(increase({p}input_sequence_tokens_count{s}{w}))",
    "output_tokens": "sum(increase({p}output_sequence_tokens_sum{s}{w})) / "
    "sum(increase({p}output_sequence_tokens_count{s}{w}))",
    "ttft_s": "sum(increase({p}time_to_first_token_seconds_sum{s}{w})) / "
    "sum(increase({p}time_to_first_token_seconds_count{s}{w}))",
    "itl_s": "sum(increase({p}inter_token_latency_seconds_sum{s}{w})) / "
    "sum(increase({p}inter_token_latency_seconds_count{s}{w}))",
}


class _Sample(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]  # Unix time, and a number as text


class _Vector(msgspec.Struct):
    result_type: Annotated[str, msgspec.Meta(pattern="^vector$")] = msgspec.field(name="resultType")
    result: list[_Sample]


class _Answer(msgspec.Struct):
    status: str
    data: _Vector | None = None
    error: str = ""


class PrometheusSource:
    """Asks for all figures by one query, so that they are of one moment.

    Windows overlap. So that no request counts twice, an answer stands for the time since the one before, with the rate
    of the window.
    """

    problems: Sequence[str] = ()  # it does not know which frontends there should be

    def __init__(
        self,
        url: str,
        *,
        window_s: float,
        labels: str,
        model: str | None,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`window_s`: over which time; `labels`: matchers in PromQL that the series must fulfil, "" for none.

        Raises ConfigError for a URL that is none.
        """
        self._url = f"{server_url(url, '--prometheus-url')}/api/v1/query"
        self._window_s = window_s
        self._timeout_s = timeout_s
        self._clock = clock
        self._answered_s = -math.inf
        self.query = _query(window_s, labels, model)

    async def traffic(self) -> Traffic:
        """Since the last answer.

        Raises UnavailableError when Prometheus does not answer, or has no requests to tell of.
        Figures that are missing, or no numbers, as means over nothing are, are None.
        """
        figures = _figures(await self._vector())
        ended = figures.get("ended")
        if ended is None:
            raise UnavailableError(
                f"Prometheus has no {_PREFIX}request_duration_seconds of the last {self._window_s:g} s"
            )
        now_s = self._clock()
        duration_s, self._answered_s = min(now_s - self._answered_s, self._window_s), now_s
        return Traffic(
            duration_s=duration_s,
            requests=max(0.0, ended + figures.get("begun", 0.0)) * duration_s / self._window_s,
            prompt_tokens=_positive(figures.get("prompt_tokens")),
            cached_tokens=_positive(figures.get("cached_tokens")),
            output_tokens=_positive(figures.get("output_tokens")),
            ttft_s=_positive(figures.get("ttft_s")),
            itl_s=_positive(figures.get("itl_s")),
        )

    async def close(self) -> None:
        """A question under way ends by its own timeout."""

    async def _vector(self) -> _Vector:
        try:
            return await asyncio.to_thread(self._ask)
        except (ValueError, RecursionError) as error:  # a redirect to what is no URL, brackets without end
            raise UnavailableError(f"{self._url} does not answer as Prometheus does: {error}") from error

    def _ask(self) -> _Vector:
        """Blocks."""
        body = urllib.parse.urlencode({"query": self.query, "timeout": f"{self._timeout_s:g}s"}).encode()
        try:
            with urllib.request.urlopen(self._url, body, self._timeout_s) as response:  # noqa: S310 - checked to be HTTP
                content = _read(response, time.monotonic() + self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise UnavailableError(
                    f"Prometheus answers {error.code}: {_said(error.read(_ANSWER_BYTES_MAX))}"
                ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(f"Prometheus at {self._url} does not answer: {_reason(error)}") from error
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UnavailableError(f"{self._url} does not answer as Prometheus does: {error}") from error
        if answer.data is None:
            raise UnavailableError(f"Prometheus does not answer the question: {answer.error or answer.status}")
        return answer.data


def _query(window_s: float, labels: str, model: str | None) -> str:
    matchers = [labels] if labels else []
    if model is not None:
        matchers.append(f"model={msgspec.json.encode(model).decode()}")  # PromQL's strings are escaped as JSON's
    braces = "{" + ",".join(matchers) + "}" if matchers else ""
    window = f"[{max(1, round(window_s * 1000))}ms]"
    parts = (
        f'label_replace({expression.format(p=_PREFIX, s=braces, w=window)}, "figure", "{name}", "", "")'
        for name, expression in _FIGURES.items()
    )
    return " or ".join(parts)


def _figures(vector: _Vector) -> dict[str, float]:
    """Those that are numbers."""
    found: dict[str, float] = {}
    for sample in vector.result:
        try:
            value = float(sample.value[1])
        except ValueError:
            continue
        if math.isfinite(value):
            found[sample.metric.get("figure", "")] = value
    return found


def _positive(value: float | None) -> float | None:
    return value if value is not None and value >= 0 else None


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def _read(response: http.client.HTTPResponse, until_s: float) -> bytes:
    """The body; TimeoutError when it comes too slowly, which the socket's own timeout does not see."""
    parts: list[bytes] = []
    left = _ANSWER_BYTES_MAX
    while left and (part := response.read1(left)):
        parts.append(part)
        left -= len(part)
        if time.monotonic() > until_s:
            raise TimeoutError("its answer takes too long")
    return b"".join(parts)


def _said(content: bytes) -> str:
    try:
        return msgspec.json.decode(content, type=_Answer).error or "no reason given"
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "no reason given"
