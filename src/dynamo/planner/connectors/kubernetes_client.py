"""Calls to the Kubernetes API.

By httpx2, as etcd's gateway is called. The official client (`kubernetes`) has no asyncio and no types, and brings what
logs in at every cloud; `kubernetes_asyncio` has generated classes for all of Kubernetes. We need two calls.
"""

import asyncio
import logging
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar

import httpx2
import msgspec

from dynamo.planner.connectors.kubernetes_config import Cluster
from dynamo.planner.connectors.kubernetes_messages import Pod, PodList, Scale, ScalePatch, Status
from dynamo.runtime.backoff import Backoff
from dynamo.runtime.certificate_files import trust_authority
from dynamo.runtime.http_failure import BROKEN, failure_reason

logger = logging.getLogger(__name__)

T = TypeVar("T")

_NOT_UNDERSTOOD = (msgspec.DecodeError, RecursionError)
_DONE = frozenset({200, 201})
_CONFLICT = 409
_BUSY = frozenset({408, 429, 500, 502, 503, 504})  # another try may succeed
_TRIES = 3
_RETRY_S = (0.1, 1.0)
_PAGE = 500  # pods in one answer
_EXCERPT_MAX = 200  # characters of an answer that was not understood
_MERGE_PATCH = "application/merge-patch+json"  # the one kind of patch that all objects take


class KubernetesError(Exception):
    """A call has failed; `status` is HTTP's, None when there was no answer, or one that nobody understands."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_conflict(self) -> bool:
        """Whether the object was changed since it was read."""
        return self.status == _CONFLICT

    @property
    def is_refusal(self) -> bool:
        """Whether the API has understood and says no, now and later."""
        return self.status is not None and not self.is_conflict and self.status not in _BUSY


class KubernetesClient:
    """One planner's connections. A call that finds nobody, or a busy server, is tried three times."""

    def __init__(self, cluster: Cluster, *, timeout_s: float) -> None:
        """`timeout_s` is how long the server may be silent. Raises ConfigError for certificates that cannot be used."""
        self._cluster = cluster
        self._http = httpx2.AsyncClient(
            base_url=cluster.url,
            transport=httpx2.AsyncHTTPTransport(
                verify=_tls_context(cluster.ca_file) if cluster.url.startswith("https:") else False,
                limits=httpx2.Limits(max_connections=2, max_keepalive_connections=2),
                trust_env=False,
            ),
            timeout=timeout_s,
            trust_env=False,  # $http_proxy is not meant for this
        )

    async def scale(self, path: str) -> Scale:
        """Reads the scale at `path`; KubernetesError."""
        scale, _ = await self._call("GET", path, Scale)
        return scale

    async def patch_scale(self, path: str, patch: ScalePatch) -> None:
        """KubernetesError, a conflict when the scale was changed since the version that `patch` names."""
        await self._call("PATCH", path, Scale, body=msgspec.json.encode(patch))

    async def pods(self, selector: str) -> tuple[list[Pod], datetime]:
        """All pods with those labels, and the time by the server's clock; KubernetesError."""
        path = f"/api/v1/namespaces/{self._cluster.namespace}/pods"
        query = {"labelSelector": selector, "limit": str(_PAGE)}
        page, now = await self._call("GET", path, PodList, query=query)
        pods = page.items
        while page.metadata.continue_:
            page, now = await self._call("GET", path, PodList, query=query | {"continue": page.metadata.continue_})
            pods += page.items
        return pods, now

    async def close(self) -> None:
        await self._http.aclose()

    async def _call(
        self, method: str, path: str, answer: type[T], *, query: dict[str, str] | None = None, body: bytes | None = None
    ) -> tuple[T, datetime]:
        backoff = Backoff(*_RETRY_S)
        for _ in range(_TRIES - 1):
            try:
                return await self._try(method, path, answer, query, body)
            except KubernetesError as error:
                if error.is_refusal or error.is_conflict:
                    raise
                logger.debug("trying again: %s", error)
            await asyncio.sleep(backoff.next_s())
        return await self._try(method, path, answer, query, body)

    async def _try(
        self, method: str, path: str, answer: type[T], query: dict[str, str] | None, body: bytes | None
    ) -> tuple[T, datetime]:
        headers = self._headers() | ({"Content-Type": _MERGE_PATCH} if body is not None else {})
        try:
            response = await self._http.request(method, path, params=query, content=body, headers=headers)
        except BROKEN as error:
            raise KubernetesError(f"{self._cluster.url}: {failure_reason(error)}") from error
        if response.status_code not in _DONE:
            raise _failure(response)
        try:
            return msgspec.json.decode(response.content, type=answer), _date(response)
        except _NOT_UNDERSTOOD as error:
            raise KubernetesError(f"{self._cluster.url} does not answer as Kubernetes does: {error}") from error

    def _headers(self) -> dict[str, str]:
        """With the token as it is now: Kubernetes renews that of a pod while the pod runs."""
        headers = {"Accept": "application/json"}
        if self._cluster.token_file is not None:
            headers["Authorization"] = f"Bearer {_token(self._cluster.token_file)}"
        return headers


def _token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise KubernetesError(f"no token for Kubernetes: {error}") from error
    except UnicodeDecodeError:
        token = ""
    if not token.isprintable() or not token or " " in token:
        raise KubernetesError(f"no token for Kubernetes: {path} holds something else")
    return token


def _failure(response: httpx2.Response) -> KubernetesError:
    try:
        status = msgspec.json.decode(response.content, type=Status)
    except _NOT_UNDERSTOOD:
        status = Status(message=response.text[:_EXCERPT_MAX])
    said = status.message or status.reason or "no reason given"
    return KubernetesError(f"Kubernetes answers {response.status_code}: {said}", response.status_code)


def _date(response: httpx2.Response) -> datetime:
    """The server's time, if it tells it."""
    try:
        return parsedate_to_datetime(response.headers["date"]).astimezone(UTC)
    except (KeyError, ValueError, OverflowError):
        return datetime.now(UTC)


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca_file is not None:
        trust_authority(context, str(ca_file))
    else:
        context.load_default_certs()
    return context
