"""Moves bytes between the memories of processes: register memory, tell a peer of it, read and write blocks of it."""

from dynamo.transfer.agent import Agent, Notification
from dynamo.transfer.blocks import Blocks
from dynamo.transfer.memory import Region
from dynamo.transfer.transfer import Transfer, TransferState

__all__ = ["Agent", "Blocks", "Notification", "Region", "Transfer", "TransferState"]
