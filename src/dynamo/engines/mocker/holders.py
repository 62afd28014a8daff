"""The prefill workers whose prompts a decode worker fetches, as peers of its agent."""

from collections.abc import Iterator
from contextlib import contextmanager

from dynamo.transfer import Agent

HOLDERS_MAX = 64  # that nobody uses; each has links and threads of its own


class Holders:
    """The agent knows those that are in use, and the ones that were used last: prefill workers come and go."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._users: dict[str, int] = {}  # by name; who was used last stands last

    @contextmanager
    def using(self, metadata: bytes) -> Iterator[str]:
        """The holder's name, under which the agent knows it within the block.

        Raises InvalidRequestError for what is no agent's metadata.
        """
        holder = self._agent.add_peer(metadata)
        self._users[holder] = self._users.pop(holder, 0) + 1
        try:
            yield holder
        finally:
            self._users[holder] -= 1
            if len(self._users) > HOLDERS_MAX:
                self._forget()

    def _forget(self) -> None:
        """All that nobody uses but the last ones."""
        unused = [holder for holder, users in self._users.items() if not users]
        for holder in unused[:-HOLDERS_MAX]:
            del self._users[holder]
            self._agent.remove_peer(holder)
