"""Following the real service, as a process."""

from contextlib import AsyncExitStack
from pathlib import Path

import msgspec
import pytest

from dynamo.engines.kvbm_follower import KvbmFollower
from dynamo.protocols.kv_events import AllBlocksCleared, BlockStored, KvEventBatch, Tier
from dynamo.protocols.kvbm import PoolOptions
from dynamo.testing import eventually
from tests.kvbm.scripted_service import SLOT_BYTES, attach
from tests.kvbm.services import TestEngine, service

from .test_kvbm_sink import Router, names


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "kvbm.sock"


def engine(socket: Path) -> TestEngine:
    scheduler = msgspec.structs.replace(attach("me"), options=PoolOptions(host_bytes=64 * SLOT_BYTES))
    return TestEngine(socket, scheduler, msgspec.structs.replace(scheduler, rank=0))


async def test_routers_know_what_the_service_keeps(socket: Path) -> None:
    router = Router()
    follower = KvbmFollower(socket, "me", retry_s_max=0.05)
    sink = follower.tell(router, ranks=2)
    follower.start()
    async with AsyncExitStack() as stack, service(socket):
        filling = engine(socket)
        stack.callback(filling.close)
        await filling.store(range(1, 9))
        await eventually(lambda: router.held(Tier.HOST, 1) == set(range(1, 9)))
        assert router.held(Tier.HOST, 0) == set(range(1, 9))
        await eventually(lambda: bool(follower.figures()) and follower.figures()[0].tiers[0].blocks == 8)

        sink.publish(KvEventBatch(0, [BlockStored(names(1)), AllBlocksCleared()]))
        assert router.held(Tier.DEVICE, 0) == set()
        assert router.held(Tier.HOST, 0) == set(range(1, 9))
    await eventually(lambda: router.held(Tier.HOST, 1) == set())
    assert router.held(Tier.HOST, 0) == set()
    assert follower.figures() == []

    async with AsyncExitStack() as stack, service(socket):  # its successor, with nothing of it
        filling = engine(socket)
        stack.callback(filling.close)
        await filling.store([30])
        await eventually(lambda: router.held(Tier.HOST, 0) == {30})
    await follower.close()
