"""HTTP over TLS: all that HTTP without it can do."""

import asyncio
import signal
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import trustme
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from dynamo.frontend.http_protocol import HEAD_BYTES_MAX
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment, deployment

from .load import Loads, loads
from .raw_http import JSON_HEADERS, connect, dawdle, encoded, events, message

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHAT = "/v1/chat/completions"
SLOT_FREE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """The files of a server's certificate, and who trusts it."""

    cert: Path
    key: Path
    trusting: ssl.SSLContext

    @property
    def flags(self) -> tuple[str, ...]:
        return "--tls-cert-path", str(self.cert), "--tls-key-path", str(self.key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Safe:
    """A frontend that speaks TLS, and a mocker."""

    deployment: Deployment
    frontend: Program
    url: str
    loads: Loads
    tls: ssl.SSLContext


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    directory = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = directory / "cert.pem", directory / "key.pem"
    for blob in issued.cert_chain_pems:
        blob.write_to_path(cert, append=True)
    issued.private_key_pem.write_to_path(key)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return Certificate(cert=cert, key=key, trusting=trusting)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def safe(tiny_model: Path, certificate: Certificate) -> AsyncIterator[Safe]:
    async with deployment() as started:
        (frontend, url), _ = await asyncio.gather(
            started.frontend(*certificate.flags), started.mocker(tiny_model, "m", "--speedup-ratio", "100")
        )
        assert url.startswith("https://127.0.0.1:")
        async with loads(started) as asked:
            one = Safe(deployment=started, frontend=frontend, url=url, loads=asked, tls=certificate.trusting)
            await within(_until_served(one))
            yield one


async def _until_served(safe: Safe) -> None:
    while True:
        async with connect(safe.url, tls=safe.tls) as connection:
            connection.send(message("GET", "/health", b"", {}))
            if (await connection.response()).status == 200:
                return


def chat(**fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 20, "ignore_eos": True}
    return encoded(body | fields)


async def test_official_client(safe: Safe) -> None:
    async with AsyncOpenAI(
        base_url=f"{safe.url}/v1",
        api_key="none",
        max_retries=0,
        timeout=30,
        http_client=DefaultAsyncHttpxClient(verify=safe.tls),
    ) as client:
        hello: Any = [{"role": "user", "content": "Hello"}]
        answer = await client.chat.completions.create(model="m", messages=hello, max_tokens=5)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5
        stream = await client.chat.completions.create(model="m", messages=hello, max_tokens=500, stream=True, seed=3)
        texts = [chunk.choices[0].delta.content async for chunk in stream if chunk.choices]
        again = await client.chat.completions.create(model="m", messages=hello, max_tokens=500, seed=3)
        assert "".join(text or "" for text in texts) == again.choices[0].message.content


async def test_connections_are_kept_and_may_pipeline(safe: Safe) -> None:
    async with connect(safe.url, tls=safe.tls) as connection:
        for _ in range(3):
            connection.post(CHAT, chat(stream=True))
        for _ in range(3):
            assert events((await connection.response()).body)[-1] == "[DONE]"


async def test_large_bodies(safe: Safe) -> None:
    async with connect(safe.url, tls=safe.tls) as connection:
        connection.post(CHAT, chat() + b" " * 5_000_000)
        assert (await connection.response()).status == 200


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("stream", [False, True])
async def test_client_leaves(safe: Safe, stream: bool, how: str) -> None:
    async with connect(safe.url, tls=safe.tls) as connection:
        connection.post(CHAT, chat(stream=stream, max_tokens=30_000))
        await safe.loads.until(1, seconds=10)
        if stream:
            await connection.head()
            await anext(connection.chunks())
        if how == "reset":
            connection.reset()
        else:
            connection.writer.close()
        await safe.loads.until(0, seconds=SLOT_FREE_S)


async def test_slow_reader(safe: Safe) -> None:
    """It holds up nobody else, and gets all of it in the end."""
    async with dawdle(safe.url, safe.tls) as dawdler:
        long = {"stream": True, "max_tokens": 20_000, "stream_options": {"include_usage": True}}
        dawdler.post(CHAT, chat(**long))
        await dawdler.head()
        async with connect(safe.url, tls=safe.tls) as connection:
            connection.post(CHAT, chat(stream=True))
            assert events((await connection.response()).body)[-1] == "[DONE]"
        got = events(b"".join([chunk async for chunk in dawdler.chunks()]))
    assert got[-2]["usage"]["completion_tokens"] == 20_000


async def test_what_is_refused_is_told(safe: Safe) -> None:
    """Where TLS cannot close one direction only."""
    for nonsense, status in ((b"hello\r\n\r\n", 400), (b"GET /" + b"x" * (HEAD_BYTES_MAX + 1), 431)):
        async with connect(safe.url, tls=safe.tls) as connection:
            connection.send(nonsense)
            response = await connection.response()
            assert response.status == status
            response.error()
            assert await connection.is_closed()
    assert "Traceback" not in safe.frontend.output


async def test_who_does_not_speak_tls(safe: Safe) -> None:
    async with connect(safe.url) as connection:
        connection.send(message("GET", "/live", b"", JSON_HEADERS))
        assert b"HTTP/" not in await within(connection.reader.read())
    with pytest.raises(ssl.SSLCertVerificationError):
        async with connect(safe.url, tls=ssl.create_default_context()):
            pytest.fail("it must not be trusted by everybody")
    assert "Traceback" not in safe.frontend.output


async def test_old_tls(safe: Safe) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname = False
    old.verify_mode = ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with connect(safe.url, tls=old):
            pytest.fail("TLS 1.1 is broken")


@pytest.mark.alone
async def test_silent_clients_do_not_hold_up_the_end(safe: Safe, certificate: Certificate) -> None:
    """Those that have connected and never say a word of the handshake."""
    frontend, url = await safe.deployment.frontend(*certificate.flags)
    async with connect(url), connect(url), connect(url, tls=safe.tls) as connection:
        connection.send(message("GET", "/live", b"", {}))
        assert (await connection.response()).status == 200
        frontend.signal(signal.SIGTERM)
        assert await frontend.exit_code(8) == 0  # less than a handshake may take
    assert "Traceback" not in frontend.output


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-cert-path", "cert.pem"], "need each other"),
        (["--tls-key-path", "key.pem"], "need each other"),
        (["--tls-cert-path", "none.pem", "--tls-key-path", "key.pem"], "No such file"),
        (["--tls-cert-path", "key.pem", "--tls-key-path", "cert.pem"], "no certificate with its key"),
    ],
)
async def test_wrong_files(safe: Safe, certificate: Certificate, flags: list[str], reason: str) -> None:
    paths = [str(certificate.cert.parent / flag) if flag.endswith(".pem") else flag for flag in flags]
    program = await safe.deployment.python("-m", "dynamo.frontend", "--http-port", "0", *paths)
    assert await program.exit_code(30) == 1
    assert reason in program.output


@pytest.mark.parametrize(
    ("flags", "keys", "warning"),
    [
        (["--http-host", "127.0.0.1"], "", None),
        (["--http-host", "127.0.0.1"], "k", None),
        (["--http-host", "0.0.0.0"], "", "may use the API"),
        (["--http-host", "0.0.0.0"], "k", "travel readable"),
        (["--http-host", "0.0.0.0", "tls"], "k", None),
    ],
)
async def test_warnings_of_open_doors(
    safe: Safe, certificate: Certificate, flags: list[str], keys: str, warning: str | None
) -> None:
    flags = [*flags[:-1], *certificate.flags] if flags[-1] == "tls" else flags
    frontend, _ = await safe.deployment.frontend(*flags, environ={"DYN_API_KEYS": keys})
    for text in ("may use the API", "travel readable"):
        assert (text in frontend.output) == (text == warning)
