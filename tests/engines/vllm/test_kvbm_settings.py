"""How the block manager's connector comes into vLLM's configuration, and what rules it out."""

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from unittest import mock

import pytest

from dynamo.engines.vllm.args import VllmConfig, parse_command_line
from dynamo.errors import ConfigError
from dynamo.kvbm.namespace import model_fingerprint
from dynamo.protocols.kvbm import KEY_BYTES, PoolOptions
from dynamo.tokens import block_seed, sequence_hashes, token_array
from dynamo.transfer import nixl_library

if TYPE_CHECKING:
    from vllm.config import KVTransferConfig
    from vllm.config import VllmConfig as EngineConfig
    from vllm.v1.request import Request

    from dynamo.engines.vllm.kvbm_request import RequestBlocks
    from dynamo.engines.vllm.kvbm_settings import KvbmSettings

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


def settings() -> "KvbmSettings":
    from dynamo.engines.vllm.kvbm_settings import KvbmSettings

    options = PoolOptions(host_bytes=1)
    return KvbmSettings(socket="/run/kvbm.sock", options=options, owner="owner", model="fingerprint", model_name="m")


def transfer(name: str, role: str, **extra: int) -> "KVTransferConfig":
    from vllm.config import KVTransferConfig

    return KVTransferConfig(kv_connector=name, kv_role=role, kv_connector_extra_config=extra)


BLOCK_TOKENS = 4


def test_alone_what_cannot_be_loaded_is_computed() -> None:
    from dynamo.engines.vllm.kvbm_settings import settings_of, with_kvbm

    config = with_kvbm(None, settings())
    assert (config.kv_role, config.kv_load_failure_policy) == ("kv_both", "recompute")
    assert settings_of(config) == settings()


@pytest.mark.parametrize(("role", "policy"), [("kv_producer", "recompute"), ("kv_consumer", "fail")])
def test_beside_a_connector_that_hands_over(role: str, policy: str) -> None:
    from vllm.config import KVTransferConfig

    from dynamo.engines.vllm.kvbm_settings import settings_of, with_kvbm

    nixl = transfer("NixlConnector", role, lease=60)
    config = with_kvbm(nixl, settings())
    assert (config.kv_connector, config.kv_role, config.kv_load_failure_policy) == ("MultiConnector", role, policy)
    assert settings_of(config) == settings()
    assert config.get_from_extra_config("lease", 0) == 60
    first, second = (KVTransferConfig(**child) for child in config.kv_connector_extra_config["connectors"])
    assert (first.kv_connector, first.kv_role) == ("NixlConnector", role)
    assert settings_of(second) == settings()


def test_without_the_block_manager_there_are_no_settings() -> None:
    from dynamo.engines.vllm.kvbm_settings import settings_of

    assert settings_of(None) is None
    assert settings_of(transfer("NixlConnector", "kv_both")) is None


def test_each_data_parallel_rank_is_an_owner() -> None:
    from dynamo.engines.vllm.kvbm_settings import owner_of_rank

    assert len({owner_of_rank("owner", 0), owner_of_rank("owner", 1), owner_of_rank("other", 0)}) == 3


def parsed(*flags: str) -> "tuple[VllmConfig, EngineConfig]":
    with mock.patch.dict(os.environ):  # vLLM writes to it
        return parse_command_line([*flags, "--kvbm-host-gb", "1", "--kvbm-socket", "/run/kvbm.sock"])


def test_flags_become_settings(smollm2_dir: Path) -> None:
    from dynamo.engines.vllm.kvbm_settings import settings_of

    made = [settings_of(parsed("--model", str(smollm2_dir))[1].kv_transfer_config) for _ in range(2)]
    first, second = made
    assert first is not None
    assert second is not None
    assert first.options.host_bytes == 1_000_000_000
    assert first.model == second.model == model_fingerprint(smollm2_dir)
    assert first.owner != second.owner


