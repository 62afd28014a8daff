"""Models that differ in anything have different namespaces; the same one has the same wherever it lies."""

import hashlib
import shutil
from pathlib import Path

import pytest

from dynamo.kvbm.namespace import NAMESPACE_BYTES, model_fingerprint, namespace


def model(directory: Path, weights: bytes = b"weights" * 1000) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"layers": 2}')
    (directory / "model-1.safetensors").write_bytes(weights)
    (directory / "model-2.safetensors").write_bytes(b"more")
    (directory / "README.md").write_text("about it")
    return directory


def test_namespace_names_every_fact() -> None:
    facts: dict[str, str | int] = {"model": "a", "dtype": "bfloat16", "ranks": 2}
    found = namespace(facts, "for people")
    assert len(found.digest) == NAMESPACE_BYTES
    assert found.digest == namespace(dict(reversed(facts.items())), "for others").digest
    others = [namespace({**facts, name: "else"}, "for people").digest for name in facts]
    assert len({found.digest, *others}) == 4
    assert namespace({"ab": "c"}, "").digest != namespace({"a": "bc"}, "").digest


def test_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = model(tmp_path / "first")
    copy = shutil.copytree(first, tmp_path / "copy")
    (copy / "README.md").write_text("something else")
    assert model_fingerprint(copy) == model_fingerprint(first)


@pytest.mark.parametrize("file", ["config.json", "model-1.safetensors", "model-2.safetensors"])
def test_fingerprint_changes_with_each_file(tmp_path: Path, file: str) -> None:
    directory = model(tmp_path / "model")
    before = model_fingerprint(directory)
    content = bytearray((directory / file).read_bytes())
    content[-1] ^= 1
    (directory / file).write_bytes(content)
    changed = model_fingerprint(directory)
    (directory / file).unlink()
    assert len({before, changed, model_fingerprint(directory)}) == 3


def test_blobs_of_a_hub_are_not_read(tmp_path: Path) -> None:
    """Their names say what is in them."""
    directory = tmp_path / "snapshot"
    directory.mkdir()
    digest = hashlib.sha256(b"weights").hexdigest()
    (tmp_path / digest).write_bytes(b"weights")
    (tmp_path / digest).chmod(0)
    (directory / "model.safetensors").symlink_to(tmp_path / digest)
    before = model_fingerprint(directory)
    (tmp_path / digest).unlink()
    other = hashlib.sha256(b"others").hexdigest()
    (tmp_path / other).write_bytes(b"")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to(tmp_path / other)
    assert model_fingerprint(directory) != before


def test_fingerprint_of_one_file(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    assert model_fingerprint(file) == model_fingerprint(file)
