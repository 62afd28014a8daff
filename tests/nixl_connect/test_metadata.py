"""Metadata travels in each way that upstream's programs send theirs, and what is none is refused."""

import json
import zlib
from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.nixl_connect import RdmaMetadata, SerializedDescriptor
from dynamo.nixl_connect import metadata as metadata_module
from dynamo.nixl_connect.metadata import decode_agent, encode_agent

METADATA = RdmaMetadata(
    descriptors=[SerializedDescriptor(ptr=1, size=2), SerializedDescriptor(device="cuda:1", ptr=3, size=0)],
    nixl_metadata="b64:eA==",
    notification_key="key",
    operation_kind=1,
)


def test_there_and_back() -> None:
    dumped = METADATA.model_dump()
    assert dumped["descriptors"][1] == {"device": "cuda:1", "ptr": 3, "size": 0}
    assert RdmaMetadata.model_validate(json.loads(json.dumps(dumped))) == METADATA
    assert RdmaMetadata.model_validate_json(METADATA.model_dump_json()) == METADATA
    assert RdmaMetadata.model_validate(METADATA) is METADATA


@pytest.mark.parametrize(
    "change",
    [
        {"operation_kind": 0},
        {"operation_kind": 3},
        {"descriptors": [{"ptr": 0, "size": 1}]},
        {"descriptors": [{"ptr": 1, "size": -1}]},
        {"descriptors": [{"ptr": 1, "size": 1, "device": "tpu"}]},
        {"something": "else"},
    ],
)
def test_what_is_none(change: dict[str, Any]) -> None:
    wrong = METADATA.model_dump() | change
    with pytest.raises(ValueError, match="no RdmaMetadata"):
        RdmaMetadata.model_validate(wrong)
    with pytest.raises(ValueError, match="no RdmaMetadata"):
        RdmaMetadata.model_validate_json(json.dumps(wrong))


@given(st.binary())
def test_agents(data: bytes) -> None:
    assert decode_agent(encode_agent(data)) == data


@pytest.mark.parametrize("text", ["", "b64:", "b64:x", "nonsense", encode_agent(b"x" * 1000)[:-4]])
def test_agents_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="nixl_metadata"):
        decode_agent(text)


def test_agents_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_module, "_AGENT_BYTES_MAX", 1000)
    with pytest.raises(ValueError, match="too large"):
        decode_agent("b64:" + b64encode(zlib.compress(bytes(5000))).decode())
