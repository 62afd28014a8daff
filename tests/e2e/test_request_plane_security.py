"""Real processes that know a secret, and have certificates: they serve; a frontend without either gets nobody to."""

from pathlib import Path

import pytest

from dynamo.testing.deployment import Deployment
from tests.runtime.certificates import Authority

from .raw_http import post
from .served import MOCK, until_served

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECRET = "the secret that all of a deployment know"
CHAT = {"model": MOCK, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}


async def test_only_frontends_of_the_deployment_are_served(own: Deployment, tiny_model: Path, tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ours")
    cert, key = authority.issue("process")
    file = tmp_path / "secret"
    file.write_text(SECRET)
    tls = {
        "DYN_REQUEST_PLANE_TLS_CERT": cert,
        "DYN_REQUEST_PLANE_TLS_KEY": key,
        "DYN_REQUEST_PLANE_TLS_CA": authority.ca,
    }
    flags = ("--request-plane-secret-file", str(file), "--request-plane-tls-cert", cert)
    await own.mocker(tiny_model, MOCK, *flags, "--request-plane-tls-key", key, "--request-plane-tls-ca", authority.ca)
    _, url = await own.frontend(environ={"DYN_REQUEST_PLANE_SECRET": SECRET, **tls})
    await until_served(url, 1)
    assert (await post(url, "/v1/chat/completions", CHAT)).status == 200

    stranger, strangers_url = await own.frontend(environ=tls)
    await until_served(strangers_url, 1)
    refused = await post(strangers_url, "/v1/chat/completions", CHAT)
    assert refused.status == 503  # it is not the client who is not trusted
    assert "--request-plane-secret-file" in await stranger.line("closing connections with 127.0.0.1")
    assert (await post(url, "/v1/chat/completions", CHAT)).status == 200
