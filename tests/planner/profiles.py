"""Profiles for tests."""

from hypothesis import strategies as st

from dynamo.planner.profile import DecodePoint, PrefillPoint, Profile

TIMES = st.floats(min_value=1e-4, max_value=100)


def profile_of(
    prefill: dict[int, tuple[float, float]],
    decode: dict[tuple[int, int], float],
    max_kv_tokens: int | None = None,
) -> Profile:
    """`prefill`: TTFT and rate by length; `decode`: ITL by context and concurrency."""
    return Profile(
        engine="mocker",
        model="tiny",
        max_kv_tokens=max_kv_tokens,
        prefill=tuple(
            PrefillPoint(prompt_tokens=length, ttft_s=ttft_s, tokens_per_s=rate)
            for length, (ttft_s, rate) in sorted(prefill.items())
        ),
        decode=tuple(
            DecodePoint(context_tokens=context, concurrency=requests, itl_s=itl_s, tokens_per_s=requests / itl_s)
            for (context, requests), itl_s in sorted(decode.items())
        ),
    )


# Whatever a noisy measurement may give, holes in the grid included.
PROFILES = st.builds(
    profile_of,
    st.dictionaries(st.integers(1, 100_000), st.tuples(TIMES, TIMES), min_size=1, max_size=6),
    st.dictionaries(
        st.tuples(st.sampled_from([1, 64, 1000, 9000]), st.integers(1, 64)), TIMES, min_size=1, max_size=12
    ),
    st.none() | st.integers(1, 1_000_000),
)
