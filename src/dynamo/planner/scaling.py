"""How the virtual connector tells what it wants, and is told that it has been heard."""

from collections.abc import Mapping

import msgspec

from dynamo.protocols.model_card import WorkerType

SCALING_ENDPOINT = "scaling"  # of the planner's component: asked with ScalingRequest, it answers with ScalingTargets


class ScalingRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Without anything: what is wanted now?"""

    acknowledge: int | None = None  # "that target is known here, and being carried out"
    workers: Mapping[WorkerType, int] | None = None  # with it: how many there will be, if not as many as wanted
    follow: bool = False  # tell each further target too, until the caller closes the stream


class ScalingTarget(msgspec.Struct, frozen=True, kw_only=True):
    """As many workers as there should be."""

    id: int  # counts up from 1; 0: nothing has been decided yet
    workers: Mapping[WorkerType, int]
    acknowledged: bool
    age_s: float  # since it was decided
