"""Which prompts stay where they are decoded."""

import pytest

from dynamo.protocols.disagg import PrefillReason
from dynamo.router.disagg import DisaggConfig, choose_prefill

CONFIG = DisaggConfig(max_local_prefill_length=100, max_local_prefill_ratio=0.5, max_prefill_queue_tokens=1000)


@pytest.mark.parametrize(
    ("prompt", "uncached", "waiting", "reason"),
    [
        (300, 99, 0, "short"),
        (300, 100, 0, "conditions_not_met"),
        (180, 90, 0, "short"),
        (180, 91, 0, "conditions_not_met"),  # more than half of it
        (300, 0, 1001, "short"),
        (300, 300, 1000, "conditions_not_met"),
        (300, 300, 1001, "prefill_busy"),
        (300, None, 1001, "prefill_busy"),
        (300, 300, None, "conditions_not_met"),
        (300, None, None, "conditions_not_met"),
    ],
)
def test_thresholds(prompt: int, uncached: int | None, waiting: int | None, reason: str) -> None:
    found = choose_prefill(CONFIG, prompt_tokens=prompt, uncached_tokens=uncached, waiting_tokens=waiting)
    assert found == PrefillReason(reason)


@pytest.mark.parametrize(
    ("policy", "cache", "load"), [("length", True, False), ("prefill-load", False, True), ("either", True, True)]
)
def test_policies_say_what_counts(policy: str, cache: bool, load: bool) -> None:
    config = DisaggConfig(disagg_policy=policy)
    assert (config.minds_cache, config.minds_load) == (cache, load)


def test_reasons_say_where() -> None:
    assert {reason for reason in PrefillReason if reason.remote} == {
        PrefillReason.UNCONDITIONAL,
        PrefillReason.CONDITIONS_NOT_MET,
    }
