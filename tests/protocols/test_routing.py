import math
from typing import Any

import pytest
from msgspec import structs

from dynamo.protocols.generation import LLMEngineOutput, PreprocessedRequest, merge_outputs
from dynamo.protocols.routing import BestWorkerRequest, CandidateReport, RoutingReport
from dynamo.runtime.codec import PAYLOAD_ERRORS, encode_payload, payload_decoder
from dynamo.tokens import token_array

CANDIDATE = CandidateReport(
    worker_id=2**64 - 1,
    dp_rank=1,
    cost=0.5,
    device_blocks=1,
    host_blocks=2,
    disk_blocks=3,
    prefill_tokens=4,
    decode_blocks=5,
)
REPORT = RoutingReport(
    mode="kv",
    worker_id=2**64 - 1,
    dp_rank=1,
    prompt_blocks=6,
    block_size=16,
    overlap_blocks=0,
    queued_ms=1.5,
    no_overlap_reason="no events yet",
    candidates=[CANDIDATE],
)


def test_a_report_travels_with_an_output() -> None:
    output = LLMEngineOutput(token_ids=[1], routing=REPORT)
    assert payload_decoder(LLMEngineOutput)(encode_payload(output)) == output


def test_merged_outputs_keep_the_report() -> None:
    first, second = LLMEngineOutput(token_ids=[1], routing=REPORT), LLMEngineOutput(token_ids=[2])
    assert merge_outputs([first, second]) == LLMEngineOutput(token_ids=[1, 2], routing=REPORT)
    late = [LLMEngineOutput(token_ids=[1]), LLMEngineOutput(token_ids=[2], routing=REPORT)]
    assert merge_outputs(late).routing == REPORT


REQUESTS = [
    PreprocessedRequest(model="m", token_ids=token_array([1])),
    BestWorkerRequest(token_ids=token_array([1])),
]


@pytest.mark.parametrize("sent", REQUESTS, ids=lambda request: type(request).__name__)
@pytest.mark.parametrize("priority", [math.nan, math.inf, -math.inf, 1e7, -1e7])
def test_a_priority_has_limits(sent: Any, priority: float) -> None:
    """A queue could not order by what is no number."""
    decode = payload_decoder(type(sent))
    assert decode(encode_payload(structs.replace(sent, priority=1e6))).priority == 1e6
    with pytest.raises(PAYLOAD_ERRORS, match="priority"):
        decode(encode_payload(structs.replace(sent, priority=priority)))
