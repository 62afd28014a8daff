"""Which blocks can stand for each other: a digest of all that must be equal, but for the tokens.

Two engines with one namespace read each other's blocks as their own. So it has to name everything that a block's bytes
depend on; what is forgotten here gives one model the cache of another.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import xxhash

NAMESPACE_BYTES = 16

_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})
_ALSO = frozenset({"config.json", "adapter_config.json"})
_CHUNK_BYTES = 8 << 20
_THREADS = 4
_SHA256_HEX = 64


@dataclass(frozen=True, slots=True)
class Namespace:
    """Of one pool."""

    digest: bytes  # NAMESPACE_BYTES
    description: str  # for people


def namespace(facts: Mapping[str, str | int], description: str) -> Namespace:
    """The namespace of engines for which all `facts` are equal; `description` is not one of them."""
    digest = hashlib.sha256()
    for name in sorted(facts):
        for text in (name, str(facts[name])):
            encoded = text.encode()
            digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return Namespace(digest.digest()[:NAMESPACE_BYTES], description)


def model_fingerprint(directory: Path) -> str:
    """A digest of a model's or adapter's weights and configuration, which takes as long as reading them once.

    Files of a hub's cache bear their digest as their name, and are not read. Where a file lies and when it was written
    makes no difference.
    """
    files = sorted(_files(directory), key=lambda file: file.name)
    with ThreadPoolExecutor(_THREADS) as threads:
        digests = list(threads.map(_file_digest, files))
    whole = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        whole.update(f"{file.name}\0{digest}\0".encode())
    return whole.hexdigest()[: 2 * NAMESPACE_BYTES]


def _files(directory: Path) -> Iterator[Path]:
    if directory.is_file():
        yield directory
        return
    for file in directory.iterdir():
        if file.is_file() and (file.suffix in _WEIGHTS or file.name in _ALSO):
            yield file


def _file_digest(file: Path) -> str:
    blob = file.resolve().name
    if file.is_symlink() and len(blob) == _SHA256_HEX and set(blob) <= set("0123456789abcdef"):
        return f"sha256 {blob}"
    digest = xxhash.xxh3_128()
    with file.open("rb", buffering=0) as opened:
        os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while count := opened.readinto(buffer):
            digest.update(buffer[:count])
    return f"xxh3 {digest.hexdigest()}"
