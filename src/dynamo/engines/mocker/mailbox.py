"""The way from the engine's steps to one request's iterator."""

import asyncio

from dynamo.errors import DynamoError
from dynamo.protocols.generation import LLMEngineOutput, merge_outputs


class Mailbox:
    """Holds what a request's consumer, of which there is one, has not taken yet.

    What piles up is merged into one output, so it is bounded by the request's own tokens. In the usual case, a
    consumer that waits, an output goes straight through a future.
    """

    __slots__ = ("_arrival", "_error", "_loop", "_pending", "request_id")

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._loop = asyncio.get_running_loop()
        self._pending: LLMEngineOutput | None = None
        self._arrival: asyncio.Future[LLMEngineOutput] | None = None
        self._error: DynamoError | None = None

    def put(self, output: LLMEngineOutput) -> None:
        """Hands an output over; never blocks."""
        arrival = self._arrival
        if arrival is not None and not arrival.done():
            arrival.set_result(output)
        elif self._pending is None:
            self._pending = output
        else:
            self._pending = merge_outputs([self._pending, output])

    def fail(self, error: DynamoError) -> None:
        """Makes arrival() raise `error` from now on."""
        self._error = error
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(error)

    def take(self) -> LLMEngineOutput | None:
        """What has piled up, if anything has."""
        pending, self._pending = self._pending, None
        return pending

    def arrival(self) -> asyncio.Future[LLMEngineOutput]:
        """The next output to come; to be asked for when there is nothing to take."""
        if self._error is not None:
            raise self._error
        self._arrival = self._loop.create_future()
        return self._arrival
