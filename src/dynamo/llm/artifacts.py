"""Model files on their way to a frontend: workers serve them by hash, frontends fetch and cache them."""

import asyncio
import contextlib
import hashlib
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import msgspec

from dynamo.errors import NotFoundError, ProtocolError
from dynamo.protocols.model_card import Artifact, ModelCard
from dynamo.runtime.client import Client
from dynamo.runtime.context import Context

logger = logging.getLogger(__name__)

_CHUNK_BYTES = 128 << 10
_MAX_ARTIFACT_BYTES = 256 << 20


class ArtifactRequest(msgspec.Struct):
    """Asks a worker for a file of one of its models."""

    sha256: str


class ArtifactServer:
    """The files of one model, as its worker offers them."""

    def __init__(self, artifacts: Mapping[Artifact, Path]) -> None:
        self._paths = {artifact.sha256: path for artifact, path in artifacts.items()}

    async def serve(self, request: ArtifactRequest, context: Context) -> AsyncIterator[bytes]:
        """The endpoint's handler: the file in chunks; NotFoundError for a hash that is not offered."""
        path = self._paths.get(request.sha256)
        if path is None:
            raise NotFoundError(f"this worker has no file with hash {request.sha256}")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


class ArtifactCache:
    """Files by hash under a directory, which may be shared by processes; without one, fetched anew each time."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory

    async def load(self, card: ModelCard, client: Client, instance_id: int) -> dict[str, bytes]:
        """The card's files by name, from the cache or else from that instance of the worker's artifacts endpoint.

        Raises ProtocolError when what arrives is not what the card says, or the DynamoError of the call.
        """
        return {artifact.name: await self._load_one(artifact, client, instance_id) for artifact in card.artifacts}

    async def _load_one(self, artifact: Artifact, client: Client, instance_id: int) -> bytes:
        content = await asyncio.to_thread(self._read, artifact)  # reading and hashing megabytes is felt by all streams
        if content is None:
            content = await _fetch(artifact, client, instance_id)
            await asyncio.to_thread(self._write, artifact, content)
        return content

    def _read(self, artifact: Artifact) -> bytes | None:
        if self._directory is None:
            return None
        with contextlib.suppress(OSError):
            content = (self._directory / artifact.sha256).read_bytes()
            if _matches(artifact, content):
                return content
        return None

    def _write(self, artifact: Artifact, content: bytes) -> None:
        if self._directory is None:
            return
        unfinished = self._directory / f".{artifact.sha256}.{secrets.token_hex(4)}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            os.replace(unfinished, self._directory / artifact.sha256)
        except OSError as error:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            logger.warning("cannot cache %s in %s: %s", artifact.name, self._directory, error)


async def _fetch(artifact: Artifact, client: Client, instance_id: int) -> bytes:
    if artifact.size_bytes > _MAX_ARTIFACT_BYTES:
        raise ProtocolError(f"{artifact.name} is too large: {artifact.size_bytes} bytes")
    content = bytearray()
    stream = await client.direct(ArtifactRequest(artifact.sha256), instance_id, annotated=False)
    async with contextlib.aclosing(stream):
        async for chunk in stream:
            content += chunk
            if len(content) > artifact.size_bytes:
                break
    if not await asyncio.to_thread(_matches, artifact, content):
        raise ProtocolError(f"the worker sent a {artifact.name} that is not the one on its model card")
    return bytes(content)


def _matches(artifact: Artifact, content: bytes | bytearray) -> bool:
    return len(content) == artifact.size_bytes and hashlib.sha256(content).hexdigest() == artifact.sha256
