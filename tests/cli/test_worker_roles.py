"""Asking the workers of one process for another role."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.cli.worker_roles import EndpointWorkerRoles
from dynamo.errors import DynamoError, InvalidRequestError, UnavailableError
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import ROLE_COMPONENT, ROLE_ENDPOINT, RoleRequest, WorkerRole
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.testing import within

PREFILL, DECODE = WorkerType.Prefill, WorkerType.Decode


class Worker:
    """Says what it is told to say."""

    def __init__(self, pid: int, error: DynamoError | None = None, *, mute: bool = False) -> None:
        self.role = DECODE
        self._mute = mute
        self._pid = pid
        self._error = error

    async def answer(self, request: RoleRequest) -> AsyncIterator[WorkerRole]:
        if request.role is not None:
            if self._error is not None:
                raise self._error
            self.role = request.role
        if not self._mute:
            yield WorkerRole(role=self.role, model="m", pid=self._pid)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[DistributedRuntime]:
    config = RuntimeConfig(discovery_backend="mem", request_plane="inproc", file_kv=str(tmp_path))
    runtime = DistributedRuntime(config=config)
    yield runtime
    await within(runtime.close())


async def change(runtime: DistributedRuntime, *workers: Worker) -> None:
    """Has those of this process change to prefill."""
    for worker in workers:
        endpoint = runtime.sibling().endpoint(f"ns.{ROLE_COMPONENT}.{ROLE_ENDPOINT}")
        await endpoint.start(worker.answer, request_type=RoleRequest)
    roles = EndpointWorkerRoles(runtime, "ns")
    await within(roles.change(os.getpid(), PREFILL))


async def test_those_of_a_process_change(runtime: DistributedRuntime) -> None:
    own, another = [Worker(os.getpid()), Worker(os.getpid())], Worker(os.getpid() + 1)
    await change(runtime, *own, another)
    assert [worker.role for worker in own] == [PREFILL, PREFILL]
    assert another.role is DECODE


async def test_a_process_that_nobody_knows(runtime: DistributedRuntime) -> None:
    with pytest.raises(UnavailableError, match="does not say"):
        await change(runtime, Worker(os.getpid() + 1))


async def test_one_that_says_nothing_is_another_workers_affair(runtime: DistributedRuntime) -> None:
    own = Worker(os.getpid())
    await change(runtime, Worker(os.getpid() + 1, mute=True), own)
    assert own.role is PREFILL


async def test_all_of_them_refuse(runtime: DistributedRuntime) -> None:
    refusal = InvalidRequestError("no")
    with pytest.raises(InvalidRequestError, match="no"):
        await change(runtime, Worker(os.getpid(), refusal), Worker(os.getpid(), refusal))


async def test_one_of_them_refuses(runtime: DistributedRuntime) -> None:
    """Then the process is neither the one nor the other."""
    with pytest.raises(UnavailableError, match=r"1 of 2 .*: no"):
        await change(runtime, Worker(os.getpid()), Worker(os.getpid(), InvalidRequestError("no")))
