from pathlib import Path

import pytest

from dynamo.simulator.trace import TraceRequest, read_trace

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"


@pytest.fixture(scope="session")
def mooncake() -> list[TraceRequest]:
    """Real traffic, briefly."""
    return read_trace(SLICE)
