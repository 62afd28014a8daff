import pytest

from dynamo.engines.mocker.handoff_config import HandoffConfig
from dynamo.engines.mocker.transfer_model import TransferModel
from dynamo.protocols.model_card import WorkerType

SMALL = TransferModel(bytes_per_token=1024)


@pytest.mark.parametrize(
    ("config", "block_size", "fits"),
    [
        (HandoffConfig(role=WorkerType.Decode, real_bytes=True), 16, True),
        (HandoffConfig(role=WorkerType.Decode, real_bytes=True), 32, False),
        (HandoffConfig(role=WorkerType.Decode), 16, False),
        (HandoffConfig(role=WorkerType.Decode, real_bytes=True, model=SMALL), 16, False),
    ],
    ids=["same", "block size", "transport", "bytes per token"],
)
def test_who_can_hand_over_to_whom(config: HandoffConfig, block_size: int, fits: bool) -> None:
    prefill = HandoffConfig(role=WorkerType.Prefill, real_bytes=True)
    assert (prefill.format(16) == config.format(block_size)) is fits


def test_a_model_of_transfers_may_differ() -> None:
    prefill, decode = HandoffConfig(role=WorkerType.Prefill), HandoffConfig(role=WorkerType.Decode, model=SMALL)
    assert prefill.format(16) == decode.format(16) == "mocker/16/model"


def test_who_does_all_hands_nothing_over() -> None:
    assert HandoffConfig(real_bytes=True).format(16) == ""
