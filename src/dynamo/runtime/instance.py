"""What discovery says about one instance of an endpoint."""

from typing import Annotated

import msgspec

from dynamo.runtime.discovery.entry import decode_json
from dynamo.runtime.request_plane.base import Address

INSTANCES_PREFIX = "instances/"
InstanceId = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class EndpointId(msgspec.Struct, frozen=True):
    """namespace.component.endpoint"""

    namespace: str
    component: str
    name: str

    @classmethod
    def parse(cls, path: str) -> "EndpointId":
        """From "namespace.component.endpoint", with or without "dyn://" before it; ValueError for anything else."""
        parts = path.removeprefix("dyn://").split(".")
        if len(parts) != 3 or not all(map(_is_name, parts)):
            raise ValueError(f"an endpoint is written namespace.component.endpoint, not {path!r}")
        return cls(*parts)

    def __str__(self) -> str:
        return f"{self.namespace}.{self.component}.{self.name}"

    def beside(self, name: str) -> "EndpointId":
        """Another endpoint of the same component."""
        return EndpointId(self.namespace, self.component, name)

    @property
    def instances_prefix(self) -> str:
        return f"{INSTANCES_PREFIX}{self.namespace}/{self.component}/{self.name}/"


class Instance(msgspec.Struct, frozen=True, kw_only=True):
    """One process that serves an endpoint."""

    instance_id: InstanceId
    namespace: str
    component: str
    endpoint: str
    address: Address

    @property
    def endpoint_id(self) -> EndpointId:
        return EndpointId(self.namespace, self.component, self.endpoint)

    @property
    def key(self) -> str:
        return f"{self.endpoint_id.instances_prefix}{self.instance_id:x}"

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, value: bytes) -> "Instance":
        """Raises ValueError for an entry of another kind or version."""
        return decode_json(value, cls)


def _is_name(part: str) -> bool:
    return bool(part) and all(c.isalnum() or c in "-_" for c in part)
