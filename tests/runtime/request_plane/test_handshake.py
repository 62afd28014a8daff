"""Who may talk: the two ends as pure state machines, and an attacker between or before them."""

import itertools
from collections.abc import Callable

import pytest

from dynamo.errors import AuthenticationError, ProtocolError
from dynamo.runtime.codec import PROTOCOL_VERSION, Credit, GoAway, Hello, Message, Proof, encode_frame
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.runtime.request_plane.handshake import Handshake, callee_handshake, caller_handshake

OURS = Credentials(secret=b"the deployment's own secret")
THEIRS = Credentials(secret=b"the secret of another one..")
INSTANCE = "the instance's"


def ends(
    caller: Credentials = OURS, callee: Credentials = OURS, instance_secret: str = INSTANCE
) -> tuple[Handshake, Handshake]:
    return caller_handshake(instance_secret, caller), callee_handshake(INSTANCE, callee)


def shake(caller: Handshake, callee: Handshake) -> list[Message]:
    """Lets the two talk until both are done or one refuses; what was said, in order."""
    said: list[Message] = [caller.greeting(), callee.greeting()]
    to_callee: list[Message] = [said[0]]
    to_caller: list[Message] = [said[1]]
    while to_callee or to_caller:
        for inbox, end, outbox in ((to_callee, callee, to_caller), (to_caller, caller, to_callee)):
            if inbox and (answer := end.receive(inbox.pop(0))) is not None:
                said.append(answer)
                outbox.append(answer)
    return said


@pytest.mark.parametrize("credentials", [NO_CREDENTIALS, OURS], ids=["open", "secret"])
def test_friends(credentials: Credentials) -> None:
    caller, callee = ends(credentials, credentials)
    assert not callee.complete
    shake(caller, callee)
    assert caller.complete
    assert callee.complete


def test_no_secret_travels() -> None:
    assert OURS.secret is not None
    said = encode_frame(shake(*ends()))
    assert OURS.secret not in said
    assert INSTANCE.encode() not in said


def test_caller_without_the_deployments_secret_does_not_wait() -> None:
    assert ends(NO_CREDENTIALS)[0].complete
    assert not ends(OURS)[0].complete


@pytest.mark.parametrize(
    ("caller", "callee", "instance_secret", "reason"),
    [
        (NO_CREDENTIALS, NO_CREDENTIALS, "guessed", "instance's secret"),
        (NO_CREDENTIALS, OURS, INSTANCE, "has none"),
        (OURS, NO_CREDENTIALS, INSTANCE, "has none"),
        (OURS, THEIRS, INSTANCE, "different secrets"),
        (OURS, OURS, "of another instance", "different secrets"),
    ],
)
def test_strangers(caller: Credentials, callee: Credentials, instance_secret: str, reason: str) -> None:
    near, far = ends(caller, callee, instance_secret)
    with pytest.raises(AuthenticationError, match=reason):
        shake(near, far)
    assert not far.complete


def test_every_connection_has_proofs_of_its_own() -> None:
    proofs = [m.proof for _ in range(3) for m in shake(*ends()) if type(m) is Proof]
    assert len(set(proofs)) == 6


def test_proof_of_an_earlier_connection() -> None:
    earlier = shake(*ends())
    callee = callee_handshake(INSTANCE, OURS)
    assert callee.receive(earlier[0]) is not None
    with pytest.raises(AuthenticationError):
        callee.receive(earlier[-1])
    caller = caller_handshake(INSTANCE, OURS)
    assert caller.receive(earlier[1]) is None
    with pytest.raises(AuthenticationError):
        caller.receive(earlier[2])


def test_callers_proof_is_not_its_own_sent_back() -> None:
    """An attacker that knows nothing repeats what the other side says, nonce and proof."""
    callee = callee_handshake(INSTANCE, OURS)
    reflected = callee.receive(Hello(PROTOCOL_VERSION, nonce=callee.greeting().nonce))
    assert reflected is not None
    with pytest.raises(AuthenticationError):
        callee.receive(reflected)
    caller = caller_handshake(INSTANCE, OURS)
    assert caller.receive(caller.greeting()) is None


def test_proof_of_another_worker_by_way_of_a_second_connection() -> None:
    """An attacker has a real worker answer for it: the worker's proof is about its own instance's secret."""
    caller, worker = caller_handshake("the attacker's entry", OURS), callee_handshake(INSTANCE, OURS)
    proof = worker.receive(caller.greeting())
    assert proof is not None
    assert caller.receive(worker.greeting()) is None
    with pytest.raises(AuthenticationError):
        caller.receive(proof)


CALLEE_FIRST: list[Message] = [
    Proof(b"x" * 32),
    Credit(1, 1),
    GoAway(),
    Hello(PROTOCOL_VERSION + 1, nonce=b"n" * 32),
    Hello(PROTOCOL_VERSION, nonce=b"short"),
]


@pytest.mark.parametrize("message", CALLEE_FIRST, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("make", [caller_handshake, callee_handshake])
def test_first_messages_that_do_not_belong(make: Callable[[str, Credentials], Handshake], message: Message) -> None:
    with pytest.raises(ProtocolError):
        make(INSTANCE, OURS).receive(message)


@pytest.mark.parametrize("message", [Hello(PROTOCOL_VERSION, nonce=b"n" * 32), Credit(1, 1), GoAway()])
@pytest.mark.parametrize("make", [caller_handshake, callee_handshake])
def test_second_messages_that_do_not_belong(make: Callable[[str, Credentials], Handshake], message: Message) -> None:
    end = make(INSTANCE, OURS)
    end.receive(Hello(PROTOCOL_VERSION, nonce=b"n" * 32))
    with pytest.raises(ProtocolError):
        end.receive(message)
    assert not end.complete


@pytest.mark.parametrize("proof", [b"", b"x", b"x" * 32, b"x" * 4000])
def test_guessed_proofs(proof: bytes) -> None:
    for make in (caller_handshake, callee_handshake):
        end = make(INSTANCE, OURS)
        end.receive(Hello(PROTOCOL_VERSION, nonce=b"n" * 32))
        with pytest.raises(AuthenticationError):
            end.receive(Proof(proof))
        assert not end.complete


def test_caller_proves_itself_to_nobody_who_has_not() -> None:
    caller = caller_handshake(INSTANCE, OURS)
    answers = [caller.receive(Hello(PROTOCOL_VERSION, nonce=b"n" * 32))]
    for _ in itertools.repeat(None, 2):
        with pytest.raises(AuthenticationError):
            answers.append(caller.receive(Proof(b"x" * 32)))
    assert answers == [None]


def test_a_second_proof_of_a_worker() -> None:
    caller, callee = ends()
    said = shake(caller, callee)
    with pytest.raises(ProtocolError, match="now"):
        caller.receive(said[2])
