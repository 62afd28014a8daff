"""No event plane: who wants to know asks the endpoint itself."""

from collections.abc import Callable

from dynamo.runtime.event_plane.base import OnMessage, Part
from dynamo.runtime.instance import EndpointId


class DirectPlane:
    """As EventPlane: nothing is sent, and nobody hears."""

    connected = False

    def publish(self, endpoint: EndpointId, instance_id: int, payload: bytes) -> None: ...

    def repeat(self, endpoint: EndpointId, instance_id: int, payload: Callable[[], bytes], interval_s: float) -> Part:
        return _Nothing()

    def subscribe(self, endpoint: EndpointId, on_message: OnMessage, on_lost: Callable[[], None]) -> Part:
        return _Nothing()

    async def close(self) -> None: ...


class _Nothing:
    def close(self) -> None: ...
