"""Models and workers that come and go, in any order, while frontends run."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from dynamo.testing import within
from dynamo.testing.deployment import Deployment
from dynamo.testing.tiny_model import byte_fallback_files

from .raw_http import Response, get, post
from .served import until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture(scope="module")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another tokenizer."""
    directory = tmp_path_factory.mktemp("other")
    for name, content in byte_fallback_files().items():
        (directory / name).write_bytes(content)
    return directory


async def ask(url: str, model: str, **fields: object) -> Response:
    return await post(url, "/v1/completions", {"model": model, "prompt": "Hello", "max_tokens": 3} | fields)


async def models(url: str) -> list[str]:
    return [model["id"] for model in (await get(url, "/v1/models")).json()["data"]]


async def test_models_come_and_go(own: Deployment, tiny_model: Path) -> None:
    assert not own.discovery.exists()
    _, url = await own.frontend()  # before any worker, and before the discovery directory
    health = await get(url, "/health")
    assert (health.status, health.json()["status"], health.json()["models"]) == (503, "unhealthy", [])
    early = await ask(url, "a")
    assert early.status == 503
    assert "retry-after" in early.headers

    first, echo, _ = await asyncio.gather(
        own.mocker(tiny_model, "a"), own.echo(tiny_model, "org/b", "--delay-ms", "0"), own.mocker(tiny_model, "a")
    )
    await until_served(url, 3)
    assert await models(url) == ["a", "org/b"]
    assert (await get(url, "/health")).status == 200
    assert (await ask(url, "a")).status == 200
    assert (await ask(url, "org/b")).json()["choices"][0]["text"].startswith("Hel")
    assert (await ask(url, "c")).status == 404

    echo.signal(signal.SIGTERM)
    first.signal(signal.SIGKILL)
    await until_served(url, 1)
    assert await models(url) == ["a"]
    assert (await ask(url, "a")).status == 200
    assert (await ask(url, "org/b")).status == 503  # known, but nobody is there

    (_, late), _ = await asyncio.gather(own.frontend(), own.echo(tiny_model, "org/b"))
    for frontend in (url, late):  # the second has never seen it without a worker
        await until_served(frontend, 2)
        assert await models(frontend) == ["a", "org/b"]
        assert (await ask(frontend, "org/b")).status == 200


async def test_worker_with_other_files_under_the_same_name(
    own: Deployment, tiny_model: Path, other_model: Path
) -> None:
    (frontend, url), first = await asyncio.gather(own.frontend(), own.mocker(tiny_model, "m"))
    await until_served(url, 1)
    before = (await ask(url, "m", seed=1)).json()["choices"][0]["text"]

    await own.mocker(other_model, "m")
    refusal = await frontend.line("gets no requests")
    assert "'m'" in refusal
    assert "tokenizer.json" in refusal
    assert len(await until_served(url, 1)) == 1
    answers = [await ask(url, "m", seed=1) for _ in range(4)]
    assert {answer.json()["choices"][0]["text"] for answer in answers} == {before}

    later, late = await own.frontend()  # a new frontend chooses the same one
    await later.line("gets no requests")
    await until_served(late, 1)
    assert (await ask(late, "m", seed=1)).json()["choices"][0]["text"] == before

    first.signal(signal.SIGTERM)
    await first.exit_code()
    for server in (url, late):

        async def other_answers(server: str = server) -> None:
            while (response := await ask(server, "m", seed=1)).status != 200 or before in response.body.decode():
                assert response.status in (200, 503)

        await within(other_answers())


async def test_worker_with_another_context_length_under_the_same_name(own: Deployment, tiny_model: Path) -> None:
    (frontend, url), _ = await asyncio.gather(own.frontend(), own.mocker(tiny_model, "m"))
    await until_served(url, 1)
    await own.mocker(tiny_model, "m", "--max-model-len", "512")
    assert "context length 512, not 32768" in await frontend.line("gets no requests")


async def test_models_at_endpoints_of_their_own(own: Deployment, tiny_model: Path) -> None:
    (_, url), *_ = await asyncio.gather(
        own.frontend(),
        own.mocker(tiny_model, "a", "--endpoint", "dyn://prod.fast.generate"),
        own.echo(tiny_model, "b", "--endpoint", "prod.fast.generate"),
        own.echo(tiny_model, "c", "--namespace", "test"),
    )
    await until_served(url, 3)
    assert await models(url) == ["a", "b", "c"]
    for _ in range(4):  # the endpoint that a and b share must not mix them up
        assert (await ask(url, "b", max_tokens=100)).json()["choices"][0]["text"] == "Hello"
        assert (await ask(url, "a", max_tokens=1)).status == 200

    _, test_only = await own.frontend("--namespace", "test")
    await until_served(test_only, 1)
    assert await models(test_only) == ["c"]
    assert (await ask(test_only, "a")).status == 404


async def test_router_modes(own: Deployment, tiny_model: Path) -> None:
    modes = ("round-robin", "random", "least-loaded", "direct")
    worker = asyncio.create_task(own.mocker(tiny_model, "m", "--num-workers", "2"))
    frontends = await asyncio.gather(*(own.frontend("--router-mode", mode) for mode in modes))
    await worker
    urls = {mode: url for mode, (_, url) in zip(modes, frontends, strict=True)}
    workers = await until_served(urls["direct"], 2)
    wanted = {"extra_fields": ["worker_id"]}
    for mode in modes[:3]:
        await until_served(urls[mode], 2)
        asking = (ask(urls[mode], "m", nvext=wanted, max_tokens=50, ignore_eos=True) for _ in range(20))
        served = Counter(map(worker_of, await asyncio.gather(*asking)))
        assert set(served) == set(workers)
        if mode != "random":
            assert set(served.values()) == {10}, mode

    refused = await ask(urls["direct"], "m", nvext=wanted)
    assert (refused.status, refused.error()["param"]) == (400, "nvext.backend_instance_id")
    for target in workers:
        assert worker_of(await ask(urls["direct"], "m", nvext=wanted | {"backend_instance_id": target})) == target


def worker_of(answer: Response) -> int:
    worker: int = answer.json()["nvext"]["worker_id"]["decode_worker_id"]
    return worker
