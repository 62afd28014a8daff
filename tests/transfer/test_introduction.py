"""The deployment's secret on transfer connections."""

import contextlib
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dynamo.errors import ConnectionLostError
from dynamo.runtime.credentials import NO_CREDENTIALS, Credentials
from dynamo.testing import within
from dynamo.transfer import Agent, tcp
from dynamo.transfer.introduction import admit, introduce
from dynamo.transfer.metadata import AgentMetadata, TcpOffer
from tests.runtime.certificates import Authority

OURS = Credentials(secret=b"the deployment's own secret")
THEIRS = Credentials(secret=b"the secret of another one..")


@dataclass
class End:
    """Of a wire in memory."""

    inbox: "queue.Queue[bytes]" = field(default_factory=queue.Queue)
    peer: "End | None" = None
    sent: bytes = b""
    _read: bytes = b""

    def send_exactly(self, data: bytes) -> None:
        assert self.peer is not None
        self.sent += data
        self.peer.inbox.put(data)

    def receive_exactly(self, size_bytes: int) -> bytes:
        while len(self._read) < size_bytes:
            try:
                self._read += self.inbox.get(timeout=0.5)
            except queue.Empty:
                raise ConnectionLostError("the other side waits too") from None
        data, self._read = self._read[:size_bytes], self._read[size_bytes:]
        return data


def introduced(caller: bytes | None, target: bytes | None, *, proof: bool) -> tuple[list[str], bytes]:
    """Who got to the end of it, and all bytes that were sent."""
    near, far = End(), End()
    near.peer, far.peer = far, near
    offer = TcpOffer(host="h", port=1, secret=b"the agent's own ", proof=proof)
    satisfied: list[str] = []

    def run(name: str, part: Callable[..., None], end: End, secret: bytes | None) -> None:
        with contextlib.suppress(ConnectionLostError):
            part(end, offer, secret)
            satisfied.append(name)

    thread = threading.Thread(target=run, args=("target", admit, far, target))
    thread.start()
    run("caller", introduce, near, caller)
    thread.join()
    return sorted(satisfied), near.sent + far.sent


def test_friends_tell_no_secret() -> None:
    satisfied, sent = introduced(OURS.secret, OURS.secret, proof=True)
    assert satisfied == ["caller", "target"]
    assert OURS.secret is not None
    assert OURS.secret not in sent
    assert b"the agent's own " not in sent


def test_without_a_secret_the_agents_own_is_shown() -> None:
    assert introduced(None, None, proof=False) == (["caller", "target"], b"the agent's own ")


@pytest.mark.parametrize(
    ("caller", "target", "proof"),
    [
        (None, OURS.secret, True),
        (None, OURS.secret, False),  # the offer was tampered with
        (OURS.secret, None, False),
        (OURS.secret, None, True),
        (OURS.secret, THEIRS.secret, True),
    ],
)
def test_the_target_lets_no_stranger_in(caller: bytes | None, target: bytes | None, proof: bool) -> None:
    satisfied, sent = introduced(caller, target, proof=proof)
    assert "target" not in satisfied
    assert OURS.secret is not None
    assert OURS.secret not in sent


@pytest.mark.parametrize("backends", [["tcp"], None], ids=["tcp", "all"])
async def test_agents_that_know_the_same_secret(backends: list[str] | None) -> None:
    async with (
        Agent("a", backends, credentials=OURS) as near,
        Agent("b", backends, credentials=OURS) as far,
    ):
        ours, theirs = near.register(bytearray(4)), far.register(b"gold")
        near.add_peer(far.metadata())
        await within(near.read(ours.all(), theirs.all()))
        assert bytes(ours.view()) == b"gold"


@pytest.mark.parametrize(
    ("caller", "target"), [(NO_CREDENTIALS, OURS), (OURS, NO_CREDENTIALS), (OURS, THEIRS)], ids=["near", "far", "both"]
)
async def test_agents_that_do_not(caller: Credentials, target: Credentials) -> None:
    async with Agent("a", ["tcp"], credentials=caller) as near, Agent("b", ["tcp"], credentials=target) as far:
        ours, theirs = near.register(bytearray(4)), far.register(b"gold")
        near.add_peer(far.metadata())
        with pytest.raises(ConnectionLostError, match="request-plane-secret-file"):
            await within(near.read(ours.all(), theirs.all()))


async def test_peer_that_does_not_introduce_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp, "_CONNECT_TIMEOUT_S", 0.2)
    monkeypatch.setattr(tcp, "admit", lambda *_: threading.Event().wait(1))
    async with Agent("a", ["tcp"], credentials=OURS) as far:
        offer = AgentMetadata.decode(far.metadata()).tcp
        assert offer is not None
        with pytest.raises(ConnectionLostError, match="introduce"):
            tcp.TcpLink(offer, OURS.secret)


async def test_notifications_go_over_tls(tmp_path: Path) -> None:
    credentials = Authority(tmp_path / "ours").credentials(OURS.secret)
    async with (
        Agent("a", ["tcp"], credentials=credentials) as near,
        Agent("b", ["tcp"], credentials=credentials) as far,
    ):
        near.add_peer(far.metadata())
        await within(near.notify("b", b"hello"))
        assert (await within(anext(aiter(far.notifications())))).payload == b"hello"


async def test_notifications_ask_for_it_too() -> None:
    async with Agent("a", ["tcp"]) as near, Agent("b", ["tcp"], credentials=OURS) as far:
        near.add_peer(far.metadata())
        with pytest.raises(ConnectionLostError, match="request-plane-secret-file"):
            await within(near.notify("b", b"let me in"))
