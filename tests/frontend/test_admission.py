"""What a request must be before anybody looks into it."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from starlette.datastructures import Headers

from dynamo.errors import (
    InvalidRequestError,
    OverloadedError,
    RequestCancelledError,
    RequestTooLargeError,
    UnsupportedMediaTypeError,
)
from dynamo.frontend.admission import HEADER_CHARS_MAX, read_body, request_id, session_id, timeout_s
from dynamo.frontend.body_budget import BodyBudget, HeldBody
from dynamo.testing import within

JSON = {"content-type": "application/json"}
LIMIT_BYTES = 10
BUDGET_BYTES = 100


def body(*chunks: bytes, end: bool = True) -> Iterable[dict[str, Any]]:
    for i, chunk in enumerate(chunks):
        yield {"type": "http.request", "body": chunk, "more_body": not end or i < len(chunks) - 1}
    yield {"type": "http.disconnect"}


async def read(messages: Iterable[dict[str, Any]], headers: dict[str, str] = JSON) -> bytes:
    waiting = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(waiting)

    return await within(read_body(Headers(headers), receive, LIMIT_BYTES, HeldBody(BodyBudget(BUDGET_BYTES))))


@pytest.mark.parametrize("chunks", [[b"0123456789"], [b"01234", b"56789"], [b""], [b"", b"0", b"", b"1"]])
async def test_body_within_the_limit(chunks: list[bytes]) -> None:
    assert await read(body(*chunks)) == b"".join(chunks)


@pytest.mark.parametrize("chunks", [[b"0123456789A"], [b"0123456789", b"A"], [b"x"] * 11])
async def test_body_over_the_limit(chunks: list[bytes]) -> None:
    with pytest.raises(RequestTooLargeError, match="limit of 10 bytes"):
        await read(body(*chunks))


async def test_body_that_is_announced_too_large_is_not_read() -> None:
    def nothing() -> Iterable[dict[str, Any]]:
        pytest.fail("it must not be read")
        yield {}

    with pytest.raises(RequestTooLargeError):
        await read(nothing(), JSON | {"content-length": "11"})


@pytest.mark.parametrize("announced", ["10", "x", "", "-5", "²"])
async def test_what_is_announced_is_only_a_hint(announced: str) -> None:
    assert await read(body(b"{}"), JSON | {"content-length": announced}) == b"{}"


async def test_body_for_which_there_is_no_room() -> None:
    budget = BodyBudget(25)
    held = [HeldBody(budget) for _ in range(3)]

    async def read_into(mine: HeldBody) -> bytes:
        waiting = iter(body(b"01234", b"56789"))

        async def receive() -> dict[str, Any]:
            return next(waiting)

        return await within(read_body(Headers(JSON), receive, LIMIT_BYTES, mine))

    for mine in held[:2]:
        assert len(await read_into(mine)) == 10
    with pytest.raises(OverloadedError):
        await read_into(held[2])
    assert [mine.size_bytes for mine in held] == [10, 10, 5]


async def test_client_that_leaves() -> None:
    with pytest.raises(RequestCancelledError):
        await read(body(b"01", end=False))


@pytest.mark.parametrize("media_type", ["application/json", "APPLICATION/JSON; charset=utf-8", "application/x+json"])
async def test_media_type(media_type: str) -> None:
    assert await read(body(b"{}"), {"content-type": media_type}) == b"{}"


async def test_no_media_type() -> None:
    assert await read(body(b"{}"), {}) == b"{}"


@pytest.mark.parametrize("media_type", ["text/plain", "", "application/jsonx", "json", "multipart/form-data"])
async def test_other_media_type(media_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="application/json"):
        await read(body(b"{}"), {"content-type": media_type})


async def test_compressed() -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="gzip"):
        await read(body(b"{}"), JSON | {"content-encoding": "GZIP"})
    assert await read(body(b"{}"), JSON | {"content-encoding": " Identity"}) == b"{}"


@pytest.mark.parametrize("value", ["a", "x" * HEADER_CHARS_MAX, "with space", "~!@#$%^&*()"])
def test_names_of_the_clients_own(value: str) -> None:
    headers = Headers({"X-Request-Id": value, "X-Dynamo-Session-ID": value[::-1]})
    assert (request_id(headers), session_id(headers)) == (value, value[::-1])


def test_no_names() -> None:
    assert (request_id(Headers({})), session_id(Headers({}))) == (None, None)


@pytest.mark.parametrize("value", ["", "x" * (HEADER_CHARS_MAX + 1), "a\x00", "a\x7f", "é", "a\tb"])
@pytest.mark.parametrize(("read", "header"), [(request_id, "x-request-id"), (session_id, "x-dynamo-session-id")])
def test_names_that_could_not_stand_in_a_header(read: Callable[[Headers], str | None], header: str, value: str) -> None:
    with pytest.raises(InvalidRequestError, match=header) as raised:
        read(Headers({header: value}))
    assert raised.value.param == header


@pytest.mark.parametrize(
    ("asked", "limit_s", "expected_s"),
    [
        (None, None, None),
        (None, 5.0, 5.0),
        ("1", None, 0.001),
        ("2500", 5.0, 2.5),
        ("0002500", 5.0, 2.5),
        ("1000000000", None, 1e6),
        ("1000000000", 5.0, 5.0),
    ],
)
def test_time_that_a_request_may_take(asked: str | None, limit_s: float | None, expected_s: float | None) -> None:
    headers = Headers({} if asked is None else {"X-Request-Timeout-Ms": asked})
    assert timeout_s(headers, limit_s) == expected_s


@pytest.mark.parametrize(
    "asked", ["", "0", "-1", "+1", "1.0", "1e3", " 1", "1_000", "²", "٣", "1000000001", "9" * 9999]
)
def test_time_that_is_none(asked: str) -> None:
    with pytest.raises(InvalidRequestError, match="x-request-timeout-ms") as raised:
        timeout_s(Headers(raw=[(b"x-request-timeout-ms", asked.encode())]), 5.0)
    assert raised.value.param == "x-request-timeout-ms"
