"""Transfers that take time, and move nothing."""

import time

from dynamo.engines.mocker.handoff import Begin, Grant
from dynamo.engines.mocker.pacing import sleep_until
from dynamo.engines.mocker.sequence import SequenceState
from dynamo.engines.mocker.transfer_model import Link, TransferModel
from dynamo.errors import DeadlineExceededError


class ModelledTransport:
    """A KvTransport. Each worker models its own link; a transfer ends when it is done at both ends."""

    def __init__(self, model: TransferModel) -> None:
        self._model = model
        self._link = Link()

    @property
    def notices_loss(self) -> bool:
        return self._model.instant  # it is there at once or not at all

    def start(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def prepare(self, sequence: SequenceState) -> None:
        pass

    def grant(self, sequence: SequenceState, begin: Begin, lease_s: float) -> Grant:
        now_s = time.monotonic()
        return Grant(lease_s=lease_s, sending_s=self._model.begin(begin.tokens, now_s, self._link) - now_s)

    def release(self, sequence: SequenceState) -> None:
        pass

    async def fetch(self, sequence: SequenceState, begin: Begin, grant: Grant, deadline_s: float) -> int:
        now_s = time.monotonic()
        end_s = max(self._model.begin(begin.tokens, now_s, self._link), now_s + grant.sending_s)
        if end_s > now_s:
            await sleep_until(min(end_s, deadline_s))
        if end_s > deadline_s:
            raise DeadlineExceededError("the transfer takes longer than the prompt is kept")
        return begin.tokens * self._model.bytes_per_token