@pytest.mark.skipif(not nixl_library.is_installed(), reason=f"NIXL is not installed: {nixl_library.INSTALL}")
def test_prompts_are_handed_over_beside_it(smollm2_dir: Path) -> None:
    from dynamo.engines.vllm.disagg import handoffs

    config, engine = parsed("--model", str(smollm2_dir), "--disaggregation-mode", "decode")
    handing = handoffs(engine.kv_transfer_config, config.worker_type, 60)
    assert (handing.connector, handing.decodes, handing.lease_s) == ("NixlConnector", True, 60)


def test_a_connector_of_the_users_own_excludes_it(smollm2_dir: Path) -> None:
    own = '{"kv_connector": "ExampleConnector", "kv_role": "kv_both"}'
    with pytest.raises(ConfigError, match="--kvbm-host-gb"):
        parsed("--model", str(smollm2_dir), "--kv-transfer-config", own)


@dataclasses.dataclass
class Cache:
    enable_prefix_caching: bool = True
    prefix_caching_hash_algo: str = "sha256"
    prefix_match_unit: int | None = None
    block_size: int = 16


@pytest.mark.parametrize(
    ("cache", "word"),
    [
        (Cache(enable_prefix_caching=False), "prefix caching"),
        (Cache(prefix_caching_hash_algo="xxhash"), "sha256"),
        (Cache(prefix_match_unit=8), "--prefix-match-unit"),
    ],
)
def test_what_rules_it_out(cache: Cache, word: str) -> None:
    from dynamo.engines.vllm.kvbm_layout import check_engine

    parallel = SimpleNamespace(decode_context_parallel_size=1, prefill_context_parallel_size=1)
    check_engine(SimpleNamespace(cache_config=Cache(), parallel_config=parallel))
    with pytest.raises(ConfigError, match=word):
        check_engine(SimpleNamespace(cache_config=cache, parallel_config=parallel))


def request(tokens: list[int], *, salt: str | None = None, lora: object = None) -> "Request":
    from vllm.sampling_params import SamplingParams
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    from vllm.v1.request import Request

    hashing = get_hash_fn_by_name("sha256")
    init_none_hash(hashing)
    return Request(
        request_id="request",
        prompt_token_ids=tokens,
        sampling_params=SamplingParams(max_tokens=4),
        pooling_params=None,
        block_hasher=get_request_block_hasher(BLOCK_TOKENS, hashing),
        cache_salt=salt,
        lora_request=lora,
    )


def blocks_of(request: "Request") -> "RequestBlocks":
    from dynamo.engines.vllm.kvbm_request import Adapters, RequestBlocks

    return RequestBlocks(request, BLOCK_TOKENS, Adapters())


@pytest.mark.parametrize("salt", [None, "mine"])
def test_names_are_the_routers(salt: str | None) -> None:
    tokens = list(range(1, 15))
    blocks = blocks_of(request(tokens, salt=salt))
    expected = sequence_hashes(token_array(tokens), BLOCK_TOKENS, block_seed(None, salt))
    assert list(blocks.names(1, 2)) == list(expected[1:2])
    assert list(blocks.names(0, 3)) == list(expected)
    assert [len(key) for key in blocks.keys(0, 9)] == [KEY_BYTES] * 3


def test_the_last_token_is_never_loaded() -> None:
    assert blocks_of(request([1] * 8)).loadable == 1
    assert blocks_of(request([1] * 9)).loadable == 2


def test_an_adapter_that_was_replaced_is_another(tmp_path: Path) -> None:
    """Though it has the same name and lies where the first one was: a disk outlives both."""
    from vllm.lora.request import LoRARequest

    adapter = LoRARequest(lora_name="sql", lora_int_id=1, lora_path=str(tmp_path))
    keys = []
    for weights in (b"one", b"one", b"two"):
        (tmp_path / "adapter_model.safetensors").write_bytes(weights)
        keys.append(list(blocks_of(request([1] * 8, lora=adapter)).keys(0, 2)))
    keys.append(list(blocks_of(request([1] * 8)).keys(0, 2)))
    assert keys[0] == keys[1]
    assert len({tuple(each) for each in keys}) == 3
