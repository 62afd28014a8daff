"""`dynamo serve` as a user meets it: in a terminal, in a script, with things going wrong."""

import asyncio
import json
import os
import re
import shlex
import signal
import socket
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import trustme

from dynamo.cli.serve import main
from dynamo.testing import eventually, program

from .processes import children, is_running
from .terminal import CTRL_C, terminal

START_S = 60.0
SERVE = ("-m", "dynamo.cli.main", "serve")


def mocker(model: Path, *flags: str) -> list[str]:
    return [*SERVE, str(model), "--engine", "mocker", "--http-port", "0", *flags, "--", "--max-model-len", "8192"]


def url_in(output: str) -> str:
    found = re.search(r"ready: tiny on (http://\S+)", output)
    assert found, output
    return found[1]


def ask(url: str, **fields: Any) -> Any:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3} | fields
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.loads(response.read())


def instances(url: str) -> int:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as response:
        return len(json.loads(response.read())["instances"])


def entries(discovery: Path) -> list[str]:
    return os.listdir(discovery) if discovery.exists() else []


def worker_pids(supervisor: int) -> list[int]:
    return [pid for pid, command in children(supervisor).items() if "dynamo.mocker" in command]


async def test_with_keys_and_tls(tiny_model: Path, environ: dict[str, str], tmp_path: Path) -> None:
    """The supervisor has no key, and does not trust the certificate more than others do."""
    issued = trustme.CA().issue_cert("example.org")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(cert)
    issued.private_key_pem.write_to_path(key)
    flags = ["--tls-cert-path", str(cert), "--tls-key-path", str(key)]
    async with program(mocker(tiny_model, *flags), environ | {"DYN_API_KEYS": "k"}) as serve:
        assert "ready: tiny on https://127.0.0.1:" in await serve.line("ready: tiny", START_S)
        serve.signal(signal.SIGINT)
        assert await serve.exit_code(20) == 0


async def test_in_a_terminal(tiny_model: Path, environ: dict[str, str], discovery: Path) -> None:
    async with terminal(*mocker(tiny_model, "--workers", "2"), environ=environ) as shown:
        await shown.until("Ctrl-C stops everything.", START_S)
        url = url_in(shown.shown)
        assert f"curl {url}/v1/chat/completions -H 'content-type: application/json' -d '{{" in shown.shown
        assert "(2 mocker workers)" in shown.shown
        await shown.until("● frontend ● worker-1 ● worker-2  0 in flight, 0 requests")
        assert (await asyncio.to_thread(ask, url))["usage"]["completion_tokens"] == 3
        await shown.until("0 in flight, 1 requests")

        first, second = worker_pids(shown.pid)
        os.kill(first, signal.SIGKILL)
        await shown.until("ended with signal SIGKILL: starting it again in 1 s")
        assert (await asyncio.to_thread(ask, url))["usage"]["completion_tokens"] == 3  # by the other one
        await shown.until("✗ worker-")
        await eventually(lambda: len(worker_pids(shown.pid)) == 2, START_S)
        while await asyncio.to_thread(instances, url) != 2:
            pass
        assert second in worker_pids(shown.pid)

        processes = [shown.pid, *children(shown.pid)]
        assert len(processes) == 4
        shown.type(CTRL_C)
        assert await shown.exit_code() == 0
        assert not any(map(is_running, processes))
        assert entries(discovery) == []
        assert "stopping: requests under way may go on for 30 s, a second Ctrl-C ends them now" in shown.shown
        assert shown.shown.endswith("\r\x1b[K")  # the status line is gone
        assert "Traceback" not in shown.shown
        assert "KeyboardInterrupt" not in shown.shown


async def test_in_a_narrow_terminal(tiny_model: Path, environ: dict[str, str]) -> None:
    async with terminal(*mocker(tiny_model), environ=environ, columns=30) as shown:
        await shown.until("Ctrl-C stops everything.", START_S)
        await shown.until("● frontend ● worker-1")
        status_lines = re.findall(r"\r\x1b\[K([^\n\r]*)(?=\r\x1b)", shown.shown)
        assert status_lines
        assert max(map(len, status_lines)) < 30
        shown.type(CTRL_C)
        assert await shown.exit_code() == 0


async def test_without_a_terminal(tiny_model: Path, environ: dict[str, str], discovery: Path) -> None:
    async with program(mocker(tiny_model), environ) as serve:
        await serve.line("Ctrl-C stops everything.", START_S)
        assert (await asyncio.to_thread(ask, url_in(serve.output)))["model"] == "tiny"
        await serve.line("[frontend] ")
        processes = list(children(serve.pid))
        serve.signal(signal.SIGTERM)
        assert await serve.exit_code() == 0
        assert "\x1b" not in serve.output
        assert not any(map(is_running, processes))
        assert entries(discovery) == []


@pytest.mark.alone
@pytest.mark.parametrize("when", ["starting", "up", "busy"])
async def test_supervisor_killed(tiny_model: Path, environ: dict[str, str], when: str) -> None:
    async with program(mocker(tiny_model, "--workers", "2"), environ) as serve:
        if when == "starting":
            await eventually(lambda: len(children(serve.pid)) == 3, START_S)
        else:
            await serve.line("Ctrl-C stops everything.", START_S)
        busy = await _open_stream(url_in(serve.output)) if when == "busy" else None
        processes = list(children(serve.pid))
        assert len(processes) == 3
        serve.signal(signal.SIGKILL)
        await eventually(lambda: not any(map(is_running, processes)), seconds=2)
        if busy is not None:
            busy.close()


