"""Where KV caches leave and reach a simulated engine."""

from dataclasses import dataclass

from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.kv_transport import KvTransport
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.transfer import Agent


@dataclass(frozen=True, slots=True)
class KvPort:
    """The same for as long as the engine runs, whichever role it plays: its peers know it."""

    agent: Agent
    transport: KvTransport

    @classmethod
    def of(cls, config: HandoffConfig, size: SchedulerConfig) -> "KvPort":
        """One that was not started."""
        agent = config.agent()
        return cls(agent, config.transport(agent, size))

    async def start(self) -> None:
        """Raises ConfigError, OverloadedError when that is not possible here."""
        await self.agent.start()
        self.transport.start()

    async def close(self) -> None:
        """Idempotent, and possible without start()."""
        await self.agent.close()
        await self.transport.close()
