"""The programs under examples/, run as a reader would run them."""

import asyncio
import json
import re
import signal
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, StopConditions
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.discovery.entry_file import entry_names
from dynamo.testing import Program, program, within
from dynamo.testing.tiny_model import byte_level_files
from dynamo.tokens import token_array

EXAMPLES = Path(__file__).parents[2] / "examples"

# The README's hello world, as it stands.
ISSUE_SERVER = """
import asyncio
from dynamo.runtime import DistributedRuntime, dynamo_worker

async def handler(request{parameter}):
    for word in request.split():
        yield word

@dynamo_worker()
async def worker(runtime: DistributedRuntime):
    endpoint = {endpoint}
    await endpoint.serve_endpoint(handler)

asyncio.run(worker())
"""
ISSUE_CLIENT = """
import asyncio
from dynamo.runtime import DistributedRuntime, dynamo_worker

@dynamo_worker()
async def main(runtime: DistributedRuntime):
    client = await {endpoint}.client()
    await client.wait_for_instances()
    async for item in await client.generate("hello world"):
        print(item.data())
    async for item in await client.random("plain values", annotated=False):
        print(item)
    (instance_id,) = client.instance_ids()
    async for item in await client.direct("as you wish", instance_id):
        print(item.data())

asyncio.run(main())
"""
PATH = 'runtime.endpoint("dynamo.backend.generate")'
CHAIN = 'runtime.namespace("dynamo").component("backend").endpoint("generate")'


class Terminals:
    """Runs programs that find each other."""

    def __init__(self, stack: AsyncExitStack, directory: Path) -> None:
        self._stack = stack
        self.directory = directory

    async def run(self, *arguments: str) -> Program:
        return await self._stack.enter_async_context(program(arguments, {"DYN_FILE_KV": str(self.directory)}))

    async def example(self, name: str, *arguments: str) -> Program:
        return await self.run(str(EXAMPLES / name), *arguments)


@pytest.fixture
async def terminals(tmp_path: Path) -> AsyncIterator[Terminals]:
    async with AsyncExitStack() as stack:
        yield Terminals(stack, tmp_path / "discovery")


async def end(*servers: Program) -> None:
    for server in servers:
        server.signal(signal.SIGINT)
        assert await server.exit_code() == 0
        assert "Traceback" not in server.output


@pytest.mark.parametrize("parameter", ["", ", context"])
@pytest.mark.parametrize(("serving", "calling"), [(PATH, CHAIN), (CHAIN, PATH)])
async def test_hello_world_of_the_readme(terminals: Terminals, parameter: str, serving: str, calling: str) -> None:
    client = await terminals.run("-c", ISSUE_CLIENT.format(endpoint=calling))
    server = await terminals.run("-c", ISSUE_SERVER.format(endpoint=serving, parameter=parameter))
    assert await client.exit_code() == 0
    assert client.output.split() == ["hello", "world", "plain", "values", "as", "you", "wish"]
    await end(server)
    assert entry_names(terminals.directory) == set()


async def test_hello(terminals: Terminals) -> None:
    server = await terminals.example("hello_server.py")
    client = await terminals.example("hello_client.py")
    assert await client.exit_code() == 0
    assert client.output == "hello\nworld"
    await end(server)


async def test_pipeline(terminals: Terminals) -> None:
    client = await terminals.example("pipeline.py", "client", "so long")
    splitter = await terminals.example("pipeline.py", "splitter")
    shouters = [await terminals.example("pipeline.py", "shouter") for _ in range(2)]
    assert await client.exit_code() == 0
    assert client.output == "SO\nLONG"
    await end(splitter, *shouters)


async def test_errors(terminals: Terminals) -> None:
    server = await terminals.example("errors.py", "server")
    client = await terminals.example("errors.py", "client")
    assert await client.exit_code() == 0
    assert client.output.splitlines() == [
        "nobody is there",
        "answer: 0.5",
        "my mistake, in a: there is nothing to divide",
        "the handler's mistake, ZeroDivisionError: division by zero",
        "too late",
    ]
    server.signal(signal.SIGINT)
    assert await server.exit_code() == 0


@pytest.mark.parametrize("name", ["pipeline.py", "errors.py"])
async def test_wrong_arguments_show_the_usage(terminals: Terminals, name: str) -> None:
    confused = await terminals.example(name)
    assert await confused.exit_code() == 1
    assert f"python examples/{name}" in confused.output


@pytest.fixture
def model_directory(tmp_path: Path) -> str:
    directory = tmp_path / "tiny-model"
    directory.mkdir()
    for name, content in byte_level_files().items():
        (directory / name).write_bytes(content)
    return str(directory)


async def test_own_engine(terminals: Terminals, model_directory: str) -> None:
    worker = await terminals.example("own_engine.py", model_directory)
    runtime = DistributedRuntime(config=RuntimeConfig(file_kv=str(terminals.directory)))
    endpoint = runtime.endpoint("dynamo.backwards.generate")
    client = await endpoint.client(response_type=LLMEngineOutput)
    await within(client.wait_for_instances())
    for max_tokens, expected in ((None, [3, 2, 1]), (2, [3, 2])):
        request = PreprocessedRequest(
            model="backwards",
            token_ids=token_array([1, 2, 3]),
            stop_conditions=StopConditions(max_tokens=max_tokens),
        )
        outputs = [output async for output in await client.generate(request, annotated=False)]
        assert [token_id for output in outputs for token_id in output.token_ids] == expected
        assert [output.finish_reason for output in outputs][-2:] == [None, "stop"]
    await within(runtime.close())
    await end(worker)


async def test_own_engine_behind_the_frontend(terminals: Terminals, model_directory: str) -> None:
    worker = await terminals.example("own_engine.py", model_directory)
    frontend = await terminals.run("-m", "dynamo.frontend", "--http-port", "0")
    found = re.search(r"http://[\d.:]+", await frontend.line("http://"))
    assert found
    url = found[0]

    def post() -> Any:
        body = {"model": "backwards", "messages": [{"role": "user", "content": "Paris"}], "max_tokens": 8}
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    await frontend.line("backwards")
    answer = await asyncio.to_thread(post)
    assert answer["model"] == "backwards"
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["message"]["content"]
    await end(worker, frontend)


async def test_custom_router(terminals: Terminals, model_directory: str) -> None:
    router = await terminals.example("custom_router.py")  # it waits for the workers
    mocker = ["-m", "dynamo.mocker", "--model-path", model_directory, "--max-model-len", "4096", "--block-size", "16"]
    workers = await terminals.run(*mocker, "--num-workers", "3", "--speedup-ratio", "100")
    assert await router.exit_code(30) == 0
    turns = re.findall(r"conversation (\d), turn (\d): worker (\w+) had (\d+) of (\d+) tokens", router.output)
    assert len(turns) == 12
    served = {name: {worker for n, _, worker, _, _ in turns if n == name} for name in "1234"}
    assert all(len(workers) == 1 for workers in served.values())  # each stays where its history is
    assert all((int(cached) > 0) == (turn != "1") for _, turn, _, cached, _ in turns)
    await end(workers)


async def test_transfer(terminals: Terminals) -> None:
    example = await terminals.example("transfer.py")
    assert await within(example.exit_code()) == 0
    assert re.fullmatch(r"(cma|shm|tcp) 1024 b'(\\x00){4}'", example.output)


def test_docs_show_the_example() -> None:
    example = (EXAMPLES / "transfer.py").read_text().partition('"""\n\n')[2]
    assert f"```python\n{example}```" in (EXAMPLES.parent / "docs" / "transfer.md").read_text()
