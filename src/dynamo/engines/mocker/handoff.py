"""What a prefill and a decode mocker tell each other about a prompt."""

import msgspec

from dynamo.errors import HandoffLostError, InvalidRequestError
from dynamo.protocols.disagg import Handoff

ENGINE = "mocker"


class HandoffParams(msgspec.Struct, array_like=True, frozen=True):
    """Who holds a prefilled prompt, and under which name."""

    agent: bytes  # the holder's metadata
    id: bytes  # no other handoff, of whatever holder, ever had it

    @classmethod
    def of(cls, handoff: Handoff) -> "HandoffParams":
        """Raises HandoffLostError for another engine's handoff, and for one that no mocker has made."""
        if handoff.engine != ENGINE:
            raise HandoffLostError(f"this worker cannot use a handoff of the engine {handoff.engine!r}")
        try:
            return msgspec.msgpack.decode(handoff.params, type=cls)
        except msgspec.DecodeError as error:
            raise HandoffLostError(f"the handoff is not one of a mocker's: {error}") from error

    def handoff(self) -> Handoff:
        return Handoff(engine=ENGINE, params=msgspec.msgpack.encode(self))


class Begin(msgspec.Struct, array_like=True, frozen=True, tag=True, kw_only=True):
    """May I have this prompt's KV cache? Answered with a Grant, once for each handoff, or a HandoffLostError."""

    id: bytes
    tokens: int  # that the asking worker lacks
    first_block: int
    blocks: int  # from there on


class Grant(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """You may, until so long after you asked; it stays where it is until well after that."""

    lease_s: float
    sending_s: float = 0.0  # how long it takes the holder to send it, where that is but a model
    blocks: bytes = b""  # where it lies, where it is real


class End(msgspec.Struct, array_like=True, frozen=True, tag=True, kw_only=True):
    """Nobody needs these any more. Answered with nothing, and no error when they are gone already."""

    ids: list[bytes]


Question = Begin | End
_QUESTIONS: msgspec.msgpack.Decoder[Question] = msgspec.msgpack.Decoder(Question)


def decode_question(payload: bytes) -> Question:
    """Raises InvalidRequestError for what is none."""
    try:
        return _QUESTIONS.decode(payload)
    except msgspec.DecodeError as error:
        raise InvalidRequestError(f"no mocker asks that: {error}") from error
