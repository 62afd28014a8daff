"""Penalties of an output in two parts, against vLLM's own of the whole."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    import torch

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

VOCABULARY = 12
token_ids = st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=6)
penalties = st.sampled_from([-1.5, 0.0, 0.7])


@given(
    prompt=token_ids,
    resumed=token_ids,
    output=st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    presence=penalties,
    frequency=penalties,
    repetition=st.sampled_from([0.8, 1.0, 1.3]),
)
@settings(deadline=None, max_examples=200)
def test_the_two_parts_are_penalised_as_one(
    prompt: list[int], resumed: list[int], output: list[int], presence: float, frequency: float, repetition: float
) -> None:
    """At each position of the second part."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.sample.ops.penalties import apply_all_penalties

    from dynamo.engines.vllm.resumed_penalties import RESUMED_TOKENS, ResumedPenalties

    def penalised(logits: "torch.Tensor", prompt: list[int], output: list[int]) -> "torch.Tensor":
        each = [torch.tensor([value]) for value in (presence, frequency, repetition)]
        return apply_all_penalties(logits.clone().unsqueeze(0), torch.tensor([prompt]), *each, [output])[0]

    params = SamplingParams(
        presence_penalty=presence,
        frequency_penalty=frequency,
        repetition_penalty=repetition,
        extra_args={RESUMED_TOKENS: len(resumed)},
    )
    logits = torch.linspace(-2, 2, VOCABULARY)
    processor = ResumedPenalties(None, torch.device("cpu"), False)
    made: list[int] = []  # grows, as vLLM's own list
    processor.update_state(BatchUpdate(1, [], [(0, params, prompt + resumed, made)], []))
    for token_id in (*output, -1):
        resumed_logits = processor.apply(logits.clone().unsqueeze(0))[0]
        found = penalised(resumed_logits, prompt + resumed, made)
        torch.testing.assert_close(found, penalised(logits, prompt, resumed + made))
        made.append(token_id)


def test_other_requests_are_none_of_its_business() -> None:
    import torch
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from dynamo.engines.vllm.resumed_penalties import ResumedPenalties

    processor = ResumedPenalties(None, torch.device("cpu"), False)
    processor.update_state(BatchUpdate(1, [], [(0, SamplingParams(presence_penalty=1), [1, 2], [])], []))
    logits = torch.ones(1, VOCABULARY)
    assert torch.equal(processor.apply(logits.clone()), logits)
