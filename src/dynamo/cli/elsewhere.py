"""Where something is that was not found in the namespace that was asked for."""

import contextlib

from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import INSTANCES_PREFIX, EndpointId


def elsewhere(runtime: DistributedRuntime, endpoint: EndpointId) -> str:
    """What a person may type to reach the endpoints of that name in other namespaces; "": there are none."""
    with contextlib.closing(runtime.discovery.watch(INSTANCES_PREFIX)) as watch:
        parts = [event.key.removeprefix(INSTANCES_PREFIX).split("/") for event in watch.take()]
    found = sorted({part[0] for part in parts if part[1:3] == [endpoint.component, endpoint.name]})
    return f"; there are some with --namespace {' or '.join(found)}" if found else ""