async def test_supervisor_killed_as_it_starts_its_children(tiny_model: Path, environ: dict[str, str]) -> None:
    """They may not have got so far as to ask the kernel for their end."""
    async with program(mocker(tiny_model), environ) as serve:
        await eventually(lambda: bool(children(serve.pid)), START_S)
        processes = list(children(serve.pid))
        serve.signal(signal.SIGKILL)
        await eventually(lambda: not any(map(is_running, processes)), seconds=10)


@pytest.mark.alone
async def test_second_ctrl_c_does_not_wait(tiny_model: Path, environ: dict[str, str]) -> None:
    async with terminal(*mocker(tiny_model), environ=environ) as shown:
        await shown.until("Ctrl-C stops everything.", START_S)
        stream = await _open_stream(url_in(shown.shown))
        processes = list(children(shown.pid))
        shown.type(CTRL_C)
        await shown.until("stopping")
        await shown.until("shutting down")  # the children say so, and they can still be heard
        assert is_running(shown.pid)
        shown.type(CTRL_C)
        assert await shown.exit_code(2) == 0
        assert not any(map(is_running, processes))
        stream.close()


async def test_window_is_closed(tiny_model: Path, environ: dict[str, str], discovery: Path) -> None:
    async with terminal(*mocker(tiny_model), environ=environ) as shown:
        await shown.until("Ctrl-C stops everything.", START_S)
        processes = list(children(shown.pid))
        shown.hang_up()
        assert await shown.exit_code() == 0
        assert not any(map(is_running, processes))
        assert entries(discovery) == []


async def test_worker_that_cannot_start(tiny_model: Path, environ: dict[str, str], discovery: Path) -> None:
    async with program([*mocker(tiny_model), "--no-such-flag"], environ) as serve:
        await serve.line("unrecognized arguments: --no-such-flag", START_S)
        assert await serve.exit_code(START_S) == 1
        assert "worker-1 ended with exit code 2 before it was ready" in serve.output
        assert "Traceback" not in serve.output
        assert entries(discovery) == []


async def test_port_in_use(environ: dict[str, str], discovery: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        async with program([*SERVE, "/proc/nowhere", "--engine", "echo", "--http-port", port], environ) as serve:
            assert await serve.exit_code(START_S) == 1
    taken_port = f"cannot listen on 127.0.0.1:{port}: Address already in use (--http-port takes another port"
    assert taken_port in serve.output  # before it looks for the model, which may take long to get
    assert entries(discovery) == []


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["/proc/nowhere", "--engine", "echo"], 1, "no model '/proc/nowhere'"),
        (["--workers", "0"], 2, "--workers must be at least 1"),
        (["--prefill-workers", "1"], 2, "--prefill-workers needs --decode-workers"),
        (["--discovery-backend", "mem"], 2, "works within one process only"),
        (["--request-plane", "inproc"], 2, "works within one process only"),
        (["--engine", "gpt"], 2, "'gpt' is not one of vllm, mocker, echo"),
        (["--no-such-flag"], 2, "unrecognized arguments"),
    ],
)
def test_wrong_command_line(arguments: list[str], code: int, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        ended = main(arguments)
    except SystemExit as exit_:
        ended = exit_.code  # type: ignore[assignment]
    assert ended == code
    assert reason in capsys.readouterr().err


async def test_flags_reach_the_processes(tiny_model: Path, environ: dict[str, str]) -> None:
    flags = [
        "--namespace",
        "mine",
        "--router-mode",
        "random",
        "--no-access-log",
        "--model-name",
        "it's",
        "--workers",
        "2",
    ]
    async with program(mocker(tiny_model, *flags), environ) as serve:
        output = await serve.line("ready: it's on", START_S)
        await serve.line("Ctrl-C stops everything.")
        url = output.split()[3]
        assert """{"model": "it'"'"'s",""" in serve.output  # as a shell reads it
        await asyncio.to_thread(ask, url, model="it's")
        assert "serving mine.backend.generate" in serve.output
        assert "chat_completions" not in serve.output
        frontend, *workers = children(serve.pid).values()
        assert "--router-mode random" in frontend
        assert len(workers) == 2


async def _open_stream(url: str) -> socket.socket:
    """A client in the middle of an answer that takes most of a minute."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    stream = socket.create_connection((host, int(port)))
    body = {"model": "tiny", "prompt": "Hello", "max_tokens": 8000, "ignore_eos": True, "stream": True}
    data = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    stream.sendall(head.encode() + data)
    assert await asyncio.to_thread(stream.recv, 1000)
    return stream


async def test_further_workers_join_by_the_command_that_it_prints(tiny_model: Path, environ: dict[str, str]) -> None:
    async with program(mocker(tiny_model), environ) as serve:
        await serve.line("Ctrl-C stops everything.", START_S)
        found = re.search(r"Further workers join with\n\n  (.*)\n", serve.output)
        assert found, serve.output
        interpreter, *arguments = shlex.split(found[1])
        assert interpreter == sys.executable
        async with program(arguments, environ) as worker:
            await worker.line("ready: tiny", START_S)
            while await asyncio.to_thread(instances, url_in(serve.output)) != 2:
                pass


async def test_two_deployments_with_one_discovery_directory(tiny_model: Path, environ: dict[str, str]) -> None:
    """Of the same user, as when one tries the simulated engine beside a real one."""
    async with program(mocker(tiny_model), environ) as first, program(mocker(tiny_model), environ) as second:
        urls = []
        for serve in (first, second):
            await serve.line("Ctrl-C stops everything.", START_S)
            urls.append(url_in(serve.output))
        assert [await asyncio.to_thread(instances, url) for url in urls] == [1, 1]
