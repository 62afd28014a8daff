"""What the connector decides, one case after the other; the properties are in test_connector_properties.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.kvbm.known_keys import KnownKeys

from .modelled_engine import Engine, Request, Service

PROMPT = [0] * 7  # three full blocks, and half of one


def engine(*, blocks: int = 8, slots: int = 16) -> Engine:
    return Engine(Service(slots), blocks)


def run(engine: Engine, *requests: Request) -> None:
    """To their end, and that of all copies."""
    for request in requests:
        engine.add(request)
    finish(engine)


def finish(engine: Engine) -> None:
    for _ in range(200):
        engine.now_s += 0.1
        engine.step()
        for copier in engine.copiers:
            if copier is not None:
                copier.progress()
        if engine.idle:
            return
    raise AssertionError("it does not come to an end")


def evict_device(engine: Engine) -> None:
    """By requests that have nothing in common with PROMPT."""
    for number in range(4):
        run(engine, Request(f"filler {number}", [100 + number] * 8))


def test_what_was_computed_is_loaded_after_the_device_has_forgotten_it() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    evict_device(running)
    assert running.loaded_blocks == 0
    run(running, Request("again", PROMPT))
    assert running.loaded_blocks == 3


def test_what_the_device_has_is_not_loaded() -> None:
    running = engine()
    run(running, Request("first", PROMPT), Request("again", PROMPT))
    assert running.loaded_blocks == 0


def test_the_last_token_is_left_to_compute() -> None:
    running = engine()
    run(running, Request("first", PROMPT[:6]))
    evict_device(running)
    run(running, Request("again", PROMPT[:6]))
    assert running.loaded_blocks == 2


def test_without_a_service_everything_is_computed() -> None:
    running = engine()
    running.service.die()
    run(running, Request("first", PROMPT))
    evict_device(running)
    run(running, Request("again", PROMPT))
    assert running.loaded_blocks == 0


def test_a_new_service_is_filled_anew() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    running.service.start()
    run(running, Request("again", PROMPT))  # its blocks are on the device
    evict_device(running)
    run(running, Request("and again", PROMPT))
    assert running.loaded_blocks == 3


def test_blocks_that_are_under_way_are_waited_for() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    evict_device(running)
    running.service.silent = True
    running.add(Request("again", PROMPT))
    running.step()
    (lookup,) = running.service.lookups
    running.service.reply(lookup, all_of_it=False)  # one of three, the others come
    running.step()
    assert running.loaded_blocks == 0
    running.service.reply(lookup, all_of_it=True)
    running.step()
    assert running.loaded_blocks == 3


def test_what_has_come_by_the_deadline_is_taken() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    evict_device(running)
    running.service.silent = True
    running.add(Request("again", PROMPT))
    running.step()
    (lookup,) = running.service.lookups
    running.service.reply(lookup, all_of_it=False)
    running.now_s += 2.0
    running.step()
    assert running.loaded_blocks == 1


def test_a_service_that_hangs_is_waited_for_once() -> None:
    running = engine()
    running.service.silent = True
    request = Request("first", PROMPT)
    running.add(request)
    running.step()
    assert not running.running
    running.now_s += 2.0
    running.step()
    assert running.running == [request]
    other = Request("second", [1] * 7)
    running.add(other)
    running.step()
    assert running.running == [request, other], "nobody waits for what others have waited for in vain"
    running.service.silent = False
    finish(running)
    assert not running.service.lookups
    evict_device(running)
    run(running, Request("again", PROMPT))
    assert running.loaded_blocks == 3


def test_who_waits_for_others_lookups_waits_no_longer_than_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may all be answered late, and their places be taken by others."""
    monkeypatch.setattr("dynamo.kvbm.connector.LOOKUPS_MAX", 0)
    running = engine()
    request = Request("first", PROMPT)
    running.add(request)
    running.step()
    assert not running.running
    running.now_s += 1.0
    running.step()
    assert running.running == [request]
    finish(running)


def test_what_was_found_is_read_in_the_memory_where_it_was_found() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    service, connector = running.service, running.connector
    request = Request("again", PROMPT)
    connector.add(request)
    assert connector.find("again", 0, 3) == 3
    before = service.pool
    service.start()
    connector.allocated("again", [5, 6, 7], 3)
    (load,) = connector.step([], []).loads
    assert load.pool == before


def test_a_request_that_finds_nothing_does_not_ask_again() -> None:
    running = engine(blocks=4)
    running.add(Request("long", [1] * 8))
    for _ in range(7):  # all blocks are its own
        running.step()
    running.add(Request("waits", PROMPT))
    asked = running.service._next_lookup
    running.step()
    running.step()
    assert running.service._next_lookup <= asked + 1
    finish(running)


def test_an_aborted_request_gives_back_what_it_found() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    evict_device(running)
    request = Request("again", PROMPT)
    running.add(request)
    running.step()  # it is being loaded
    assert request.loading
    running.abort(request)
    assert running.service.lookups  # somebody still reads there
    finish(running)
    assert not running.service.lookups


def test_what_was_left_behind_is_forgotten_when_the_cache_may_be_wiped() -> None:
    running = engine(slots=1)
    run(running, Request("first", PROMPT))
    running.connector.forget_left()
    running.service.evict()
    for cache in running.caches:
        cache[:] = [b"wiped"] * len(cache)
    saves = [save for _ in range(3) for save in running.connector.step([], []).saves]
    assert not saves


def test_what_no_slot_was_granted_for_is_counted() -> None:
    running = engine(slots=1)
    run(running, Request("first", PROMPT))
    running.service.committed.clear()  # the only slot is held by nobody's tier
    evict_device(running)
    finish(running)
    assert sum(report.dropped_offloads for report in running.service.reports) > 0


def test_costs_are_reported() -> None:
    running = engine()
    run(running, Request("first", PROMPT))
    evict_device(running)
    run(running, Request("again", PROMPT))
    running.now_s += 5
    running.step()
    reports = running.service.reports
    assert sum(report.onboarded_blocks for report in reports) == 3
    assert sum(report.offloaded_blocks for report in reports) >= 3
    assert sum(report.offload_s for report in reports) > 0


@given(st.lists(st.sampled_from([bytes([n]) for n in range(6)])), st.integers(1, 4))
def test_known_keys_are_the_last_that_were_of_use(used: list[bytes], keys_max: int) -> None:
    known = KnownKeys(keys_max)
    for key in used:
        known.add([key])
    last = list(dict.fromkeys(reversed(used)))[:keys_max]
    assert [key for key in dict.fromkeys(used) if key in known] == [key for key in dict.fromkeys(used) if key in last]
