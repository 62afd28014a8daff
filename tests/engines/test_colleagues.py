from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dynamo.engines.colleagues import Colleagues
from dynamo.llm.register import register_model, unregister_model
from dynamo.protocols.model_card import ModelInput, ModelType, WorkerType
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.testing import within


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[DistributedRuntime]:
    config = RuntimeConfig(discovery_backend="mem", request_plane="inproc", file_kv=str(tmp_path))
    runtime = DistributedRuntime(config=config)
    yield runtime
    await within(runtime.close())


@pytest.mark.parametrize(
    ("endpoint", "name", "role", "counts"),
    [
        ("ns.backend.generate", "m", WorkerType.Decode, True),
        ("ns.backend.generate", "m", WorkerType.Aggregated, True),
        ("ns.prefill.generate", "m", WorkerType.Prefill, False),
        ("ns.backend.generate", "another", WorkerType.Decode, False),
        ("elsewhere.backend.generate", "m", WorkerType.Decode, False),
    ],
)
async def test_who_decodes(
    runtime: DistributedRuntime, endpoint: str, name: str, role: WorkerType, counts: bool
) -> None:
    colleagues = Colleagues(runtime, "ns", "m")
    own = runtime.endpoint("ns.backend.generate")
    await register_model(ModelInput.Text, ModelType.Chat, own, "m", worker_type=WorkerType.Decode)
    assert not colleagues.decode()
    other = runtime.sibling().endpoint(endpoint)
    await register_model(ModelInput.Text, ModelType.Chat, other, name, worker_type=role)
    assert colleagues.decode() is counts
    await unregister_model(other, name)
    assert not colleagues.decode()
    await colleagues.close()
