"""The event plane that a configuration names."""

from dynamo.errors import ConfigError
from dynamo.runtime.event_plane.base import EventPlane
from dynamo.runtime.event_plane.direct import DirectPlane


def make_event_plane(kind: str, nats_server: str) -> EventPlane:
    """Raises ConfigError for another kind, for addresses that are none, and where nats-py is missing."""
    match kind:
        case "direct":
            return DirectPlane()
        case "nats":
            try:
                from dynamo.runtime.event_plane.nats import NatsPlane
            except ImportError:
                raise ConfigError("--event-plane nats needs nats-py: pip install 'dynamo-py[nats]'") from None
            return NatsPlane(nats_server)
        case other:
            raise ConfigError(f"there is no event plane {other!r}: choose direct or nats")
