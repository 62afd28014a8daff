"""Events by which watchers see what etcd has, whatever they missed."""

from hypothesis import given
from hypothesis import strategies as st

from dynamo.runtime.discovery.base import Delete, Event, Put
from dynamo.runtime.discovery.etcd_view import EtcdView

KEYS = st.sampled_from("abcd")
VALUES = st.sampled_from([b"1", b"2"])
ENTRIES = st.dictionaries(KEYS, VALUES)
CHANGES = st.one_of(st.builds(Put, KEYS, VALUES), st.builds(Delete, KEYS))


def follow(picture: dict[str, bytes], events: list[Event]) -> None:
    """Also asserts that each event says something new."""
    for event in events:
        if isinstance(event, Put):
            assert picture.get(event.key) != event.value
            picture[event.key] = event.value
        else:
            del picture[event.key]


@given(st.lists(st.one_of(CHANGES, ENTRIES)))
def test_watchers_see_what_etcd_has(steps: list[Event | dict[str, bytes]]) -> None:
    view, etcd, picture = EtcdView(), dict[str, bytes](), dict[str, bytes]()
    for step in steps:
        if isinstance(step, dict):
            etcd = dict(step)
            follow(picture, view.replace(etcd))
        else:
            etcd.pop(step.key, None)
            etcd |= {step.key: step.value} if isinstance(step, Put) else {}
            follow(picture, view.apply(step))
        assert picture == etcd == {put.key: put.value for put in view.puts()}


@given(ENTRIES, ENTRIES, st.lists(st.one_of(CHANGES, ENTRIES)))
def test_nobody_is_forgotten_while_in_doubt(
    before: dict[str, bytes], after: dict[str, bytes], steps: list[Event | dict[str, bytes]]
) -> None:
    view, etcd, picture = EtcdView(), dict(after), dict[str, bytes]()
    follow(picture, view.replace(before))
    view.doubt()
    follow(picture, view.replace(after))
    assert picture == before | after
    for step in steps:
        known = picture.keys() | set()
        if isinstance(step, dict):
            etcd = dict(step)
            follow(picture, view.replace(etcd))
        else:
            etcd.pop(step.key, None)
            etcd |= {step.key: step.value} if isinstance(step, Put) else {}
            follow(picture, view.apply(step))
        assert picture.items() >= etcd.items()
        assert picture.keys() >= known
    follow(picture, view.settle())
    assert picture == etcd
    follow(picture, view.replace({}))
    assert picture == {}


def test_births_come_before_deaths() -> None:
    view = EtcdView()
    view.replace({"old": b"1"})
    assert view.replace({"new": b"2"}) == [Put("new", b"2"), Delete("old")]
