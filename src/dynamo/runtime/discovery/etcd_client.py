"""Calls to etcd through its JSON gateway, at whichever endpoint answers (see docs/adr/0009-etcd.md)."""

import asyncio
import logging
import math
import socket
from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

import httpx2
import msgspec

from dynamo.runtime.discovery.etcd_config import EtcdConfig
from dynamo.runtime.discovery.etcd_endpoints import endpoint_urls, tls_context
from dynamo.runtime.discovery.etcd_errors import EtcdError, EtcdRefusedError, EtcdUnavailableError, error_of
from dynamo.runtime.discovery.etcd_messages import (
    AuthenticateRequest,
    AuthenticateResponse,
    ErrorBody,
    StreamError,
    WatchCreateRequest,
    WatchLine,
    WatchRequest,
    WatchResponse,
)
from dynamo.runtime.http_failure import BROKEN, failure_reason

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OK = 200
_EXCERPT_MAX = 200  # characters of an answer that was not understood
_OUTAGE_TIMEOUTS = 2  # a lease lasts three, and may have been renewed one before
_CONNECTIONS_MAX = 8  # a watch, a keep-alive, a transaction; and some that are just being closed
# A watch may have nothing to say for hours. So one learns within seconds that its other end is gone without a word.
_KEEPALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        for name, value in (
            ("TCP_KEEPIDLE", 2),
            ("TCP_KEEPINTVL", 1),
            ("TCP_KEEPCNT", 3),
            ("TCP_USER_TIMEOUT", 5000),
        )
        if hasattr(socket, name)
    ),
]
# A member that is cut off from the others would answer with what it knows, and say nothing about changes.
_HEADERS = {"Content-Type": "application/json", "Grpc-Metadata-hasleader": "true"}


