"""Which prompts stay where they are decoded."""

import pytest

from dynamo.protocols.disagg import PrefillReason
from dynamo.router.disagg import DisaggConfig, is_busy, is_short

CONFIG = DisaggConfig(max_local_prefill_length=100, max_local_prefill_ratio=0.5, max_prefill_queue_tokens=1000)


@pytest.mark.parametrize(
    ("prompt", "uncached", "expected"),
    [(300, 99, True), (300, 100, False), (180, 90, True), (180, 91, False), (300, 300, False), (300, 0, True)],
)
def test_short(prompt: int, uncached: int, expected: bool) -> None:
    assert is_short(CONFIG, prompt_tokens=prompt, uncached_tokens=uncached) is expected


@pytest.mark.parametrize(("waiting", "expected"), [(1000, False), (1001, True)])
def test_busy(waiting: int, expected: bool) -> None:
    assert is_busy(CONFIG, waiting_tokens=waiting) is expected


def test_short_prompts_stay_by_default() -> None:
    """Although nothing of them is cached."""
    assert is_short(DisaggConfig(), prompt_tokens=9, uncached_tokens=9)


def test_reasons_say_where() -> None:
    assert {reason for reason in PrefillReason if reason.remote} == {
        PrefillReason.UNCONDITIONAL,
        PrefillReason.CONDITIONS_NOT_MET,
    }
