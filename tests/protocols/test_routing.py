from dynamo.protocols.generation import LLMEngineOutput, merge_outputs
from dynamo.protocols.routing import CandidateReport, RoutingReport
from dynamo.runtime.codec import encode_payload, payload_decoder

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