class EtcdClient:
    """One process's connections to etcd. A call goes to the endpoint that answered last, then to the others in turn."""

    def __init__(self, config: EtcdConfig, *, timeout_s: float) -> None:
        """`timeout_s` is how long an endpoint may be silent before it counts as dead.

        Raises ConfigError for an endpoint that is no URL, or a certificate that cannot be used.
        """
        self._endpoints = endpoint_urls(config.endpoints)
        self._current = 0
        self._user = config.auth_username
        self._password = config.auth_password or ""
        self._token: str | None = None  # None: to be asked for; "": etcd wants none
        self._timeout_s = timeout_s
        self._answered_at_s = math.inf  # by the event loop's clock
        self._recovered_at_s = 0.0
        self._complaint = ""
        self.on_dead_endpoint: Callable[[], None] = lambda: None
        encrypted = any(endpoint.startswith("https:") for endpoint in self._endpoints)
        self._http = httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(
                verify=tls_context(config) if encrypted else False,
                limits=httpx2.Limits(max_connections=_CONNECTIONS_MAX, max_keepalive_connections=2),
                socket_options=_KEEPALIVE,
                trust_env=False,
            ),
            timeout=timeout_s,
            trust_env=False,  # $http_proxy is not meant for this
        )

    @property
    def complaint(self) -> str:
        """Why the last call has failed; "" when it has not."""
        return self._complaint

    @property
    def recovered_at_s(self) -> float:
        """When the last outage ended in which leases may have; by the event loop's clock, 0 when there was none."""
        return self._recovered_at_s

    async def call(self, path: str, request: msgspec.Struct, answer: type[T]) -> T:
        """Posts `request` to `path` and decodes the answer; EtcdError."""
        for _ in self._endpoints[1:]:
            try:
                return await self._call(path, request, answer)
            except EtcdUnavailableError as error:
                logger.debug("trying the next endpoint of etcd: %s", error)
        return await self._call(path, request, answer)

    async def watch(self, key: bytes, range_end: bytes, start_revision: int) -> AsyncGenerator[WatchResponse]:
        """All changes from `start_revision` on; it ends when etcd ends it. To be closed. EtcdError.

        It waits for as long as nothing happens.
        """
        endpoint = self._endpoints[self._current]
        request = WatchRequest(WatchCreateRequest(key, range_end, start_revision))
        try:
            async with self._http.stream(
                "POST",
                f"{endpoint}/v3/watch",
                content=msgspec.json.encode(request),
                headers=await self._headers(endpoint),
                timeout=httpx2.Timeout(self._timeout_s, read=None),
            ) as response:
                if response.status_code != _OK:
                    raise _failure(endpoint, await response.aread())
                async for line in response.aiter_lines():
                    decoded = _decode(endpoint, line, WatchLine)
                    if decoded.result is None:
                        reason = decoded.error.message if decoded.error else "no result"
                        raise EtcdUnavailableError(f"{endpoint} has broken off a watch: {reason}")
                    yield decoded.result
        except BROKEN as error:
            self._leave(endpoint)
            raise EtcdUnavailableError(f"{endpoint}: {failure_reason(error)}") from error

    def complain(self, error: EtcdError) -> None:
        """Logs a failure, unless it is the last one again; of an outage, which has many faces, only the first."""
        news = isinstance(error, EtcdRefusedError) and str(error) != self._complaint
        if news or not self._complaint:
            logger.warning("etcd: %s; trying again until it works", error)
        self._complaint = str(error)

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(self, path: str, request: msgspec.Struct, answer: type[T]) -> T:
        """At the current endpoint; the next one is current after EtcdUnavailableError."""
        endpoint = self._endpoints[self._current]
        try:
            try:
                body = await self._post(endpoint, path, request, await self._headers(endpoint))
            except EtcdRefusedError as error:
                if self._user is None or not error.may_be_the_token:
                    raise
                self._token = None
                body = await self._post(endpoint, path, request, await self._headers(endpoint))
            decoded = _decode(endpoint, body, answer)
        except EtcdUnavailableError:
            self._leave(endpoint)
            raise
        self._answered(endpoint)
        return decoded

    async def _headers(self, endpoint: str) -> dict[str, str]:
        """With a token, which is asked for when there is none; EtcdError."""
        if self._user is None:
            return _HEADERS
        if self._token is None:
            login = AuthenticateRequest(self._user, self._password)
            try:
                body = await self._post(endpoint, "/v3/auth/authenticate", login, _HEADERS)
                self._token = _decode(endpoint, body, AuthenticateResponse).token
            except EtcdRefusedError as error:
                if not error.has_no_users:
                    raise
                self._token = ""
        return _HEADERS | {"Authorization": self._token} if self._token else _HEADERS

    async def _post(self, endpoint: str, path: str, request: msgspec.Struct, headers: dict[str, str]) -> bytes:
        try:
            response = await self._http.post(endpoint + path, content=msgspec.json.encode(request), headers=headers)
        except BROKEN as error:
            raise EtcdUnavailableError(f"{endpoint}: {failure_reason(error)}") from error
        if response.status_code != _OK:
            raise _failure(endpoint, response.content)
        return response.content

    def _answered(self, endpoint: str) -> None:
        now_s = asyncio.get_running_loop().time()
        if now_s - self._answered_at_s > _OUTAGE_TIMEOUTS * self._timeout_s:
            self._recovered_at_s = now_s
        self._answered_at_s = now_s
        if self._complaint:
            logger.info("etcd answers again, at %s", endpoint)
            self._complaint = ""

    def _leave(self, endpoint: str) -> None:
        """Goes to the next endpoint, unless another call has done so already."""
        if endpoint == self._endpoints[self._current]:
            self._current = (self._current + 1) % len(self._endpoints)
            self.on_dead_endpoint()


def _failure(endpoint: str, body: bytes) -> EtcdError:
    answer = _decode(endpoint, body, ErrorBody)
    if isinstance(failed := answer.error, StreamError):
        return error_of(f"{endpoint}: {failed.message}", failed.grpc_code or failed.code)
    return error_of(f"{endpoint}: {answer.message}", answer.code)


def _decode(endpoint: str, body: bytes | str, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind, strict=False)  # not strict: integers come as strings
    except (msgspec.DecodeError, RecursionError) as error:
        excerpt = body[:_EXCERPT_MAX] if isinstance(body, str) else body[:_EXCERPT_MAX].decode(errors="replace")
        raise EtcdUnavailableError(f"{endpoint} does not answer as etcd does: {excerpt!r}") from error
