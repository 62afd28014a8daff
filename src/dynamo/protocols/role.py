"""A worker's part in disaggregated serving, which may change while it runs."""

from typing import Annotated

import msgspec

from dynamo.protocols.model_card import WorkerType

# Of every worker that prefills or decodes, in its namespace and under its instance id, whichever of the two it does.
ROLE_COMPONENT = "worker"
ROLE_ENDPOINT = "role"


class RoleRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """Go on as a worker of another role. Answered with one WorkerRole, once it serves in that role.

    Refused with InvalidRequestError for a role that it cannot have, or if nobody would be left to decode;
    UnsupportedFeatureError if its engine cannot change; UnavailableError while it changes already, and DrainingError if
    it is told to end. Who stops waiting for the answer does not stop the change.
    """

    role: WorkerType | None = None  # None: change nothing, say how things stand
    force: bool = False  # also if no other worker decodes
    drain_timeout_s: Annotated[float, msgspec.Meta(ge=0)] | None = None  # for requests under way; None: as at SIGTERM


class WorkerRole(msgspec.Struct, omit_defaults=True, kw_only=True):
    """How things stand with a worker."""

    role: WorkerType  # that it has, or has until it has become `becoming`
    model: str  # the name that clients know
    pid: int  # of its process, on its host
    can_change: bool = False
    becoming: WorkerType | None = None  # it drains, and takes no requests
