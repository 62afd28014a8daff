import pytest

from dynamo.engines.mocker.transfer_model import Link, TransferModel
from dynamo.errors import ConfigError

MODEL = TransferModel(bandwidth_gb_s=2.0, bytes_per_token=1000, latency_ms=1.0)  # 2 million tokens per second


def test_a_transfer_takes_its_latency_and_the_time_of_its_bytes() -> None:
    assert MODEL.begin(4000, 10.0, Link(), Link()) == pytest.approx(10.003)


def test_transfers_over_one_link_take_turns() -> None:
    link = Link()
    ends_s = [MODEL.begin(4000, 10.0, link) for _ in range(3)]

    assert ends_s == pytest.approx([10.003, 10.005, 10.007])
    assert MODEL.begin(4000, 20.0, link) == pytest.approx(20.003)


def test_both_ends_must_be_free() -> None:
    sender, receiver, other = Link(), Link(), Link()
    MODEL.begin(4000, 10.0, sender, other)

    assert MODEL.begin(4000, 10.0, sender, receiver) == pytest.approx(10.005)
    assert MODEL.begin(4000, 10.0, receiver) == pytest.approx(10.007)


def test_speedup_divides_all_of_it() -> None:
    model = TransferModel(bandwidth_gb_s=2.0, bytes_per_token=1000, latency_ms=1.0, speedup_ratio=4.0)

    assert model.begin(4000, 10.0, Link()) == pytest.approx(10.00075)


@pytest.mark.parametrize("model", [TransferModel(bandwidth_gb_s=0.0), TransferModel(speedup_ratio=0.0)])
def test_no_time_at_all(model: TransferModel) -> None:
    link = Link()

    assert model.instant
    assert [model.begin(100_000, 10.0, link) for _ in range(2)] == [10.0, 10.0]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_what_no_network_has_is_refused(value: float) -> None:
    with pytest.raises(ConfigError, match="bandwidth_gb_s"):
        TransferModel(bandwidth_gb_s=value)
    with pytest.raises(ConfigError, match="latency_ms"):
        TransferModel(latency_ms=value)


def test_tokens_have_bytes() -> None:
    with pytest.raises(ConfigError, match="bytes_per_token"):
        TransferModel(bytes_per_token=0)
