"""Which part of requests an engine does, and how KV caches get from one to the other."""

import secrets
from dataclasses import dataclass, field

from dynamo.engines.mocker.handoff import ENGINE
from dynamo.engines.mocker.kv_transport import KvTransport
from dynamo.engines.mocker.modelled_transport import ModelledTransport
from dynamo.engines.mocker.real_transport import RealTransport
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.protocols.model_card import WorkerType
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.transfer import Agent


@dataclass(frozen=True, slots=True, kw_only=True)
class HandoffConfig:
    """The same for all workers of a fleet, but for the role."""

    role: WorkerType = WorkerType.Aggregated
    host: str = "127.0.0.1"  # at which others reach this worker
    lease_s: float = 60.0  # how long a transfer may take, see HeldPrefills
    model: TransferModel = field(default_factory=TransferModel)
    credentials: Credentials = NO_CREDENTIALS  # of the agents
    real_bytes: bool = False  # they are moved, and how long that takes is not modelled

    def format(self, block_size: int) -> str:
        """Equal for workers that can hand over to each other; empty for such as don't. `block_size`: in tokens."""
        if self.role is WorkerType.Aggregated:
            return ""
        transfer = f"bytes/{self.model.bytes_per_token}" if self.real_bytes else "model"
        return f"{ENGINE}/{block_size}/{transfer}"

    def agent(self) -> Agent:
        """One that was not started, under a name that no other ever has."""
        return Agent(f"mocker-{secrets.token_hex(16)}", host=self.host, credentials=self.credentials)

    def transport(self, agent: Agent, size: SchedulerConfig) -> KvTransport:
        """To be started after the agent."""
        if not self.real_bytes:
            return ModelledTransport(self.model)
        return RealTransport(
            agent,
            num_blocks=size.num_blocks,
            block_size=size.block_size,
            bytes_per_token=self.model.bytes_per_token,
        )
