"""What travels between the planner and the Kubernetes API: the parts of its objects that the planner needs.

Names are Kubernetes'. What has its default value, such as 0 replicas, may be left out of an answer.
"""

from datetime import datetime
from typing import Annotated

import msgspec

Time = Annotated[datetime, msgspec.Meta(tz=True)]


class ObjectMeta(msgspec.Struct, rename="camel", omit_defaults=True):
    """Stands in every object."""

    name: str = ""
    resource_version: str = ""  # another one after each change of the object, its status included
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None  # by then it has to be gone: it was told to end


class ScaleSpec(msgspec.Struct):
    replicas: int = 0


class ScaleStatus(msgspec.Struct):
    replicas: int = 0
    selector: str = ""  # of its pods, as the parameter labelSelector takes it


class Scale(msgspec.Struct):
    """autoscaling/v1: how many pods a Deployment, or whatever else can be scaled, shall have and has."""

    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    spec: ScaleSpec = msgspec.field(default_factory=ScaleSpec)
    status: ScaleStatus = msgspec.field(default_factory=ScaleStatus)


class PatchedMeta(msgspec.Struct, rename="camel"):
    """With it a patch of an object that has been changed since is refused as a conflict."""

    resource_version: str


class ScalePatch(msgspec.Struct):
    """A merge patch (RFC 7386) of a Scale."""

    metadata: PatchedMeta
    spec: ScaleSpec


class PodCondition(msgspec.Struct, rename="camel"):
    type: str
    status: str  # True, False, Unknown
    last_transition_time: Time | None = None


class PodStatus(msgspec.Struct):
    phase: str = ""
    conditions: list[PodCondition] = []


class Pod(msgspec.Struct):
    metadata: ObjectMeta = msgspec.field(default_factory=ObjectMeta)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class ListMeta(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")  # what to ask for the rest with; "": this is all


class PodList(msgspec.Struct):
    metadata: ListMeta = msgspec.field(default_factory=ListMeta)
    items: list[Pod] = []


class Status(msgspec.Struct):
    """How a call has failed."""

    message: str = ""
    reason: str = ""
