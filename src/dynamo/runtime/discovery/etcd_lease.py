"""The lease under which a process's entries stand in etcd: they go when it goes."""

import logging

from dynamo.runtime.discovery.etcd_client import EtcdClient
from dynamo.runtime.discovery.etcd_messages import (
    LeaseGrantRequest,
    LeaseGrantResponse,
    LeaseKeepAliveResponse,
    LeaseRequest,
    Nothing,
)

logger = logging.getLogger(__name__)


class EtcdLease:
    """One at a time; a lost one is replaced by the next `renew()`."""

    def __init__(self, client: EtcdClient, ttl_s: int) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self.id = 0  # 0: there is none

    async def renew(self) -> None:
        """Gives a sign of life, or takes a new lease where there is none; EtcdError."""
        if self.id:
            answer = await self._client.call("/v3/lease/keepalive", LeaseRequest(self.id), LeaseKeepAliveResponse)
            if answer.result.TTL > 0:
                return
            self.lost()
        granted = await self._client.call("/v3/lease/grant", LeaseGrantRequest(self._ttl_s), LeaseGrantResponse)
        self.id = granted.ID

    def lost(self) -> None:
        """etcd knows it no more: this process was stopped or cut off for too long, or etcd has lost its data."""
        logger.warning("etcd has dropped the lease of this process: registering anew")
        self.id = 0

    async def revoke(self) -> None:
        """Ends it, and with it all entries under it; EtcdError."""
        lease, self.id = self.id, 0
        if lease:
            await self._client.call("/v3/lease/revoke", LeaseRequest(lease), Nothing)
