"""What a vLLM worker does before vLLM."""

import logging
from pathlib import Path

import pytest

from dynamo.engines.vllm.args import VllmConfig
from dynamo.engines.vllm.main import seek_block_manager
from dynamo.kvbm.config import KvbmOptions


def test_it_serves_without_a_block_manager(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = KvbmOptions(host_gb=1, socket=str(tmp_path / "nobody.sock"), start=False)
    with caplog.at_level(logging.WARNING):
        seek_block_manager(VllmConfig(kvbm=options), timeout_s=0.1)
    assert "not kept beyond the device" in caplog.text


def test_without_the_flag_nobody_is_asked(tmp_path: Path) -> None:
    socket = tmp_path / "private" / "nobody.sock"
    seek_block_manager(VllmConfig(kvbm=KvbmOptions(socket=str(socket))))
    assert not socket.parent.exists()
