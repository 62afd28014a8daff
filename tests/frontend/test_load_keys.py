"""The keys that the configuration names."""

import logging
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from dynamo.errors import ConfigError, InvalidApiKeyError
from dynamo.frontend import watched_file
from dynamo.frontend.key_ring import Anybody, Keys
from dynamo.frontend.load_keys import load_keys


class Clock:
    """A second passes with each look."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic(self) -> float:
        self._now_s += 1
        return self._now_s


def entry(key: str) -> str:
    return f'[[keys]]\nname = "one"\nkey = "{key}"\n'


def knows(keys: Keys, key: str) -> bool:
    try:
        keys.identify(Headers({"authorization": f"Bearer {key}"}))
    except InvalidApiKeyError:
        return False
    return True


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_keys(nothing: str | None) -> None:
    assert isinstance(load_keys(nothing, nothing), Anybody)


def test_list() -> None:
    keys = load_keys(None, "one,two")
    assert [knows(keys, key) for key in ("one", "two", "three", "one,two")] == [True, True, False, False]


def test_both(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(entry("one"))
    with pytest.raises(ConfigError, match="exclude each other"):
        load_keys(str(tmp_path / "keys"), "two")


def test_file_that_is_not_there_is_no_open_door(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_keys(str(tmp_path / "keys"), None)


def test_file_that_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watched_file, "time", Clock())
    path = tmp_path / "keys"
    path.write_text(entry("one"))
    keys = load_keys(str(path), None)
    assert knows(keys, "one")
    path.write_text(entry("other"))
    assert (knows(keys, "one"), knows(keys, "other")) == (False, True)
    assert "read 1 API keys anew" in caplog.text
    for breaks in (lambda: path.write_text("["), path.unlink):
        breaks()
        assert knows(keys, "other"), "a file that cannot be used changes nothing"
        assert not knows(keys, "one")
    assert caplog.text.count("stay as they were") == 2
