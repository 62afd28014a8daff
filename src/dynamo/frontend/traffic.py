"""What this frontend has been asked for, as a planner wants to know it: the figures of /metrics, read when it asks."""

from collections.abc import AsyncIterator

from dynamo.frontend.state import Frontend
from dynamo.frontend.tracker import ModelMetrics
from dynamo.protocols.traffic import ModelTraffic
from dynamo.runtime.component import Endpoint


async def serve_traffic(endpoint: Endpoint, frontend: Frontend) -> None:
    """Serves the traffic of each model, until the runtime shuts down. Raises what Endpoint.start() raises."""
    health = endpoint.runtime.health

    async def answer(request: object) -> AsyncIterator[list[ModelTraffic]]:
        yield traffic(frontend, health.uptime_s)

    await endpoint.start(answer)


def traffic(frontend: Frontend, uptime_s: float) -> list[ModelTraffic]:
    """One for each model that a request was ever for."""
    return [_of_model(series, uptime_s) for series in frontend.known_series()]


def _of_model(series: ModelMetrics, uptime_s: float) -> ModelTraffic:
    under_way = sum(sample.value for family in series.inflight.collect() for sample in family.samples)
    return ModelTraffic(
        model=series.model,
        uptime_s=uptime_s,
        arrived_requests=series.duration.count + int(under_way),
        finished_requests=series.output_sequence.count,
        first_tokens=series.time_to_first_token.count,
        ttft_s=series.time_to_first_token.sum,
        gaps=series.inter_token_latency.count,
        itl_s=series.inter_token_latency.sum,
        prompts=series.input_tokens.count,
        prompt_tokens=int(series.input_tokens.sum),
        cached_tokens=int(series.cached_tokens.sum),
        output_tokens=int(series.output_sequence.sum),
    )
