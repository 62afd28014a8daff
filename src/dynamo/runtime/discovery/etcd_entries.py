"""What a process wants to stand in etcd, and the task that sees to it.

There is one writer: it renews the lease, takes out what was withdrawn and writes whatever does not stand under the
present lease. So a lost lease, an etcd that lost its data and a first registration are the same work, done in order.
"""

import asyncio
import logging

from dynamo.errors import ConfigError
from dynamo.runtime.background import kept_up
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.discovery.etcd_client import EtcdClient
from dynamo.runtime.discovery.etcd_entry import EtcdEntry, revision_of
from dynamo.runtime.discovery.etcd_errors import Code, EtcdError, EtcdRefusedError, EtcdUnavailableError
from dynamo.runtime.discovery.etcd_lease import EtcdLease
from dynamo.runtime.discovery.etcd_messages import TxnResponse

logger = logging.getLogger(__name__)

REGISTER_TIMEOUT_S = 30.0  # longer than it takes to start etcd again, or to elect a new leader
_WITHDRAW_TIMEOUT_S = 2.0
_BACKOFF_MIN_S = 0.1


class EtcdEntries:
    """The entries of this process."""

    def __init__(
        self,
        client: EtcdClient,
        lease: EtcdLease,
        *,
        root: bytes,
        renew_interval_s: float,
        register_timeout_s: float,
    ) -> None:
        self._client = client
        self._lease = lease
        self._root = root
        self._renew_interval_s = renew_interval_s
        self._register_timeout_s = register_timeout_s
        self._wanted: dict[str, EtcdEntry] = {}
        self._unwanted: dict[str, EtcdEntry] = {}  # withdrawn, but perhaps still in etcd
        self._renew_at_s = 0.0
        self._silent = False
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From here on there is a lease, and its renewals say whether etcd answers; idempotent."""
        if self._keeper is None:
            self._keeper = kept_up(self._keep, "etcd-entries")

    async def add(self, key: str, value: bytes) -> tuple[EtcdEntry, int]:
        """Writes an entry; gives it and the revision of etcd that has it. Raises what Discovery.register() raises."""
        if key in self._wanted:
            raise ValueError(f"{key} is already registered")
        entry = self._wanted[key] = EtcdEntry(self._root, key, value)
        self._changed.set()
        self.start()
        try:
            return entry, await self._written(entry)
        except BaseException:
            self.discard(entry)  # it may be on its way, or there: nobody would take it out
            raise

    async def remove(self, entry: EtcdEntry) -> None:
        """Takes an entry out; when etcd does not answer now, later. Idempotent."""
        if self.discard(entry) and not self._silent:
            await asyncio.wait([entry.removed], timeout=_WITHDRAW_TIMEOUT_S)

    def discard(self, entry: EtcdEntry) -> bool:
        """As remove(), without waiting for it; False when the entry was not wanted any more."""
        if self._wanted.get(entry.key) is not entry:
            return False
        del self._wanted[entry.key]
        self._unwanted[entry.key] = entry
        self._changed.set()
        return True

    async def close(self) -> None:
        """Ends the lease and all entries with it. Where etcd does not answer, they end with the lease's time."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        for entry in tuple(self._wanted.values()):
            self._reject(entry, ConfigError(f"{entry.key} cannot be registered: discovery was closed"))
        try:
            async with asyncio.timeout(_WITHDRAW_TIMEOUT_S):
                await self._lease.revoke()
        except (EtcdError, TimeoutError) as error:
            logger.warning("the entries of this process stay in etcd until its lease ends: %s", error or "no answer")

    async def _written(self, entry: EtcdEntry) -> int:
        try:
            async with asyncio.timeout(self._register_timeout_s):
                return await entry.written
        except TimeoutError:
            reason = self._client.complaint or "it is too slow"
            raise ConfigError(f"{entry.key} cannot be registered in etcd: {reason}") from None

    async def _keep(self) -> None:
        backoff = Backoff(_BACKOFF_MIN_S, self._renew_interval_s)
        while True:
            self._changed.clear()
            try:
                await self._reconcile()
            except EtcdError as error:
                self._client.complain(error)
                self._silent = isinstance(error, EtcdUnavailableError)
                delay_s = backoff.next_s()
            else:
                self._silent = False
                backoff.reset()
                delay_s = self._renew_interval_s
            await self._wait_for_change(delay_s)

    async def _wait_for_change(self, delay_s: float) -> None:
        try:
            async with asyncio.timeout(delay_s):
                await self._changed.wait()
        except TimeoutError:
            pass  # time for a sign of life

    async def _reconcile(self) -> None:
        """Makes etcd agree with what is wanted; EtcdError."""
        await self._renew()
        for entry in tuple(self._unwanted.values()):
            await self._take_out(entry)
        for entry in tuple(self._wanted.values()):
            if self._is_due(entry):
                await self._renew()  # many may take long
                await self._write(entry)

    def _is_due(self, entry: EtcdEntry) -> bool:
        """Whether it has to be written now, as far as things have not changed since this round has begun.

        A former entry with its key goes first: it would be taken for this one, and then taken out.
        """
        wanted = self._wanted.get(entry.key) is entry and entry.key not in self._unwanted
        return wanted and entry.lease != self._lease.id

    async def _renew(self) -> None:
        now_s = asyncio.get_running_loop().time()
        if self._lease.id == 0 or now_s >= self._renew_at_s:
            try:
                await self._lease.renew()
            except EtcdRefusedError as error:
                for entry in tuple(self._wanted.values()):
                    self._refused(entry, error)
                raise
            self._renew_at_s = now_s + self._renew_interval_s

    async def _write(self, entry: EtcdEntry) -> None:
        lease = self._lease.id
        try:
            answer = await self._client.call("/v3/kv/txn", entry.put_under(lease), TxnResponse)
        except EtcdRefusedError as error:
            if error.code == Code.NOT_FOUND:
                self._lease.lost()
                raise
            self._refused(entry, error)
            return
        revision = revision_of(answer, lease)
        if revision == 0:
            self._taken(entry)
            return
        entry.lease = lease
        if not entry.written.done():
            entry.written.set_result(revision)

    async def _take_out(self, entry: EtcdEntry) -> None:
        try:
            await self._client.call("/v3/kv/txn", entry.delete_under(self._lease.id), TxnResponse)
        except EtcdRefusedError as error:
            self._client.complain(error)  # it will go with the lease
        if self._unwanted.get(entry.key) is entry:
            del self._unwanted[entry.key]
        if not entry.removed.done():
            entry.removed.set_result(None)

    def _taken(self, entry: EtcdEntry) -> None:
        """What once was ours is tried again: an etcd that was set back may have it under a lease of the past."""
        if not entry.written.done():
            self._reject(entry, ValueError(f"{entry.key} is already registered"))
        elif entry.lease != 0:
            entry.lease = 0
            logger.error("a discovery entry of this process was lost, and another one has its key: %s", entry.key)

    def _refused(self, entry: EtcdEntry, error: EtcdRefusedError) -> None:
        """A wrong password does not get right by waiting. What once was written is tried again all the same."""
        if entry.written.done():
            self._client.complain(error)
        else:
            self._reject(entry, ConfigError(f"{entry.key} cannot be registered in etcd: {error}"))

    def _reject(self, entry: EtcdEntry, error: Exception) -> None:
        if self._wanted.get(entry.key) is entry:
            del self._wanted[entry.key]
        if not entry.written.done():
            entry.written.set_exception(error)
