"""The distributed runtime: processes find each other, serve endpoints and call them."""

from dynamo.runtime.client import Annotated, Client
from dynamo.runtime.component import Component, Endpoint, Namespace
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.context import Context
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import Instance
from dynamo.runtime.worker import dynamo_endpoint, dynamo_worker

__all__ = [
    "Annotated",
    "Client",
    "Component",
    "Context",
    "DistributedRuntime",
    "Endpoint",
    "Instance",
    "Namespace",
    "RuntimeConfig",
    "dynamo_endpoint",
    "dynamo_worker",
]
