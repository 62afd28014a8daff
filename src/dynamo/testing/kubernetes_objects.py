"""What the stand-in for Kubernetes' API holds, and how it shows it."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(slots=True, kw_only=True)
class StandInPod:
    """A pod. Its times are the server's."""

    name: str
    labels: dict[str, str]
    created: datetime
    phase: str = "Pending"
    ready: bool | None = None  # None: there is no such condition yet
    ready_changed: datetime | None = None
    deleted: datetime | None = None


@dataclass(slots=True, kw_only=True)
class StandInScaled:
    """An object with a scale subresource, such as a Deployment."""

    group: str
    version: str
    plural: str
    name: str
    labels: dict[str, str]  # of its pods
    replicas: int
    resource_version: int
    pods: list[StandInPod] = field(default_factory=list)
    made: int = 0  # pods, since the beginning


def scale_object(scaled: StandInScaled, namespace: str) -> dict[str, Any]:
    """autoscaling/v1 Scale; zeros are left out, as Kubernetes does."""
    living = [pod for pod in scaled.pods if pod.deleted is None]
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": scaled.name,
            "namespace": namespace,
            "uid": f"uid-{scaled.name}",
            "resourceVersion": str(scaled.resource_version),
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"replicas": scaled.replicas} if scaled.replicas else {},
        "status": {"replicas": len(living), "selector": ",".join(f"{k}={v}" for k, v in scaled.labels.items())},
    }


def pod_object(pod: StandInPod, namespace: str) -> dict[str, Any]:
    metadata = {
        "name": pod.name,
        "namespace": namespace,
        "labels": pod.labels,
        "creationTimestamp": _time(pod.created),
        **({"deletionTimestamp": _time(pod.deleted)} if pod.deleted else {}),
    }
    status: dict[str, Any] = {"phase": pod.phase}
    if pod.ready is not None and pod.ready_changed is not None:
        ready = {"type": "Ready", "status": str(pod.ready), "lastTransitionTime": _time(pod.ready_changed)}
        status["conditions"] = [{"type": "PodScheduled", "status": "True", "lastTransitionTime": None}, ready]
    return {"metadata": metadata, "spec": {"containers": []}, "status": status}


def _time(time: datetime) -> str:
    """Kubernetes' times have whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")
