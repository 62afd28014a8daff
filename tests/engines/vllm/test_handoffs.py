import msgspec
import pytest

from dynamo.engines.vllm.handoffs import Handoffs
from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.model_card import WorkerType
from dynamo.tokens import token_array

PREFILL = Handoffs(connector="NixlConnector", prefills=True, lease_s=60)
DECODE = Handoffs(connector="NixlConnector", decodes=True, lease_s=60)
AGGREGATED = Handoffs()

# As vLLM 0.32.0 gives them.
GIVEN = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[1, 2, 3]],
    "remote_engine_id": "8be0c498-992d-4570-9c63-76f352a183c5",
    "remote_request_id": "519a917ebf15ffdb87ecd5d3daa6eb26-863b75fc",
    "remote_host": "127.0.0.1",
    "remote_port": 46541,
    "tp_size": 1,
    "dcp_size": 1,
    "pp_size": 1,
    "remote_num_tokens": 70,
    "remote_blocks_expiry_time": None,
    "transfer_mode": "pull",
}


def request(*, prefill_only: bool = False, handoff: Handoff | None = None) -> PreprocessedRequest:
    return PreprocessedRequest(model="m", token_ids=token_array([1]), prefill_only=prefill_only, handoff=handoff)


def test_what_one_gives_the_other_takes() -> None:
    received = DECODE.received(request(handoff=PREFILL.made(GIVEN)))

    assert received is not None
    assert received.transfer == GIVEN


def test_what_would_hide_the_transfer_stays_behind() -> None:
    received = DECODE.received(request(handoff=PREFILL.made(GIVEN | {"remote_prefill_cached_tokens": 0})))

    assert received is not None
    assert received.transfer == GIVEN


def test_plain_requests_have_no_parameters_in_any_role() -> None:
    for role in (PREFILL, DECODE, AGGREGATED):
        assert role.received(request()) is None
        assert role.transfer_params(request()) is None


def test_a_prefill_for_others() -> None:
    params = PREFILL.transfer_params(request(prefill_only=True))
    assert params == {"do_remote_decode": True, "do_remote_prefill": False}

    assert params is not None
    params["do_remote_decode"] = False  # vLLM writes into what it is given
    assert PREFILL.transfer_params(request(prefill_only=True)) == {"do_remote_decode": True, "do_remote_prefill": False}


def test_the_format_tells_who_understands_whom() -> None:
    assert PREFILL.format == DECODE.format == "vllm/NixlConnector"
    assert Handoffs(connector="MooncakeConnector", decodes=True).format != PREFILL.format
    assert AGGREGATED.format == ""


def test_roles_that_cannot() -> None:
    for role in (DECODE, AGGREGATED):
        with pytest.raises(InvalidRequestError, match="does not prefill"):
            role.transfer_params(request(prefill_only=True))
    for role in (PREFILL, AGGREGATED):
        with pytest.raises(HandoffLostError, match="does not decode"):
            role.received(request(handoff=PREFILL.made(GIVEN)))


@pytest.mark.parametrize("lease_s", [0, 4.9])
def test_a_handoff_near_its_end_is_refused(lease_s: float) -> None:
    late = Handoffs(connector="NixlConnector", prefills=True, lease_s=lease_s)

    with pytest.raises(HandoffLostError):
        DECODE.received(request(handoff=late.made(GIVEN)))


def test_a_handoff_may_end_while_it_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    received = DECODE.received(request(handoff=PREFILL.made(GIVEN)))
    assert received is not None

    monkeypatch.setattr("time.time", lambda: 1055.0)
    received.check()
    monkeypatch.setattr("time.time", lambda: 1055.1)
    with pytest.raises(HandoffLostError):
        received.check()


@pytest.mark.parametrize(
    ("handoff", "message"),
    [
        (Handoff(engine="mocker", params=b""), "of mocker"),
        (Handoff(engine="vllm", params=b""), "malformed"),
        (Handoff(engine="vllm", params=b"\xc1"), "malformed"),
        (Handoff(engine="vllm", params=msgspec.msgpack.encode({"connector": "NixlConnector"})), "expires_s"),
        (Handoffs(connector="MooncakeConnector", prefills=True, lease_s=60).made(GIVEN), "by MooncakeConnector"),
    ],
)
def test_handoffs_of_no_use(handoff: Handoff, message: str) -> None:
    with pytest.raises(HandoffLostError, match=message):
        DECODE.received(request(handoff=handoff))


def test_the_other_role() -> None:
    assert PREFILL.in_role(WorkerType.Decode) == DECODE
    assert DECODE.in_role(WorkerType.Prefill) == PREFILL
