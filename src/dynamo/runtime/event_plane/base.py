"""The event plane: messages that one instance sends once and many hear. Best effort, and no more than that.

A message may be lost, doubled or late, and nobody is told. So what travels here also has an endpoint where it can be
asked for, and says enough for its hearers to notice when they have to.
"""

from collections.abc import Callable
from typing import Protocol

from dynamo.runtime.instance import EndpointId

OnMessage = Callable[[int, bytes], None]  # the id of the instance that sends, and what it says


class Part(Protocol):
    """A subscription, or a message that is sent again and again."""

    def close(self) -> None:
        """Ends it; idempotent."""
        ...


class EventPlane(Protocol):
    """One process's part in it. Its functions are called in the event loop's thread, and none but close() waits."""

    @property
    def connected(self) -> bool:
        """Whether what is published now would be sent."""
        ...

    def publish(self, endpoint: EndpointId, instance_id: int, payload: bytes) -> None:
        """Sends what the instance's endpoint has to say, if that is possible now; else it is dropped."""
        ...

    def repeat(self, endpoint: EndpointId, instance_id: int, payload: Callable[[], bytes], interval_s: float) -> Part:
        """Sends what `payload` gives each `interval_s`, and at once when a way to send has been found (again)."""
        ...

    def subscribe(self, endpoint: EndpointId, on_message: OnMessage, on_lost: Callable[[], None]) -> Part:
        """From now on hears what all instances of the endpoint say.

        `on_lost` is called when nothing more can be heard for the time being: what is said meanwhile is lost.
        """
        ...

    async def close(self) -> None:
        """Ends everything; idempotent."""
        ...
