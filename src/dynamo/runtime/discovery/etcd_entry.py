"""One entry of a process, and the transactions that bring it into etcd and out of it."""

import asyncio

from dynamo.runtime.discovery.etcd_messages import Compare, PutRequest, RangeRequest, RequestOp, TxnRequest, TxnResponse


class EtcdEntry:
    """`lease` is the one under which it stands in etcd, 0 before it does."""

    def __init__(self, root: bytes, key: str, value: bytes) -> None:
        """Raises ValueError for a key that is no text."""
        loop = asyncio.get_running_loop()
        self.key = key
        self.lease = 0
        self.written: asyncio.Future[int] = loop.create_future()  # the revision of etcd that has it
        self.removed: asyncio.Future[None] = loop.create_future()
        self._etcd_key = root + key.encode()
        self._value = value

    def put_under(self, lease: int) -> TxnRequest:
        """Writes it if the key is free; else says who has it."""
        return TxnRequest(
            compare=[Compare(self._etcd_key, "CREATE", create_revision=0)],
            success=[RequestOp(request_put=PutRequest(self._etcd_key, self._value, lease))],
            failure=[RequestOp(request_range=RangeRequest(self._etcd_key))],
        )

    def delete_under(self, lease: int) -> TxnRequest:
        """Takes it out, unless the key is another's."""
        return TxnRequest(
            compare=[Compare(self._etcd_key, "LEASE", lease=lease)],
            success=[RequestOp(request_delete_range=RangeRequest(self._etcd_key))],
        )


def revision_of(answer: TxnResponse, lease: int) -> int:
    """Since which revision the key is ours by the answer to `put_under()`, 0 when it is another's.

    Where the key was there already, it is ours if it stands under this very lease: an earlier try has written it.
    """
    if answer.succeeded:
        return answer.header.revision
    found = answer.responses[0].response_range if answer.responses else None
    return next((kv.mod_revision for kv in found.kvs if kv.lease == lease), 0) if found else 0
