"""What travels from the vLLM that has prefilled a prompt to the one that decodes it."""

import time
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.disagg import Handoff
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.model_card import WorkerType

TransferParams = dict[str, Any]  # vLLM's kv_transfer_params: its connector's own plain values, for its peer

_ENGINE = "vllm"
_PREFILL: TransferParams = {"do_remote_decode": True, "do_remote_prefill": False}
_NOT_FOR_THE_PEER = "remote_prefill_cached_tokens"  # with it vLLM would report these as cached, not what it has fetched
# How far two hosts' clocks may differ, and how much later than vLLM's lease ours may seem to begin.
_MARGIN_S = 5.0


class _Params(msgspec.Struct, frozen=True, kw_only=True):
    connector: str  # of vLLM, whose values these are
    expires_s: float  # Unix time; what the blocks hold from then on is unknown
    transfer: TransferParams


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceivedHandoff:
    """A prompt's KV cache that a decode worker may fetch."""

    transfer: TransferParams
    expires_s: float

    def check(self) -> None:
        """Raises HandoffLostError unless what was fetched until now is certainly the prompt's."""
        if time.time() > self.expires_s - _MARGIN_S:
            raise HandoffLostError("the prefilled prompt's KV cache may have been freed before it was fetched")


@dataclass(frozen=True, slots=True, kw_only=True)
class Handoffs:
    """Both ends, as far as this worker's role has them."""

    connector: str = ""  # vLLM's KV connector
    prefills: bool = False
    decodes: bool = False
    lease_s: float = 0.0  # how long vLLM keeps a prefilled prompt that nobody asks for
    changeable: bool = False  # vLLM does either, as each request says

    @property
    def format(self) -> str:
        """Equal for workers that can hand over to each other; empty for those that hand nothing over."""
        return f"{_ENGINE}/{self.connector}" if self.prefills or self.decodes else ""

    def in_role(self, role: WorkerType) -> "Handoffs":
        """Those of the same vLLM when it is to prefill, or to decode, from now on."""
        return replace(self, prefills=role is WorkerType.Prefill, decodes=role is WorkerType.Decode)

    def transfer_params(self, request: PreprocessedRequest) -> TransferParams | None:
        """What vLLM is told with a request that has no handoff."""
        if not request.prefill_only:
            return None
        if not self.prefills:
            raise InvalidRequestError("this worker does not prefill for others")
        return dict(_PREFILL)

    def received(self, request: PreprocessedRequest) -> ReceivedHandoff | None:
        """Raises HandoffLostError when it comes too late, or is none for this worker: it has to be prefilled here."""
        handoff = request.handoff
        if handoff is None:
            return None
        if not self.decodes:
            raise HandoffLostError("this worker does not decode what others have prefilled")
        if handoff.engine != _ENGINE:
            raise HandoffLostError(f"a handoff of {handoff.engine} is no use to vLLM")
        try:
            params = msgspec.msgpack.decode(handoff.params, type=_Params)
        except msgspec.DecodeError as error:
            raise HandoffLostError(f"the handoff is malformed: {error}") from error
        if params.connector != self.connector:
            raise HandoffLostError(f"a handoff by {params.connector} is no use to {self.connector}")
        received = ReceivedHandoff(transfer=params.transfer, expires_s=params.expires_s)
        received.check()
        return received

    def made(self, transfer: TransferParams) -> Handoff:
        """From what vLLM says at the end of a request whose transfer_params() it was given."""
        values = {name: value for name, value in transfer.items() if name != _NOT_FOR_THE_PEER}
        params = _Params(connector=self.connector, expires_s=time.time() + self.lease_s, transfer=values)
        return Handoff(engine=_ENGINE, params=msgspec.msgpack.encode(params))
