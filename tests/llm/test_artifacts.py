"""Model files on their way from a worker to a frontend."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dynamo.errors import DynamoError, HandlerError, NotFoundError, ProtocolError
from dynamo.llm.artifacts import ArtifactCache, ArtifactRequest, ArtifactServer
from dynamo.llm.model_card import build_card, describe
from dynamo.protocols.model_card import Artifact, ModelCard, ModelInput, ModelType
from dynamo.runtime import Client, Context, DistributedRuntime, RuntimeConfig
from dynamo.testing import within

SMALL, LARGE = b"{}", bytes(range(256)) * 4096  # 1 MiB


def artifact(name: str, content: bytes, size_bytes: int | None = None) -> Artifact:
    size_bytes = len(content) if size_bytes is None else size_bytes
    return Artifact(name=name, sha256=hashlib.sha256(content).hexdigest(), size_bytes=size_bytes)


def card(*artifacts: Artifact) -> ModelCard:
    return build_card(name="m", model_type=ModelType.Chat, model_input=ModelInput.Tokens, artifacts=artifacts)


@dataclass(slots=True)
class Worker:
    """Serves two files; counts who asks."""

    directory: Path
    client: Client
    instance_id: int
    asked: int = 0

    @property
    def card(self) -> ModelCard:
        return card(*(describe(path, path.name) for path in sorted(self.directory.iterdir())))


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_bytes(SMALL)
    (directory / "tokenizer.json").write_bytes(LARGE)
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    endpoint = runtime.endpoint("test.backend.files")
    server = ArtifactServer({describe(path, path.name): path for path in directory.iterdir()})

    async def serve(request: ArtifactRequest, context: Context) -> AsyncIterator[bytes]:
        made.asked += 1
        async for chunk in server.serve(request, context):
            yield chunk

    await endpoint.start(serve, request_type=ArtifactRequest)
    client = await endpoint.client()
    (instance_id,) = await within(client.wait_for_instances())
    made = Worker(directory, client, instance_id)
    yield made
    await runtime.close()


async def load(cache: ArtifactCache, worker: Worker, wanted: ModelCard | None = None) -> dict[str, bytes]:
    return await within(cache.load(wanted or worker.card, worker.client, worker.instance_id))


async def test_fetched_once(worker: Worker, tmp_path: Path) -> None:
    directory = tmp_path / "not" / "yet" / "there"
    files = {"config.json": SMALL, "tokenizer.json": LARGE}
    assert await load(ArtifactCache(directory), worker) == files
    assert worker.asked == 2
    assert await load(ArtifactCache(directory), worker) == files
    assert worker.asked == 2
    assert sorted(path.read_bytes() for path in directory.iterdir()) == sorted([SMALL, LARGE])  # and nothing else


async def test_without_a_cache(worker: Worker) -> None:
    for times in (1, 2):
        assert (await load(ArtifactCache(None), worker))["tokenizer.json"] == LARGE
        assert worker.asked == 2 * times


async def test_damaged_cache_is_mended(worker: Worker, tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    await load(cache, worker)
    for path in (tmp_path / "cache").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert (await load(cache, worker))["tokenizer.json"] == LARGE
    assert worker.asked == 4
    await load(cache, worker)
    assert worker.asked == 4


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
async def test_cache_that_cannot_be_used(
    worker: Worker, tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert (await load(ArtifactCache(tmp_path / place), worker))["tokenizer.json"] == LARGE
    assert "cannot cache tokenizer.json" in caplog.text


async def test_file_that_is_not_offered(worker: Worker) -> None:
    with pytest.raises(NotFoundError):
        await load(ArtifactCache(None), worker, card(artifact("x", b"something else")))


@pytest.mark.parametrize("content", [b"[]", b"", b"{}\n", b"{} " * 1000])
async def test_file_that_has_changed(worker: Worker, tmp_path: Path, content: bytes) -> None:
    wanted = worker.card
    (worker.directory / "config.json").write_bytes(content)
    with pytest.raises(ProtocolError, match=r"config\.json"):
        await load(ArtifactCache(tmp_path / "cache"), worker, wanted)
    assert not (tmp_path / "cache" / wanted.artifacts[0].sha256).exists()


async def test_file_that_is_gone(worker: Worker) -> None:
    wanted = worker.card
    (worker.directory / "config.json").unlink()
    with pytest.raises(HandlerError):
        await load(ArtifactCache(None), worker, wanted)


async def test_absurd_size_is_not_waited_for(worker: Worker) -> None:
    with pytest.raises(ProtocolError, match="too large"):
        await load(ArtifactCache(None), worker, card(artifact("tokenizer.json", LARGE, 1 << 40)))
    assert worker.asked == 0


async def test_worker_that_is_gone(worker: Worker) -> None:
    worker.instance_id += 1
    with pytest.raises(DynamoError):
        await load(ArtifactCache(None), worker)


async def test_card_without_files(worker: Worker) -> None:
    assert await load(ArtifactCache(None), worker, card()) == {}
