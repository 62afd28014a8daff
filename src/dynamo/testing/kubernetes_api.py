"""A stand-in for the Kubernetes API: scales and pods of one namespace, checked as the API does.

It is not Kubernetes. It knows two resources, and only what a planner does with them; what it does not know it answers
with 501, so that a test fails rather than passes by luck. It keeps to the published API in what it checks: tokens, what
a role allows, content types, names, resourceVersions, label selectors, numbers; and in how it says no. Nothing happens
by itself: a test plays the controllers and the kubelet, by reconcile() and set_ready().
"""

import threading
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dynamo.testing.kubernetes_checks import Refusal, described, merge_patch, page, patched_replicas, selected
from dynamo.testing.kubernetes_objects import StandInPod, StandInScaled, pod_object, scale_object

# (verb, API group, resource) that a role may allow: what docs/planner-kubernetes.md has the planner's allow.
PLANNER_ROLE = frozenset(
    {("get", "apps", "deployments/scale"), ("patch", "apps", "deployments/scale"), ("list", "", "pods")}
)


class KubernetesApi:
    """One namespace. KubernetesServer makes it reachable; any thread may change it."""

    def __init__(
        self,
        namespace: str = "serving",
        *,
        tokens: Collection[str] = ("token",),
        allowed: Collection[tuple[str, str, str]] = PLANNER_ROLE,
    ) -> None:
        """`allowed`: (verb, API group, resource), as the rules of a Role grant them to all that have a token."""
        self.namespace = namespace
        self.tokens = set(tokens)
        self.allowed = set(allowed)
        self.skew_s = 0.0  # by how much its clock is ahead of ours
        self.requests: list[str] = []  # method and path of each, in order
        self.before_patch: list[int] = []  # replicas that somebody else sets just before the next patches
        self.page_max: int | None = None  # pods in one answer, when more are asked for: for tests of pages
        self._version = 100
        self._scaled: dict[tuple[str, str, str, str], StandInScaled] = {}
        self._lock = threading.RLock()

    def add(
        self, name: str, replicas: int = 1, *, group: str = "apps", version: str = "v1", plural: str = "deployments"
    ) -> StandInScaled:
        """Another object that can be scaled."""
        with self._lock:
            scaled = StandInScaled(
                group=group,
                version=version,
                plural=plural,
                name=name,
                labels={"app": name},
                replicas=replicas,
                resource_version=self._next_version(),
            )
            self._scaled[group, version, plural, name] = scaled
            return scaled

    def set_replicas(self, scaled: StandInScaled, replicas: int) -> None:
        """As somebody does by `kubectl scale`."""
        with self._lock:
            scaled.replicas = replicas
            self._touch(scaled)

    def reconcile(self, scaled: StandInScaled) -> None:
        """What controllers do: makes pods that are missing, and tells those to end that are too many, newest first."""
        with self._lock:
            living = [pod for pod in scaled.pods if pod.deleted is None]
            for _ in range(scaled.replicas - len(living)):
                scaled.made += 1
                pod = StandInPod(name=f"{scaled.name}-{scaled.made}", labels=dict(scaled.labels), created=self._now())
                scaled.pods.append(pod)
            for pod in living[scaled.replicas :]:
                pod.deleted = self._now()
            self._touch(scaled)

    def set_ready(self, scaled: StandInScaled, pod: StandInPod, ready: bool = True) -> None:
        """What the kubelet does: the pod runs, and its readiness probe says so."""
        with self._lock:
            pod.phase, pod.ready, pod.ready_changed = "Running", ready, self._now()
            self._touch(scaled)  # its status counts them

    def remove(self, scaled: StandInScaled, pod: StandInPod) -> None:
        """It has ended."""
        with self._lock:
            scaled.pods.remove(pod)
            self._touch(scaled)

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        """Raises Refusal."""
        with self._lock:
            self.requests.append(f"{method} {urlsplit(target).path}")
            self._check_token(headers.get("authorization", ""))
            parts = urlsplit(target)
            match parts.path.strip("/").split("/"):
                case ["api", "v1", "namespaces", namespace, "pods"]:
                    self._check_allowed("list" if method == "GET" else method.lower(), "", "pods", "", namespace)
                    return self._list(method, namespace, parse_qs(parts.query, keep_blank_values=True))
                case ["apis", group, version, "namespaces", namespace, plural, name, "scale"]:
                    self._check_allowed(method.lower(), group, f"{plural}/scale", name, namespace)
                    scaled = self._find(group, version, plural, name, namespace)
                    return self._scale(method, scaled, headers, body)
                case _:
                    raise Refusal(501, "NotImplemented", f"this stand-in does not know {parts.path}")

    def date(self) -> str:
        """The Date header."""
        return self._now().strftime("%a, %d %b %Y %H:%M:%S GMT")

    def _scale(self, method: str, scaled: StandInScaled, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
        if method == "PATCH":
            self._patch(scaled, headers.get("content-type", ""), body)
        elif method != "GET":
            raise Refusal(501, "NotImplemented", f"this stand-in does not know {method} of a scale")
        return scale_object(scaled, self.namespace)

    def _patch(self, scaled: StandInScaled, content_type: str, body: bytes) -> None:
        patch = merge_patch(content_type, body)
        if self.before_patch:
            self.set_replicas(scaled, self.before_patch.pop(0))
        self.set_replicas(scaled, patched_replicas(scaled, self.namespace, patch))

    def _list(self, method: str, namespace: str, query: Mapping[str, list[str]]) -> dict[str, Any]:
        if method != "GET":
            raise Refusal(501, "NotImplemented", f"this stand-in does not know {method} of pods")
        unknown = set(query) - {"labelSelector", "limit", "continue"}
        if unknown:
            raise Refusal(501, "NotImplemented", f"this stand-in does not know the parameters {unknown}")
        labels = selected(query.get("labelSelector", [""])[0])
        all_pods = (
            [pod for scaled in self._scaled.values() for pod in scaled.pods] if namespace == self.namespace else []
        )
        found = [pod for pod in all_pods if labels.items() <= pod.labels.items()]
        asked, start = page(query.get("limit", ["0"])[0], query.get("continue", ["0"])[0])
        limit = min(asked or len(found), self.page_max or len(found))
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        items = [pod_object(pod, namespace) for pod in found[start : start + limit]]
        return {"kind": "PodList", "apiVersion": "v1", "metadata": metadata, "items": items}

    def _find(self, group: str, version: str, plural: str, name: str, namespace: str) -> StandInScaled:
        scaled = self._scaled.get((group, version, plural, name)) if namespace == self.namespace else None
        if scaled is None:
            details = described(group, plural, name)
            raise Refusal(404, "NotFound", f'{plural}.{group} "{name}" not found', details=details)
        return scaled

    def _check_token(self, authorization: str) -> None:
        kind, _, token = authorization.partition(" ")
        if kind != "Bearer" or token not in self.tokens:
            raise Refusal(401, "Unauthorized", "Unauthorized")

    def _check_allowed(self, verb: str, group: str, resource: str, name: str, namespace: str) -> None:
        if (verb, group, resource) in self.allowed and namespace == self.namespace:
            return
        plural = resource.partition("/")[0]
        subject = f'{plural}.{group} "{name}"' if group else f"{plural}"
        message = (
            f'{subject} is forbidden: User "system:serviceaccount:{self.namespace}:planner" cannot {verb} resource'
            f' "{resource}" in API group "{group}" in the namespace "{namespace}"'
        )
        raise Refusal(403, "Forbidden", message, details=described(group, plural, name))

    def _touch(self, scaled: StandInScaled) -> None:
        scaled.resource_version = self._next_version()

    def _next_version(self) -> int:
        self._version += 1
        return self._version

    def _now(self) -> datetime:
        return datetime.fromtimestamp(datetime.now(UTC).timestamp() + self.skew_s, UTC)
