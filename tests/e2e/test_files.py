"""How a frontend comes by the tokenizer of a model whose directory it cannot see."""

import asyncio
import shutil
from pathlib import Path

import pytest

from dynamo.testing.deployment import Deployment

from .raw_http import post
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

UNSET = {"DYN_CACHE_DIR": "", "XDG_CACHE_HOME": "", "HOME": "/proc/nowhere"}


def contents(directory: Path) -> set[bytes]:
    return {path.read_bytes() for path in directory.iterdir()}


async def assert_answers(url: str) -> None:
    await until_served(url, 1)
    answer = await post(url, "/v1/completions", {"model": "m", "prompt": "Hello world"})
    assert answer.json()["choices"][0]["text"] == "Hello world"


async def test_cache_is_filled_wherever_it_is(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    await own.echo(tiny_model, "m", "--delay-ms", "0")
    cases = {
        tmp_path / "1": {"DYN_CACHE_DIR": str(tmp_path / "1")},
        tmp_path / "2/dynamo": UNSET | {"XDG_CACHE_HOME": str(tmp_path / "2")},
        tmp_path / "3/.cache/dynamo": UNSET | {"HOME": str(tmp_path / "3")},
    }
    started = await asyncio.gather(*(own.frontend(environ=environ) for environ in cases.values()))
    for cache, (_, url) in zip(cases, started, strict=True):
        await assert_answers(url)
        assert contents(cache / "artifacts") == contents(tiny_model)


async def test_cache_that_cannot_be_written(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    await own.echo(tiny_model, "m", "--delay-ms", "0")
    unusable = ({"DYN_CACHE_DIR": str(tmp_path / "file")}, {"DYN_CACHE_DIR": "/proc/nowhere"}, UNSET)
    for frontend, url in await asyncio.gather(*(own.frontend(environ=environ) for environ in unusable)):
        await assert_answers(url)
        assert "cannot cache tokenizer.json" in frontend.output


async def test_damaged_cache(own: Deployment, tiny_model: Path) -> None:
    cache = own.directory / "cache" / "artifacts"
    await own.echo(tiny_model, "m", "--delay-ms", "0")
    _, url = await own.frontend()
    await assert_answers(url)
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    _, later = await own.frontend()
    await assert_answers(later)
    assert contents(cache) == contents(tiny_model)


async def test_worker_whose_files_have_changed(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    await own.echo(model, "m", "--delay-ms", "0")
    original = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").write_bytes(original + b"\n")
    frontend, url = await own.frontend()
    await frontend.line("not the one on its model card")
    unavailable = await post(url, "/v1/completions", {"model": "m", "prompt": "Hello world"})
    assert unavailable.status == 503
    (model / "tokenizer.json").write_bytes(original)  # it goes on trying
    await assert_answers(url)


async def test_files_that_no_frontend_can_use(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    (model / "chat_template.jinja").write_text("{% for %}")
    (frontend, url), _ = await asyncio.gather(own.frontend(), own.echo(model, "m"))
    complaint = await frontend.line("cannot be served yet")
    assert "chat_template" in complaint or "template" in complaint
    assert (await post(url, "/v1/completions", {"model": "m", "prompt": "Hello"})).status == 503
    assert "Traceback" not in frontend.output
