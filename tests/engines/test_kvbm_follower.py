"""Following a service that does as the test says, over a real socket."""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo.engines.kvbm_follower import KvbmFollower
from dynamo.kvbm.frames import frame, request_reader
from dynamo.protocols.kv_events import Tier
from dynamo.protocols.kvbm import (
    KVBM_VERSION,
    Figures,
    Follow,
    Granted,
    PoolFigures,
    Refused,
    Reply,
    StorageTier,
    TierChanges,
)
from dynamo.testing import eventually, within

from .test_kvbm_sink import Router, names

HOST = TierChanges(tier=StorageTier.HOST, stored=names(1, 2), reset=True)
POOL = PoolFigures(namespace=bytes(16), description="a model", slot_bytes=4096, block_tokens=16, engines=1, tiers=[])


@dataclass
class Service:
    """Accepts, reads the first message, and says what the test has it say."""

    path: Path
    arrivals: asyncio.Queue[tuple[Follow, asyncio.StreamWriter]] = field(default_factory=asyncio.Queue)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.path.unlink(missing_ok=True)

    async def follower(self) -> asyncio.StreamWriter:
        """The next one who connects; it has said whom it follows."""
        request, writer = await within(self.arrivals.get())
        assert request == Follow(version=KVBM_VERSION, owner="me")
        return writer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        frames = request_reader()
        while data := await reader.read(1 << 16):
            for request in frames.feed(data):
                assert isinstance(request, Follow)
                self.arrivals.put_nowait((request, writer))
        writer.close()


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    service = Service(tmp_path / "kvbm.sock")
    await service.start()
    yield service
    await service.stop()


@dataclass
class Following:
    router: Router
    follower: KvbmFollower


@pytest.fixture
async def following(tmp_path: Path) -> AsyncIterator[Following]:
    router = Router()
    follower = KvbmFollower(tmp_path / "kvbm.sock", "me", retry_s_max=0.01)
    follower.tell(router)
    follower.start()
    yield Following(router, follower)
    await follower.close()
    await follower.close()


def say(writer: asyncio.StreamWriter, *replies: Reply) -> None:
    for reply in replies:
        writer.write(frame(reply))


async def test_routers_hear_what_the_service_says(service: Service, following: Following) -> None:
    writer = await service.follower()
    say(writer, HOST, TierChanges(tier=StorageTier.DISK, stored=names(7), reset=True), Figures(pools=[POOL]))
    await eventually(lambda: following.follower.figures() == [POOL])
    assert following.router.held(Tier.HOST) == {1, 2}
    assert following.router.held(Tier.DISK) == {7}
    say(writer, TierChanges(tier=StorageTier.HOST, removed=names(1)))
    await eventually(lambda: following.router.held(Tier.HOST) == {2})


@pytest.mark.parametrize("reply", [None, Refused("unavailable", "not now"), Granted(slots=[1])])
async def test_a_service_that_is_gone_is_told_and_found_again(
    service: Service, following: Following, reply: Reply | None, caplog: pytest.LogCaptureFixture
) -> None:
    """It may also refuse, or talk nonsense."""
    writer = await service.follower()
    say(writer, HOST, Figures(pools=[POOL]))
    await eventually(lambda: following.router.held(Tier.HOST) == {1, 2})
    with caplog.at_level(logging.WARNING):
        if reply is None:
            writer.close()
        else:
            say(writer, reply)
        await eventually(lambda: following.router.held(Tier.HOST) == set())
        assert following.follower.figures() == []
        writer = await service.follower()
        say(writer, TierChanges(tier=StorageTier.HOST, stored=names(3), reset=True))
        await eventually(lambda: following.router.held(Tier.HOST) == {3})
    assert len([record for record in caplog.records if "block manager" in record.message]) == 1


async def test_bytes_that_are_no_message(service: Service, following: Following) -> None:
    writer = await service.follower()
    say(writer, HOST)
    await eventually(lambda: following.router.held(Tier.HOST) == {1, 2})
    writer.write(b"\xff" * 64)
    await service.follower()
    assert following.router.held(Tier.HOST) == set()


async def test_names_that_are_none(service: Service, following: Following) -> None:
    say(await service.follower(), TierChanges(tier=StorageTier.HOST, stored=b"123"))
    await service.follower()
    assert following.router.batches == []


async def test_a_service_that_hangs_is_gone(service: Service) -> None:
    router = Router()
    follower = KvbmFollower(service.path, "me", silence_s_max=0.05, retry_s_max=0.01)
    follower.tell(router)
    follower.start()
    say(await service.follower(), HOST)
    await service.follower()  # it was left after a silence
    assert router.batches
    assert router.held(Tier.HOST) == set()
    await follower.close()


async def test_a_service_that_comes_later(
    tmp_path: Path, following: Following, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, "dynamo.engines.kvbm_follower"):
        await eventually(lambda: bool(caplog.records))
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    late = Service(tmp_path / "kvbm.sock")
    await late.start()
    say(await late.follower(), HOST)
    await eventually(lambda: following.router.held(Tier.HOST) == {1, 2})
    await late.stop()


async def test_closed_before_it_was_started(tmp_path: Path) -> None:
    await KvbmFollower(tmp_path / "none.sock", "me").close()
