"""Moves bytes between memories of processes, files and object stores: register them, read and write blocks of them."""

from dynamo.transfer.agent import Agent, Notification
from dynamo.transfer.blocks import Blocks
from dynamo.transfer.memory import Region
from dynamo.transfer.object_store import open_store
from dynamo.transfer.objects import ObjectStore
from dynamo.transfer.storage import StoredRegion
from dynamo.transfer.transfer import Transfer, TransferState

__all__ = [
    "Agent",
    "Blocks",
    "Notification",
    "ObjectStore",
    "Region",
    "StoredRegion",
    "Transfer",
    "TransferState",
    "open_store",
]
