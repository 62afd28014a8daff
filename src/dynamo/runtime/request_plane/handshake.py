"""How the two ends of a connection find out that they may talk: messages in, messages out, no I/O.

Both greet at once. Where the deployment has no secret, the caller's greeting shows the one of the instance, which
stands in discovery, and its calls may follow right behind it. Where there is one, neither secret travels:

    caller → callee   Hello(nonce)
    callee → caller   Hello(nonce)   Proof
    caller → callee   Proof          calls

The callee proves itself first, so that a caller tells nothing to a stranger and has to wait for one round trip only.
Proofs cover both nonces, the end that they come from, and the instance's secret.
"""

import hmac
from typing import Protocol

from dynamo.errors import AuthenticationError, ProtocolError
from dynamo.runtime.codec import PROTOCOL_VERSION, Hello, Message, Proof
from dynamo.runtime.credentials import NONCE_BYTES, Credentials, new_nonce, prove, proves

_CALLER, _CALLEE = "request plane: caller", "request plane: callee"
_HINT = "give all processes of a deployment the same --request-plane-secret-file"


class Handshake(Protocol):
    """One end's part in it."""

    frames: int  # that the peer sends until it has shown who it is

    @property
    def complete(self) -> bool:
        """Whether the peer has shown what it has to; calls come only then."""
        ...

    def greeting(self) -> Hello: ...

    def receive(self, message: Message) -> Proof | None:
        """The answer to it. Raises ProtocolError for what does not belong here, AuthenticationError for strangers."""
        ...


def caller_handshake(instance_secret: str, credentials: Credentials) -> Handshake:
    """The part of an end that makes calls."""
    if credentials.secret is None:
        return TrustingCaller(instance_secret, patient=credentials.tls is not None)
    return ProvingCaller(instance_secret, credentials.secret)


def callee_handshake(instance_secret: str, credentials: Credentials) -> Handshake:
    """The part of an end that answers calls."""
    if credentials.secret is None:
        return TrustingCallee(instance_secret)
    return ProvingCallee(instance_secret, credentials.secret)


class TrustingCaller:
    """Shows the instance's secret, and asks for nothing."""

    frames = 1

    def __init__(self, instance_secret: str, *, patient: bool = False) -> None:
        """`patient`: waits for the callee's greeting, as over TLS: only that says that it accepts the certificate."""
        self._instance_secret = instance_secret
        self.complete = not patient

    def greeting(self) -> Hello:
        return Hello(PROTOCOL_VERSION, self._instance_secret)

    def receive(self, message: Message) -> None:
        hello = _greeting_of(message)
        if hello.nonce:
            raise AuthenticationError(f"the worker asks for the deployment's secret, the caller has none: {_HINT}")
        self.complete = True


class TrustingCallee:
    """Asks for the instance's secret."""

    frames = 1

    def __init__(self, instance_secret: str) -> None:
        self._instance_secret = instance_secret
        self.complete = False

    def greeting(self) -> Hello:
        return Hello(PROTOCOL_VERSION)

    def receive(self, message: Message) -> None:
        hello = _greeting_of(message)
        if hello.nonce:
            raise AuthenticationError(f"the caller asks for the deployment's secret, the worker has none: {_HINT}")
        if not hmac.compare_digest(hello.secret.encode(), self._instance_secret.encode()):
            raise AuthenticationError("the caller does not know this instance's secret")
        self.complete = True


class _Proving:
    """What both ends that have the deployment's secret do alike."""

    frames = 2

    def __init__(self, instance_secret: str, secret: bytes) -> None:
        self._instance_secret = instance_secret.encode()
        self._secret = secret
        self._nonce = new_nonce()
        self._peers_nonce = b""
        self.complete = False

    def greeting(self) -> Hello:
        return Hello(PROTOCOL_VERSION, nonce=self._nonce)

    def _take_nonce(self, hello: Hello) -> None:
        if not hello.nonce:
            raise AuthenticationError(f"one side asks for the deployment's secret, the other has none: {_HINT}")
        if len(hello.nonce) != NONCE_BYTES:
            raise ProtocolError(f"a nonce has {NONCE_BYTES} bytes, not {len(hello.nonce)}")
        self._peers_nonce = hello.nonce

    def _prove(self, end: str, *nonces: bytes) -> Proof:
        return Proof(prove(self._secret, end, *nonces, self._instance_secret))

    def _check(self, proof: Proof, end: str, *nonces: bytes) -> None:
        if not proves(proof.proof, self._secret, end, *nonces, self._instance_secret):
            raise AuthenticationError(f"the two sides have different secrets: {_HINT}")
        self.complete = True


class ProvingCaller(_Proving):
    """Proves itself to who has proved itself."""

    def receive(self, message: Message) -> Proof | None:
        if not self._peers_nonce:
            self._take_nonce(_greeting_of(message))
            return None
        if type(message) is not Proof or self.complete:
            raise ProtocolError(f"a worker must not send {type(message).__name__} now")
        self._check(message, _CALLEE, self._nonce, self._peers_nonce)
        return self._prove(_CALLER, self._nonce, self._peers_nonce)


class ProvingCallee(_Proving):
    """Proves itself to anyone, and asks for the same."""

    def receive(self, message: Message) -> Proof | None:
        if not self._peers_nonce:
            self._take_nonce(_greeting_of(message))
            return self._prove(_CALLEE, self._peers_nonce, self._nonce)
        if type(message) is not Proof:
            raise ProtocolError("the second message must be a proof")
        self._check(message, _CALLER, self._peers_nonce, self._nonce)
        return None


def _greeting_of(message: Message) -> Hello:
    if type(message) is not Hello:
        raise ProtocolError("the first message must be a greeting")
    if message.version != PROTOCOL_VERSION:
        raise ProtocolError(f"the peer speaks version {message.version} of the protocol, this side {PROTOCOL_VERSION}")
    return message
