"""Which prompts stay where they are decoded."""

import pytest

from dynamo.protocols.disagg import PrefillReason
from dynamo.router.disagg import DisaggConfig, DisaggPolicy, choose_prefill


@pytest.mark.parametrize(
    ("policy", "prompt", "uncached", "waiting", "reason"),
    [
        ("length", 300, 99, 0, "short"),
        ("length", 300, 100, 0, "conditions_not_met"),
        ("length", 180, 90, 0, "short"),
        ("length", 180, 91, 0, "conditions_not_met"),  # more than half of it
        ("length", 300, 300, 10**9, "conditions_not_met"),
        ("prefill-load", 300, 0, 1000, "conditions_not_met"),
        ("prefill-load", 300, 300, 1001, "prefill_busy"),
        ("either", 300, 99, 0, "short"),
        ("either", 300, 300, 1001, "prefill_busy"),
        ("either", 300, 300, 1000, "conditions_not_met"),
    ],
)
def test_thresholds(policy: str, prompt: int, uncached: int, waiting: int, reason: str) -> None:
    config = DisaggConfig(
        conditional_disagg=True,
        disagg_policy=policy,
        max_local_prefill_length=100,
        max_local_prefill_ratio=0.5,
        max_prefill_queue_tokens=1000,
    )
    found = choose_prefill(config, prompt_tokens=prompt, uncached_tokens=uncached, waiting_tokens=waiting)
    assert found == PrefillReason(reason)


def test_short_prompts_stay_by_default() -> None:
    """Although nothing of them is cached."""
    config = DisaggConfig(conditional_disagg=True)
    assert config.disagg_policy == DisaggPolicy.EITHER
    assert choose_prefill(config, prompt_tokens=9, uncached_tokens=9, waiting_tokens=0) is PrefillReason.SHORT


def test_reasons_say_where() -> None:
    assert {reason for reason in PrefillReason if reason.remote} == {
        PrefillReason.UNCONDITIONAL,
        PrefillReason.CONDITIONS_NOT_MET,
    }
