from contextlib import suppress

import pytest

from dynamo.engines.mocker.holders import HOLDERS_MAX, Holders
from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.runtime.request_plane.base import Address
from dynamo.transfer import Agent
from dynamo.transfer.metadata import AgentMetadata


def metadata(name: str) -> bytes:
    return AgentMetadata(name=name, address=Address(secret="s"), regions=[]).encode()


async def test_the_last_ones_are_known() -> None:
    async with Agent("decode") as agent:
        holders = Holders(agent)
        names = [f"holder-{number}" for number in range(HOLDERS_MAX)]
        for name in [*names, names[0], "one more"]:
            with holders.using(metadata(name)) as known:
                assert known == name
                assert name in agent._peers
        assert set(agent._peers) == {*names, "one more"} - {names[1]}


async def test_who_is_in_use_stays_known() -> None:
    async with Agent("decode") as agent:
        holders = Holders(agent)
        with holders.using(metadata("first")):
            with holders.using(metadata("first")):
                pass
            for number in range(2 * HOLDERS_MAX):
                with holders.using(metadata(f"holder-{number}")):
                    pass
            assert len(agent._peers) == HOLDERS_MAX + 1
            assert "first" in agent._peers
        assert "first" not in agent._peers
        assert len(agent._peers) == HOLDERS_MAX


async def test_who_was_used_by_something_that_failed_is_used_no_more() -> None:
    async with Agent("decode") as agent:
        holders = Holders(agent)
        with suppress(HandoffLostError), holders.using(metadata("first")):
            raise HandoffLostError("gone")
        for number in range(HOLDERS_MAX):
            with holders.using(metadata(f"holder-{number}")):
                pass
        assert "first" not in agent._peers


async def test_what_is_no_holder() -> None:
    async with Agent("decode") as agent:
        with pytest.raises(InvalidRequestError), Holders(agent).using(b"?"):
            pass
