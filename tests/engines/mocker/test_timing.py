import pytest

from dynamo.engines.mocker.timing import TimingModel
from dynamo.errors import ConfigError


def test_prefill_follows_the_published_polynomial() -> None:
    step_s = TimingModel().step_s(new_tokens=1000, decoding=False, usage=0.5)

    assert step_s * 1000 == pytest.approx(4.209989e-07 * 1000**2 + 1.518344e-02 * 1000 + 16.5)


@pytest.mark.parametrize(("usage", "expected_ms"), [(0.0, 5.74), (0.5, 26.31), (1.0, 34.01)])
def test_decode_depends_on_the_share_of_blocks_in_use(usage: float, expected_ms: float) -> None:
    assert TimingModel().step_s(new_tokens=0, decoding=True, usage=usage) * 1000 == pytest.approx(expected_ms)


def test_a_mixed_step_takes_the_sum() -> None:
    model = TimingModel()
    prefill_s = model.step_s(new_tokens=100, decoding=False, usage=0.2)
    decode_s = model.step_s(new_tokens=0, decoding=True, usage=0.2)

    assert model.step_s(new_tokens=100, decoding=True, usage=0.2) == pytest.approx(prefill_s + decode_s)


def test_an_empty_step_takes_no_time() -> None:
    assert TimingModel().step_s(new_tokens=0, decoding=False, usage=0.9) == 0.0


def test_speedup_divides_the_time_and_zero_takes_none() -> None:
    normal_s = TimingModel().step_s(new_tokens=100, decoding=True, usage=0.2)

    assert TimingModel(speedup_ratio=4.0).step_s(new_tokens=100, decoding=True, usage=0.2) == pytest.approx(
        normal_s / 4
    )
    assert TimingModel(speedup_ratio=0.0).step_s(new_tokens=100, decoding=True, usage=0.2) == 0.0


@pytest.mark.parametrize("ratio", [-1.0, float("inf"), float("nan")])
def test_an_impossible_speedup_is_refused(ratio: float) -> None:
    with pytest.raises(ConfigError):
        TimingModel(speedup_ratio=ratio)
