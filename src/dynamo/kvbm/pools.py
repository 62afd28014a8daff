"""The pools of a service, and the engines that use them."""

import asyncio
import logging
from collections.abc import Callable

from dynamo.errors import ConfigError, NotFoundError
from dynamo.kvbm.arena import HostArena
from dynamo.kvbm.engine_sessions import Engine
from dynamo.kvbm.layout import PoolLayout
from dynamo.kvbm.pinned_blocks import PinnedBlocks
from dynamo.kvbm.pool_shell import PoolShell
from dynamo.kvbm.slot import slot_bytes
from dynamo.kvbm.tiers import PoolTiers
from dynamo.protocols.kvbm import Attach, PoolFigures, PoolOptions, PoolSpec
from dynamo.runtime.background import in_background

logger = logging.getLogger(__name__)

POOLS_MAX = 16
FIRST_ENGINE_S = 1800.0  # how long a service waits for its first one, which may have a large model to load
NAMESPACE_BYTES = 16
MakeTiers = Callable[[PoolOptions, PoolLayout, HostArena], PoolTiers]


class Pools:
    """One for each namespace, made when its first engine attaches. One that no engine has used for long is closed."""

    def __init__(
        self, make_tiers: MakeTiers, linger_s: float | None, *, first_engine_s: float = FIRST_ENGINE_S
    ) -> None:
        """`linger_s`: how long a pool is kept without engines; None: for ever. The first may take `first_engine_s`."""
        self._make_tiers = make_tiers
        self._linger_s = linger_s
        self._pools: dict[bytes, PoolShell] = {}
        self._engines: dict[str, Engine] = {}  # by owner
        self._idle: dict[bytes, asyncio.TimerHandle] = {}  # pools that will be closed, if nobody comes
        self._closing: set[asyncio.Task[None]] = set()
        self._abandoned = asyncio.Event()
        self._lingering: asyncio.TimerHandle | None = None
        self._linger(first_engine_s)

    def engine(self, attach: Attach) -> Engine:
        """The engine of this owner, in the pool that it asks for; both are made if need be.

        Raises ConfigError for a pool that cannot be, OverloadedError when there is no room for it.
        """
        pool = self._pool(attach.pool, attach.options)
        engine = self._engines.get(attach.owner)
        if engine is None:
            engine = self._engines[attach.owner] = Engine(pool)
        elif engine.pool is not pool:
            raise ConfigError("one engine cannot use two pools")
        self._stop_lingering(attach.pool.namespace)
        return engine

    def engine_of(self, owner: str) -> Engine | None:
        return self._engines.get(owner)

    def left(self, owner: str, connection: object) -> None:
        """A connection of this engine's was closed."""
        engine = self._engines.get(owner)
        if engine is None:
            return
        engine.remove(connection)
        if engine.is_gone:
            del self._engines[owner]
            self._linger_pool(engine.pool)
            self._linger()

    def named(self, namespace: bytes) -> list[PoolShell]:
        """That one, or all for b"". Raises NotFoundError when there is none of this name."""
        if namespace and namespace not in self._pools:
            raise NotFoundError(f"there is no pool {namespace.hex()}")
        return [pool for name, pool in self._pools.items() if namespace in (b"", name)]

    def figures(self) -> list[PoolFigures]:
        return [self.figures_of(pool) for pool in self._pools.values()]

    def figures_of(self, pool: PoolShell) -> PoolFigures:
        return pool.figures(sum(engine.pool is pool for engine in self._engines.values()))

    async def abandoned(self) -> None:
        """Returns when there has been no engine for `linger_s`."""
        await self._abandoned.wait()

    async def close(self) -> None:
        for handle in self._idle.values():
            handle.cancel()
        if self._lingering is not None:
            self._lingering.cancel()
        for pool in self._pools.values():
            self._close(pool)
        self._pools.clear()
        if self._closing:
            await asyncio.wait(self._closing)

    def _pool(self, spec: PoolSpec, options: PoolOptions) -> PoolShell:
        pool = self._pools.get(spec.namespace)
        if pool is None:
            pool = self._made(spec, options)
        elif _shape(pool.spec) != _shape(spec):
            raise ConfigError(f"there is a pool of another form under this name: {pool.spec.description}")
        elif pool.options != options:
            logger.warning("%s stays as its first engine has asked for it, with %s", spec.description, pool.options)
        return pool

    def _made(self, spec: PoolSpec, options: PoolOptions) -> PoolShell:
        if len(self._pools) >= POOLS_MAX:
            raise ConfigError(f"there are {POOLS_MAX} pools already")
        payload_bytes = spec.rank_bytes * spec.ranks
        size_bytes = slot_bytes(payload_bytes)
        if len(spec.namespace) != NAMESPACE_BYTES:
            raise ConfigError(f"a pool's namespace has {NAMESPACE_BYTES} bytes")
        if spec.rank_bytes < 1 or spec.ranks < 1 or options.host_bytes < size_bytes:
            raise ConfigError(f"a pool of {options.host_bytes} bytes holds no block of {payload_bytes}")
        layout = PoolLayout(
            namespace=spec.namespace,
            payload_bytes=payload_bytes,
            slot_bytes=size_bytes,
            description=spec.description,
        )
        arena = HostArena(options.host_bytes // size_bytes, size_bytes)
        tiers = self._make_tiers(options, layout, arena)
        try:
            pool = PoolShell(spec, options, arena, tiers)
        except BaseException:
            tiers.release()
            raise
        self._pools[spec.namespace] = pool
        if tiers.peers is not None:
            tiers.peers.serve(PinnedBlocks(pool))
        pool.start()
        logger.info("a new pool: %s, %d slots of %d bytes", spec.description, arena.slots, arena.slot_bytes)
        return pool

    # Lingering

    def _linger_pool(self, pool: PoolShell) -> None:
        name = pool.spec.namespace
        if self._linger_s is not None and not any(engine.pool is pool for engine in self._engines.values()):
            loop = asyncio.get_running_loop()
            self._idle[name] = loop.call_later(self._linger_s, self._drop, name)

    def _linger(self, at_least_s: float = 0.0) -> None:
        if self._linger_s is not None and not self._engines:
            delay_s = max(self._linger_s, at_least_s)
            self._lingering = asyncio.get_running_loop().call_later(delay_s, self._abandoned.set)

    def _stop_lingering(self, namespace: bytes) -> None:
        if (handle := self._idle.pop(namespace, None)) is not None:
            handle.cancel()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _drop(self, namespace: bytes) -> None:
        self._idle.pop(namespace, None)
        pool = self._pools.pop(namespace)
        logger.info("%s has had no engine for %g s and is given up", pool.spec.description, self._linger_s)
        self._close(pool, unused=True)

    def _close(self, pool: PoolShell, *, unused: bool = False) -> None:
        async def close() -> None:
            await pool.close()
            if unused:  # otherwise engines may be reading it, and read on
                pool.arena.give_back()

        task = in_background(close(), "kvbm-close")
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


def _shape(spec: PoolSpec) -> tuple[int, int, int]:
    return spec.rank_bytes, spec.ranks, spec.block_tokens
