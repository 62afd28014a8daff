"""Who a client is."""

import pytest
from starlette.datastructures import Headers

from dynamo.errors import InvalidApiKeyError, RateLimitedError
from dynamo.frontend.api_keys import KeyEntry
from dynamo.frontend.key_ring import Anybody, KeyRing

ALICE = KeyEntry(name="alice", key="a-key", models=["m"], concurrent_requests=1)
BOB = KeyEntry(name="bob", key="b-key")


def shown(authorization: str) -> Headers:
    return Headers({"Authorization": authorization})


@pytest.mark.parametrize("authorization", ["Bearer a-key", "bearer a-key", "BEARER  a-key "])
def test_known(authorization: str) -> None:
    assert KeyRing([BOB, ALICE]).identify(shown(authorization)).name == "alice"


@pytest.mark.parametrize(
    "authorization",
    ["", "a-key", "Bearer", "Bearer ", "Bearer a-ke", "Bearer A-KEY", "Bearer a-key b-key", "Basic a-key", "Bearer é"],
)
def test_unknown(authorization: str) -> None:
    with pytest.raises(InvalidApiKeyError):
        KeyRing([ALICE, BOB]).identify(shown(authorization))


def test_nothing_shown() -> None:
    with pytest.raises(InvalidApiKeyError, match="Bearer"):
        KeyRing([ALICE]).identify(Headers({}))


def test_what_is_shown_is_not_repeated() -> None:
    """Clients' logs are not where their keys belong."""
    with pytest.raises(InvalidApiKeyError) as refused:
        KeyRing([ALICE]).identify(shown("Bearer mistyped"))
    assert "mistyped" not in refused.value.message


def test_models() -> None:
    ring = KeyRing([ALICE, BOB])
    alice, bob = ring.identify(shown("Bearer a-key")), ring.identify(shown("Bearer b-key"))
    assert (alice.allows("m"), alice.allows("n")) == (True, False)
    assert bob.allows("n")


def test_visits_end_whatever_happens() -> None:
    alice = KeyRing([ALICE]).identify(shown("Bearer a-key"))

    def fail() -> None:
        with alice.visit():
            with pytest.raises(RateLimitedError), alice.visit():
                pytest.fail("one too many")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with alice.visit():
        pass


def test_new_keys_take_the_place_of_the_old_but_not_of_what_was_used() -> None:
    ring = KeyRing([ALICE, BOB])
    with ring.identify(shown("Bearer a-key")).visit():
        ring.use([KeyEntry(name="alice", key="new", concurrent_requests=1)])
        for gone in ("a-key", "b-key"):
            with pytest.raises(InvalidApiKeyError):
                ring.identify(shown(f"Bearer {gone}"))
        alice = ring.identify(shown("Bearer new"))
        assert alice.allows("n")
        with pytest.raises(RateLimitedError), alice.visit():
            pytest.fail("the request before the change still runs")
    with alice.visit():
        pass


def test_anybody() -> None:
    client = Anybody().identify(Headers({}))
    assert client.allows("m")
    with client.visit(), client.visit():
        pass
