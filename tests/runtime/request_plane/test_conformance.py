"""The suite that every request plane passes, run on each of ours and on both event loops that people use."""

import asyncio
import functools
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

from dynamo.runtime.credentials import Credentials
from dynamo.runtime.request_plane.base import Address, RequestPlane
from dynamo.runtime.request_plane.caller import CallerConnection
from dynamo.runtime.request_plane.inproc import InprocPlane
from dynamo.runtime.request_plane.tcp import TcpPlane
from dynamo.testing import run_strictly
from dynamo.testing.request_plane import CASES, Case
from tests.runtime.certificates import Authority


class OverTcp(TcpPlane):
    """As if the instance were on another host."""

    async def connect(self, address: Address) -> CallerConnection:
        return await super().connect(msgspec.structs.replace(address, unix=None))


class OverUnix(TcpPlane):
    async def connect(self, address: Address) -> CallerConnection:
        return await super().connect(msgspec.structs.replace(address, tcp_host=None, tcp_port=None))


@functools.cache
def _certified() -> Credentials:
    with tempfile.TemporaryDirectory() as directory:
        return Authority(Path(directory) / "ours").credentials()


def over_tls() -> TcpPlane:
    return TcpPlane(credentials=_certified())


SECRET = Credentials(secret=b"known to both ends alone")


@pytest.mark.parametrize(
    ("plane", "loop_factory"),
    [
        (InprocPlane, asyncio.new_event_loop),
        (OverTcp, asyncio.new_event_loop),
        (OverTcp, uvloop.new_event_loop),
        (OverUnix, asyncio.new_event_loop),
        (OverUnix, uvloop.new_event_loop),
        (functools.partial(OverTcp, credentials=SECRET), uvloop.new_event_loop),
        (over_tls, uvloop.new_event_loop),
    ],
    ids=["inproc", "tcp-asyncio", "tcp-uvloop", "unix-asyncio", "unix-uvloop", "secret-uvloop", "tls-uvloop"],
)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_conformance(
    case: Case, plane: Callable[[], RequestPlane], loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def run() -> None:
        await case(plane())

    run_strictly(run(), loop_factory)
