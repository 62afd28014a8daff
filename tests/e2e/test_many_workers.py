"""Sixty-four workers at once: how soon they serve, and how soon half of them are not missed."""

import asyncio
import signal
import time
from pathlib import Path

import pytest

from dynamo.testing.deployment import Deployment

from .conversations import CHAT, KV, MOCKER, said
from .raw_http import post
from .served import MOCK, until_served

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.alone]

PROCESSES, EACH = 8, 8
JOINED_S = 10.0
ROUTED_AROUND_S = 1.0
AT_ONCE = 16


async def test_start_up_and_the_death_of_half(own: Deployment, tiny_model: Path) -> None:
    _, url = await own.frontend(*KV)
    began_s = time.monotonic()
    workers = await asyncio.gather(
        *(own.mocker(tiny_model, MOCK, *MOCKER, "--num-workers", str(EACH)) for _ in range(PROCESSES))
    )
    await until_served(url, PROCESSES * EACH)
    assert time.monotonic() - began_s < JOINED_S

    dead = workers[::2]
    for worker in dead:
        worker.signal(signal.SIGKILL)
    killed_s = time.monotonic()
    answers = await asyncio.gather(*(post(url, CHAT, said(f"prompt {i}")) for i in range(AT_ONCE)))
    assert [answer.status for answer in answers] == [200] * AT_ONCE
    await until_served(url, PROCESSES * EACH // 2)
    assert time.monotonic() - killed_s < ROUTED_AROUND_S
