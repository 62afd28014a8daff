import asyncio

import pytest

from dynamo.engines.mocker.mailbox import Mailbox
from dynamo.errors import UnavailableError
from dynamo.protocols.generation import FinishReason, LLMEngineOutput


def output(*token_ids: int, finish_reason: FinishReason | None = None) -> LLMEngineOutput:
    return LLMEngineOutput(token_ids=list(token_ids), finish_reason=finish_reason)


async def test_what_piled_up_is_taken_as_one() -> None:
    mailbox = Mailbox("a")
    for each in (output(1), output(2), output(3, finish_reason=FinishReason.LENGTH)):
        mailbox.put(each)

    assert mailbox.take() == output(1, 2, 3, finish_reason=FinishReason.LENGTH)
    assert mailbox.take() is None


async def test_an_output_reaches_the_waiting_consumer() -> None:
    mailbox = Mailbox("a")
    arrival = mailbox.arrival()
    mailbox.put(output(1))
    mailbox.put(output(2))  # before the consumer had its turn

    assert await arrival == output(1)
    assert mailbox.take() == output(2)


async def test_an_output_for_a_consumer_that_gave_up_waiting_is_kept() -> None:
    mailbox = Mailbox("a")
    mailbox.arrival().cancel()
    mailbox.put(output(1))

    assert mailbox.take() == output(1)


async def test_a_failure_reaches_the_waiting_consumer_and_later_ones() -> None:
    mailbox = Mailbox("a")
    waiting = mailbox.arrival()
    mailbox.fail(UnavailableError("gone"))

    with pytest.raises(UnavailableError):
        await waiting
    with pytest.raises(UnavailableError):
        await mailbox.arrival()


async def test_a_failure_leaves_what_was_there() -> None:
    mailbox = Mailbox("a")
    mailbox.put(output(1))
    mailbox.fail(UnavailableError("gone"))
    mailbox.fail(UnavailableError("twice"))

    assert mailbox.take() == output(1)
    with pytest.raises(UnavailableError, match="twice"):
        await asyncio.wait_for(mailbox.arrival(), timeout=1)
