"""How the roles of disaggregated serving are configured in vLLM, by its own parser."""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from dynamo.engines.vllm.args import parse_command_line
from dynamo.engines.vllm.handoffs import Handoffs
from dynamo.errors import ConfigError
from dynamo.protocols.model_card import WorkerType
from dynamo.transfer import nixl_library

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # importing vLLM and torch warns a lot
    pytest.mark.skipif(not nixl_library.is_installed(), reason=f"NIXL is not installed: {nixl_library.INSTALL}"),
]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """Reading its configuration, vLLM writes to the environment."""
    with mock.patch.dict(os.environ):
        yield


@pytest.mark.parametrize(
    ("role", "changeable", "kv_role"),
    [
        ("prefill", False, "kv_producer"),
        ("decode", False, "kv_consumer"),
        ("prefill", True, "kv_both"),
        ("decode", True, "kv_both"),
    ],
)
def test_roles(role: str, changeable: bool, kv_role: str, smollm2_dir: Path) -> None:
    flags = ["--model", str(smollm2_dir), "--disaggregation-mode", role, "--kv-handoff-timeout", "30"]
    flags += ["--changeable-role"] if changeable else []

    config, engine_config = parse_command_line(flags)

    transfer = engine_config.kv_transfer_config
    assert (transfer.kv_connector, transfer.kv_role) == ("NixlConnector", kv_role)
    assert transfer.kv_load_failure_policy == "fail"
    assert transfer.kv_buffer_device == "cpu"
    assert transfer.kv_connector_extra_config == {"kv_lease_duration": 30}
    assert config.worker_type is WorkerType(role)
    assert handoffs_of(flags) == Handoffs(
        connector="NixlConnector",
        prefills=role == "prefill",
        decodes=role == "decode",
        lease_s=30,
        changeable=changeable,
    )


def test_an_aggregated_worker_transfers_nothing(smollm2_dir: Path) -> None:
    flags = ["--model", str(smollm2_dir)]

    _, engine_config = parse_command_line(flags)

    assert engine_config.kv_transfer_config is None
    assert handoffs_of(flags) == Handoffs()


def test_a_configuration_by_the_user_wins(smollm2_dir: Path) -> None:
    theirs = {
        "kv_connector": "NixlConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"kv_lease_duration": 20},
    }
    flags = ["--model", str(smollm2_dir), "--disaggregation-mode", "decode", "--kv-transfer-config", json.dumps(theirs)]

    _, engine_config = parse_command_line(flags)

    transfer = engine_config.kv_transfer_config
    assert {name: getattr(transfer, name) for name in theirs} == theirs
    assert transfer.kv_connector_module_path is None
    assert handoffs_of(flags).lease_s == 20


@pytest.mark.parametrize(("role", "kv_role"), [("prefill", "kv_producer"), ("decode", "kv_consumer")])
def test_with_the_block_manager_a_role_is_for_good(role: str, kv_role: str, smollm2_dir: Path) -> None:
    flags = ["--model", str(smollm2_dir), "--disaggregation-mode", role, "--kvbm-host-gb", "1"]

    _, engine_config = parse_command_line(flags)

    assert engine_config.kv_transfer_config.kv_role == kv_role
    assert not handoffs_of(flags).changeable
    with pytest.raises(ConfigError, match="--kvbm-host-gb exclude"):
        parse_command_line([*flags, "--changeable-role"])


@pytest.mark.parametrize("kv_role", ["kv_consumer", "kv_both"])
def test_a_role_by_the_user_may_be_for_good(kv_role: str, smollm2_dir: Path) -> None:
    theirs = json.dumps({"kv_connector": "NixlConnector", "kv_role": kv_role})
    flags = ["--model", str(smollm2_dir), "--disaggregation-mode", "decode", "--kv-transfer-config", theirs]

    assert handoffs_of(flags).changeable is (kv_role == "kv_both")


def test_a_configuration_for_the_other_role(smollm2_dir: Path) -> None:
    theirs = json.dumps({"kv_connector": "NixlConnector", "kv_role": "kv_consumer"})
    flags = ["--model", str(smollm2_dir), "--disaggregation-mode", "prefill", "--kv-transfer-config", theirs]

    with pytest.raises(ConfigError, match=r"kv_role kv_consumer.*prefill worker"):
        parse_command_line(flags)


@pytest.mark.parametrize("missing", [{"nixl"}, {"nixl_cu12", "nixl_cu13", "nixl_rocm"}])
def test_without_nixl(missing: set[str], smollm2_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else find_spec(name))

    with pytest.raises(ConfigError, match=re.escape("pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1")):
        parse_command_line(["--model", str(smollm2_dir), "--disaggregation-mode", "prefill"])


def handoffs_of(flags: list[str]) -> Handoffs:
    from dynamo.engines.vllm.disagg import handoffs

    config, engine_config = parse_command_line(flags)
    return handoffs(engine_config.kv_transfer_config, config.worker_type, config.kv_handoff_timeout_s)
