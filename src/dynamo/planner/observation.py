"""What the planner knows when it decides. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What clients have asked for since the last observation, at all frontends together."""

    duration_s: float
    requests: float  # that arrived, those refused for lack of room among them
    prompt_tokens: float | None  # mean; None: no request told
    cached_tokens: float | None  # mean of a prompt, that needed no prefill
    output_tokens: float | None  # mean of a finished request
    ttft_s: float | None  # mean; None: nobody got a first token
    itl_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The workers of one role."""

    desired: int  # as many as its connector was last told to have, by whomever
    ready: int  # that take requests
    starting_s: tuple[float, ...] = ()  # for how long each of those has been starting that is not ready yet
    draining: int = 0  # that end, and still hold their GPUs
    loads: Mapping[str, WorkerLoad] | None = None  # of those that told lately, by worker and rank; None: nobody asked


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """All that one tick is given. What could not be learnt is None, and `problems` says why."""

    now_s: float  # monotonic
    traffic: Traffic | None
    fleets: Mapping[WorkerType, Fleet] | None  # None: the connector did not answer
    problems: tuple[str, ...] = ()
