"""Which worker gets a request."""

from dynamo.router.push_router import PushRouter
from dynamo.router.selection import RouterMode

__all__ = ["PushRouter", "RouterMode"]
