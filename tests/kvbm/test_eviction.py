import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.errors import ConfigError
from dynamo.kvbm.eviction import EvictionPolicy, Lru, TinyLfu, eviction_policy
from dynamo.kvbm.sketch import COUNT_MAX, FrequencySketch

from .memory_world import key_of


def names_out(policy: EvictionPolicy) -> list[int]:
    """All blocks in the order in which they would go."""
    out = []
    while (key := policy.evict()) is not None:
        out.append(int.from_bytes(key, "big"))
    return out


def test_lru_evicts_what_was_used_longest_ago() -> None:
    policy = Lru()
    for name in (0, 1, 2, 0):
        policy.add(key_of(name))
    policy.hold(key_of(1))
    assert names_out(policy) == [2, 0]


def test_tinylfu_keeps_what_is_used_while_a_scan_passes() -> None:
    sketch = FrequencySketch(64)
    policy = TinyLfu(sketch, 64)
    present: set[int] = set()

    def use(name: int) -> None:
        sketch.record([key_of(name)])
        if name not in present and len(present) == 64:
            victim = policy.evict()
            assert victim is not None
            present.remove(int.from_bytes(victim, "big"))
        present.add(name)
        policy.add(key_of(name))

    for _ in range(4):
        for name in range(40):
            use(name)
    for name in range(1000, 1300):
        use(name)
    assert len(present & set(range(40))) >= 38  # counters are shared now and then

    lru = Lru()
    for name in (*range(40), *range(1000, 1300)):
        lru.add(key_of(name))
    assert not set(names_out(lru)[-64:]) & set(range(40))  # which is what the policy is for


@pytest.mark.parametrize("name", ["lru", "tinylfu"])
@given(steps=st.lists(st.tuples(st.sampled_from(["add", "hold", "drop", "evict"]), st.integers(0, 8))))
def test_what_may_go_is_what_was_added_and_not_held(name: str, steps: list[tuple[str, int]]) -> None:
    policy = eviction_policy(name, FrequencySketch(8), 8)
    model: set[bytes] = set()
    for step, number in steps:
        key = key_of(number)
        if step == "add":
            policy.add(key)
            model.add(key)
        elif step == "evict":
            victim = policy.evict()
            assert (victim in model) if model else victim is None
            model.discard(victim or b"")
        else:
            policy.hold(key) if step == "hold" else policy.drop(key)
            model.discard(key)
        assert len(policy) == len(model)


def test_there_are_two_policies() -> None:
    with pytest.raises(ConfigError):
        eviction_policy("fifo", FrequencySketch(8), 8)


def test_the_sketch_never_counts_too_little_and_forgets() -> None:
    sketch = FrequencySketch(16, seed=3)
    for count in range(1, COUNT_MAX + 3):
        sketch.record([key_of(7)])
        assert sketch.count(key_of(7)) == min(count, COUNT_MAX)
    assert sketch.count(key_of(8)) == 0
    sketch.record(key_of(name) for name in range(100, 1124))
    assert sketch.count(key_of(7)) <= COUNT_MAX // 2 + 1
    sketch.grow(1 << 12)
    assert sketch.count(key_of(7)) == 0


def test_a_disk_larger_than_any_costs_little_memory() -> None:
    """An exabyte was more than there is memory for."""
    sketch = FrequencySketch(10**12)
    sketch.record([b"key"])
    assert sketch.count(b"key") == 1
