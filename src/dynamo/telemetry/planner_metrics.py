"""dynamo_planner_*: what the planner sees, wants and does. Roles and policies are labels."""

import math

from prometheus_client import CollectorRegistry, Counter, Gauge

_PREFIX = "dynamo_planner_"


class PlannerMetrics:
    """Of one planner. What is not known has no series, or NaN where there are no labels."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(_PREFIX + name, text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        self.ready = gauge("ready_workers", "Workers that take requests", "role")
        self.current = gauge("current_workers", "Workers that were wanted before the decision", "role")
        self.proposed = gauge("proposed_workers", "Workers that a policy proposes", "role", "policy")
        self.wanted = gauge("wanted_workers", "Workers that the policies together want, within the bounds", "role")
        self.target = gauge("target_workers", "Workers that were decided upon", "role")
        self.withheld = gauge("withheld_workers", "Workers wanted that the budget has no GPUs for", "role")
        self.requests = gauge("requests_per_second", "Requests that come", "kind")
        self.prompt_tokens = gauge("prompt_tokens", "Tokens of a prompt that need prefill, mean", "kind")
        self.output_tokens = gauge("output_tokens", "Tokens of an answer, mean", "kind")
        self.ttft = gauge("time_to_first_token_seconds", "Observed, mean")
        self.itl = gauge("inter_token_latency_seconds", "Observed, mean")
        for latency in (self.ttft, self.itl):
            latency.set(math.nan)
        self.held = gauge("held", "1 while everything is left as it is, because too little is known")
        self.problems = gauge("problems", "What was wrong with the last observation, in number")
        self.decisions = counter("decisions_total", "Decisions")
        self.actions = counter("actions_total", "Changes that the connector has accepted", "role", "action")
        self.errors = counter("errors_total", "What has failed", "stage")
        self.skipped = counter("skipped_ticks_total", "Decisions that were left out because one took too long")
