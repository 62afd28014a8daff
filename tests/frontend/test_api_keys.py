"""API keys as they are written down."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from dynamo.errors import ConfigError
from dynamo.frontend.api_keys import KEY_PREFIX, KeyEntry, key_digest, new_key, read_key_file, split_keys

DIGEST = hashlib.sha256(b"secret").hexdigest()
TOML = f"""
[[keys]]
name = "alice"
sha256 = "{DIGEST}"
requests_per_minute = 60
models = ["a", "b"]

[[keys]]
name = "bob"
key = "plain"
concurrent_requests = 3
"""


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith(KEY_PREFIX) and len(key.removeprefix(KEY_PREFIX)) == 43 for key in keys)  # 256 bits


def test_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(TOML)
    alice, bob = read_key_file(path)
    assert alice == KeyEntry(name="alice", sha256=DIGEST, requests_per_minute=60, models=["a", "b"])
    assert alice.digest() == DIGEST == key_digest("secret")
    assert (bob.digest(), bob.concurrent_requests) == (key_digest("plain"), 3)
    assert "bob" in caplog.text, "plain keys are warned about"
    assert "alice" not in caplog.text
    assert "plain" not in caplog.text


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "alice", "sha256": DIGEST}]}))
    assert read_key_file(path) == [KeyEntry(name="alice", sha256=DIGEST)]


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        ([], "no API key"),
        ([{"sha256": DIGEST}], "name"),
        ([{"name": "", "sha256": DIGEST}], "keys"),
        ([{"name": "a"}], "either sha256 or key"),
        ([{"name": "a", "sha256": DIGEST, "key": "secret"}], "either sha256 or key"),
        ([{"name": "a", "sha256": DIGEST.upper()}], "sha256"),
        ([{"name": "a", "sha256": DIGEST[1:]}], "sha256"),
        ([{"name": "a", "key": ""}], "printable ASCII"),
        ([{"name": "a", "key": "with space"}], "printable ASCII"),
        ([{"name": "a", "key": "schlüssel"}], "printable ASCII"),
        ([{"name": "a", "key": "1"}, {"name": "a", "key": "2"}], "same name"),
        ([{"name": "a", "sha256": DIGEST}, {"name": "b", "key": "secret"}], "same key"),
        ([{"name": "a", "key": "1", "requests_per_minute": 0}], "requests_per_minute"),
        ([{"name": "a", "key": "1", "requests_per_minutes": 5}], "requests_per_minutes"),
        ([{"name": "a", "key": "1", "models": "m"}], "models"),
        ("none", "array"),
    ],
)
def test_wrong_file(keys: Any, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": keys}))
    with pytest.raises(ConfigError, match=reason):
        read_key_file(path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"[[keys]\n", b"[keys]\n"])
@pytest.mark.parametrize("name", ["keys.toml", "keys.json", "keys"])
def test_file_that_is_no_such_thing(content: bytes, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        read_key_file(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_key_file(tmp_path / "keys")


def test_a_list_of_keys() -> None:
    assert [entry.digest() for entry in split_keys("secret, other,")] == [DIGEST, key_digest("other")]
    for text in (" , ", "a,b,a", "a b"):
        with pytest.raises(ConfigError):
            split_keys(text)
