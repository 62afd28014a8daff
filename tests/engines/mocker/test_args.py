import logging
from pathlib import Path

import msgspec
import pytest

from dynamo.config import parse
from dynamo.engines.mocker import args
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.mocker.scheduler_config import SchedulerConfig
from dynamo.engines.mocker.tiers_config import SimulatedTierOptions
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.errors import ConfigError
from dynamo.protocols.model_card import WorkerType


def config_of(*argv: str) -> MockerConfig:
    return parse(MockerConfig, argv, prog="mocker", environ={})


def test_the_defaults_are_upstreams(model_dir: Path) -> None:
    config = config_of()

    assert (config.num_workers, config.speedup_ratio, config.seed) == (1, 1.0, 0)
    assert config.scheduler_config(model_dir) == SchedulerConfig(
        block_size=64, num_blocks=16384, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=512
    )
    assert str(config.endpoint_id()) == "dynamo.backend.generate"


def test_the_flags_reach_the_scheduler(model_dir: Path) -> None:
    config = config_of(
        *("--model-path", "/m", "--model-name", "n", "--speedup-ratio", "2.5", "--num-workers", "3", "--seed", "4"),
        *("--block-size", "16", "--num-gpu-blocks-override", "50", "--max-num-seqs", "7", "--startup-time", "1.5"),
        *("--max-num-batched-tokens", "99", "--max-model-len", "88", "--max-num-waiting", "5"),
        *("--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--endpoint", "dyn://a.b.c"),
    )

    assert (config.model_path, config.model_name, config.num_workers, config.seed) == ("/m", "n", 3, 4)
    assert config.timing_model().speedup_ratio == 2.5
    assert config.startup_time_s == 1.5
    assert str(config.endpoint_id()) == "a.b.c"
    assert config.scheduler_config(model_dir) == SchedulerConfig(
        block_size=16,
        num_blocks=50,
        max_num_seqs=7,
        max_num_batched_tokens=99,
        max_model_len=88,
        max_num_waiting=5,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
    )


def test_handoffs_are_as_upstreams_by_default() -> None:
    config = config_of("--speedup-ratio", "5").handoff_config()

    assert config.role is WorkerType.Aggregated
    assert config.lease_s == 60.0
    assert config.model == TransferModel(bandwidth_gb_s=64.0, bytes_per_token=131072, latency_ms=0.2, speedup_ratio=5.0)
    assert not config.real_bytes


def test_the_flags_reach_the_handoffs() -> None:
    config = config_of(
        *("--disaggregation-mode", "decode", "--kv-transfer", "bytes", "--kv-transfer-bandwidth", "2.5"),
        *("--kv-transfer-latency", "3", "--kv-bytes-per-token", "1024", "--kv-handoff-timeout", "7"),
        *("--rpc-host", "127.0.0.2", "--num-gpu-blocks-override", "10"),
    ).handoff_config()

    assert (config.role, config.host, config.lease_s) == (WorkerType.Decode, "127.0.0.2", 7.0)
    assert config.model == TransferModel(bandwidth_gb_s=2.5, bytes_per_token=1024, latency_ms=3.0)
    assert config.real_bytes


def test_real_bytes_need_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(args, "available_memory_bytes", lambda: 10_000_000_000)
    size = ("--block-size", "50", "--num-gpu-blocks-override", "1000", "--kv-bytes-per-token", "100000")
    config = config_of("--disaggregation-mode", "prefill", "--kv-transfer", "bytes", *size)
    assert config.handoff_config(num_engines=1).real_bytes
    with pytest.raises(ConfigError, match=r"10\.0 GB of memory .* 10\.0 GB"):
        config.handoff_config(num_engines=2)

    assert config_of("--kv-transfer", "bytes", *size).handoff_config(num_engines=2), "aggregated workers need none"


def test_real_bytes_need_blocks_of_some_size() -> None:
    size = ("--block-size", "3", "--kv-bytes-per-token", "8")
    with pytest.raises(ConfigError, match="not 24"):
        config_of("--disaggregation-mode", "decode", "--kv-transfer", "bytes", *size).handoff_config()


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf"])
def test_a_lease_is_a_time(seconds: str) -> None:
    with pytest.raises(ConfigError, match="--kv-handoff-timeout"):
        config_of("--kv-handoff-timeout", seconds).handoff_config()


def test_a_model_that_does_not_say_its_context_needs_the_flag(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(msgspec.json.encode({}))
    with pytest.raises(ConfigError, match="--max-model-len"):
        config_of().scheduler_config(tmp_path)

    assert config_of("--max-model-len", "100").scheduler_config(tmp_path).max_model_len == 100


def test_what_is_not_simulated_is_said(model_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="--data-parallel-size"):
        config_of("--data-parallel-size", "2").scheduler_config(model_dir)
    with caplog.at_level(logging.WARNING):
        config_of("--watermark", "0.1").scheduler_config(model_dir)

    assert "--watermark" in caplog.text


def test_an_impossible_speedup_is_refused() -> None:
    with pytest.raises(ConfigError, match="speedup"):
        config_of("--speedup-ratio", "-1").timing_model()


def test_tiers() -> None:
    config = parse(
        MockerConfig, ["--kvbm-host-gb", "1", "--kvbm-disk-gb", "2", "--kv-bytes-per-token", "1024"], prog=""
    )
    tiers = config.tiers_config()
    assert tiers is not None
    slot = tiers.manager.slot_bytes
    assert slot > 64 * 1024
    assert (tiers.host_blocks, tiers.disk_blocks) == (1_000_000_000 // slot, 2_000_000_000 // slot)
    assert config_of().tiers_config() is None


def test_tiers_need_prefix_caching() -> None:
    with pytest.raises(ConfigError, match="prefix caching"):
        MockerConfig(kvbm=SimulatedTierOptions(host_gb=1.0), enable_prefix_caching=False).tiers_config()
