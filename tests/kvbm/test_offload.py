import pytest

from dynamo.errors import ConfigError
from dynamo.kvbm.offload import DECAY_S, FrequencyFilter, NoFilter, offload_filter


def test_a_block_is_worth_writing_when_it_is_used_again() -> None:
    frequent = FrequencyFilter()
    assert not frequent.seen(b"a", 0.0)
    assert not frequent.admits(b"a", 0.0)
    assert frequent.seen(b"a", 1.0)
    assert frequent.admits(b"a", 1.0)
    assert not frequent.admits(b"b", 1.0)


def test_each_step_takes_one_away() -> None:
    frequent = FrequencyFilter()
    for _ in range(3):
        frequent.seen(b"a", 0.0)  # 1, 2, 4
    assert frequent.admits(b"a", 2 * DECAY_S)
    assert not frequent.admits(b"a", 3 * DECAY_S)
    assert not frequent.seen(b"a", 9 * DECAY_S)  # it begins anew


def test_what_was_not_seen_for_longest_is_forgotten() -> None:
    frequent = FrequencyFilter(entries_max=2)
    for key in (b"a", b"b", b"a", b"c"):
        frequent.seen(key, 0.0)
    assert frequent.seen(b"a", 0.0)
    assert not frequent.seen(b"b", 0.0)


def test_filters_by_name() -> None:
    assert isinstance(offload_filter("none"), NoFilter)
    assert NoFilter().seen(b"a", 0.0)
    with pytest.raises(ConfigError):
        offload_filter("some")
