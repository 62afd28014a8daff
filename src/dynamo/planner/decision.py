"""What the planner has decided, and why. Travels too: to the log, to metrics, to whoever asks."""

import msgspec

from dynamo.protocols.model_card import WorkerType


class Scale(msgspec.Struct, frozen=True, tag="scale", kw_only=True):
    """Have that many workers of a role."""

    role: WorkerType
    workers: int


class Convert(msgspec.Struct, frozen=True, tag="convert", kw_only=True):
    """Have that many workers of one role go on in another: they drain, and register anew. No start-up, same GPUs."""

    source: WorkerType
    destination: WorkerType
    workers: int


Action = Scale | Convert


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Traffic: as observed, or as expected until what is decided now has taken effect."""

    requests_per_s: float
    prompt_tokens: float  # mean, those that need prefill only
    output_tokens: float


class RoleDecision(msgspec.Struct, frozen=True, kw_only=True):
    """How one role's number of workers came about: each stage's result, in this order."""

    role: WorkerType
    ready: int
    current: int  # the connector's desired number before this decision
    throughput: int | None = None  # what the throughput policy wants at least; None: it has no say
    load: int | None = None  # what the load policy wants; None: likewise
    wanted: int = 0  # of both, within the bounds
    target: int = 0  # what the budget, the cool-down and workers under way leave of it
    withheld: int = 0  # of those wanted, that the budget has no GPUs for: at all, or until others have given theirs up
    reasons: tuple[str, ...] = ()  # a short sentence for each stage that had something to say


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One tick's."""

    number: int  # counts up from 1
    at_s: float  # the observation's now_s
    observed: Forecast | None = None
    forecast: Forecast | None = None
    ttft_s: float | None = None  # mean, observed
    itl_s: float | None = None
    roles: tuple[RoleDecision, ...] = ()
    held: str = ""  # why everything stays as it is, whatever the traffic; "": it need not
    problems: tuple[str, ...] = ()  # of the observation, and workers that do not become ready
    actions: tuple[Action, ...] = ()  # to be carried out in this order
