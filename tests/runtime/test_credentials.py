"""The deployment's secret: where it comes from, and what proves that one knows it."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ConfigError
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.credentials import NO_CREDENTIALS, SECRET_VARIABLE, prove, proves

SECRET = b"correct horse battery staple"


def test_without_a_secret() -> None:
    assert RuntimeConfig().credentials({}) == NO_CREDENTIALS
    assert RuntimeConfig().credentials({SECRET_VARIABLE: ""}) == NO_CREDENTIALS


def test_from_the_environment() -> None:
    assert RuntimeConfig().credentials({SECRET_VARIABLE: SECRET.decode()}).secret == SECRET


def test_file_comes_before_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b" " + SECRET + b"\n")  # as `openssl rand -hex 32 > secret` and editors leave it
    config = RuntimeConfig(request_plane_secret_file=str(file))
    assert config.credentials({SECRET_VARIABLE: "another secret of the environment"}).secret == SECRET


@pytest.mark.parametrize("content", [b"", b"\n", b"short", b"x" * 15, b"x" * 5000])
def test_what_is_no_secret(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "secret"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match="16 to 4096 bytes"):
        RuntimeConfig(request_plane_secret_file=str(file)).credentials({})


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        RuntimeConfig(request_plane_secret_file=str(tmp_path / "none")).credentials({})


def test_secret_is_not_printed() -> None:
    credentials = RuntimeConfig().credentials({SECRET_VARIABLE: SECRET.decode()})
    assert SECRET.decode() not in repr(credentials)


@given(st.lists(st.binary(max_size=4), max_size=3), st.lists(st.binary(max_size=4), max_size=3))
def test_a_proof_is_good_for_one_transcript_only(one: list[bytes], other: list[bytes]) -> None:
    """Also where the parts make the same bytes together."""
    assert proves(prove(SECRET, "end", *one), SECRET, "end", *other) == (one == other)


def test_a_proof_is_good_for_one_secret_and_one_end() -> None:
    proof = prove(SECRET, "caller", b"nonce")
    assert proves(proof, SECRET, "caller", b"nonce")
    assert not proves(proof, SECRET + b"!", "caller", b"nonce")
    assert not proves(proof, SECRET, "callee", b"nonce")
    assert not proves(proof[:-1], SECRET, "caller", b"nonce")
