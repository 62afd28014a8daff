"""The suite that every backend passes, run on each of ours."""

from pathlib import Path

import pytest

from dynamo.runtime.discovery.etcd import EtcdDiscovery
from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery, MemoryStore
from dynamo.testing import run_strictly
from dynamo.testing.discovery import CASES, Case, Participant
from dynamo.testing.etcd_server import EtcdServer


@pytest.fixture(params=["memory", "file", "etcd"])
def participant(request: pytest.FixtureRequest, tmp_path: Path, root: str) -> Participant:
    if request.param == "memory":
        store = MemoryStore()
        return lambda: MemoryDiscovery(store)
    if request.param == "file":
        return lambda: FileDiscovery(tmp_path / "discovery", poll_interval_s=0.002)
    server: EtcdServer = request.getfixturevalue("etcd")
    return lambda: EtcdDiscovery(EtcdConfig(endpoints=server.url), root=root)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_conformance(case: Case, participant: Participant) -> None:
    async def run() -> None:
        await case(participant)

    run_strictly(run())
