"""The first words on a transfer connection: the two ends find out that they may talk.

Where the deployment has no secret, whoever connects shows the one that stands in the agent's metadata. Where there is
one, neither travels: both ends prove that they know the two, the agent first.
"""

from hmac import compare_digest
from typing import Protocol

from dynamo.errors import ConnectionLostError
from dynamo.runtime.credentials import NONCE_BYTES, new_nonce, prove, proves
from dynamo.transfer.metadata import TcpOffer

_CALLER, _TARGET = "transfer: caller", "transfer: target"
_PROOF_BYTES = 32
_HINT = "give all processes of a deployment the same --request-plane-secret-file"


class Wire(Protocol):
    """A connection, for who may wait."""

    def send_exactly(self, data: bytes) -> None: ...

    def receive_exactly(self, size_bytes: int) -> bytes: ...


def introduce(wire: Wire, offer: TcpOffer, secret: bytes | None) -> None:
    """The part of whoever connects; `secret` is the deployment's. Raises ConnectionLostError for a stranger."""
    if offer.proof != (secret is not None):
        raise ConnectionLostError(f"tcp: one side asks for the deployment's secret, the other has none: {_HINT}")
    if secret is None:
        wire.send_exactly(offer.secret)
        return
    nonce = new_nonce()
    wire.send_exactly(nonce)
    transcript = (nonce, wire.receive_exactly(NONCE_BYTES), offer.secret)
    if not proves(wire.receive_exactly(_PROOF_BYTES), secret, _TARGET, *transcript):
        raise ConnectionLostError(f"tcp: the two sides have different secrets: {_HINT}")
    wire.send_exactly(prove(secret, _CALLER, *transcript))


def admit(wire: Wire, offer: TcpOffer, secret: bytes | None) -> None:
    """The part of the agent whose `offer` it is. Raises ConnectionLostError for a stranger."""
    if secret is None:
        if not compare_digest(wire.receive_exactly(len(offer.secret)), offer.secret):
            raise ConnectionLostError("the secret is wrong")
        return
    nonce = new_nonce()
    transcript = (wire.receive_exactly(NONCE_BYTES), nonce, offer.secret)
    wire.send_exactly(nonce + prove(secret, _TARGET, *transcript))
    if not proves(wire.receive_exactly(_PROOF_BYTES), secret, _CALLER, *transcript):
        raise ConnectionLostError("the proof is wrong")
