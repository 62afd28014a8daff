"""Settings that change while a process runs."""

import logging
from dataclasses import dataclass

import pytest

from dynamo.config import Live, option, setting_values
from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.runtime import DistributedRuntime, RuntimeConfig
from dynamo.runtime.live_config import ConfigRequest, serve_config


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of a test."""

    size: int = option(3, flag="--size", help="", minimum=1)
    policy: str = option("a", flag="--policy", help="", choices=("a", "b"))
    enabled: bool = option(False, flag="--enabled", help="")
    limit: float | None = option(None, flag="--limit", help="")
    words_max: int = option(7, flag="--words-max", help="")


def test_values_are_as_flags_would_have_them() -> None:
    live = Live(Settings())
    live.change({"size": "5", "enabled": "yes", "limit": "0.5"})
    assert live.value == Settings(size=5, enabled=True, limit=0.5)
    assert setting_values(live.value) == {
        "size": "5",
        "policy": "a",
        "enabled": "true",
        "limit": "0.5",
        "words_max": "7",
    }
    assert setting_values(Settings())["limit"] == ""
    live.change({})
    assert live.value.size == 5


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"sizes": "1"}, "no setting 'sizes'; there is: size, policy, enabled, limit, words-max"),
        ({"size": "0"}, "size: '0' is not usable"),
        ({"size": "x"}, "size: 'x' is not usable: 'x' is not a whole number"),
        ({"policy": "c"}, "not one of a, b"),
        ({"enabled": "perhaps"}, "neither true nor false"),
        ({"limit": ""}, "limit"),
    ],
)
def test_all_or_nothing(change: dict[str, str], reason: str) -> None:
    live = Live(Settings())
    with pytest.raises(ConfigError, match=reason):
        live.change({"size": "5"} | change)
    assert live.value == Settings()


def test_names_as_flags_are_written() -> None:
    live = Live(Settings())
    live.change({"words-max": "5"})
    assert live.value.words_max == 5
    live.change({"words_max": "6"})
    assert live.value.words_max == 6


async def test_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dynamo.runtime.live_config")
    runtime = DistributedRuntime(config=RuntimeConfig(discovery_backend="mem", request_plane="inproc"))
    try:
        live = Live(Settings())
        endpoint = runtime.endpoint("ns.frontend.config")
        await serve_config(endpoint, live)
        client = await endpoint.client(response_type=dict[str, str])
        await client.wait_for_instances(5)
        async for values in await client.random(ConfigRequest(set={"size": "8"}), annotated=False):
            assert values == setting_values(Settings(size=8))
        assert live.value.size == 8
        assert caplog.messages == ["size: 3 -> 8"]
        with pytest.raises(InvalidRequestError, match="size: 'x'"):
            async for _ in await client.random(ConfigRequest(set={"size": "x"}), annotated=False):
                pass
    finally:
        await runtime.close(graceful=False)
