"""That the stand-in for Kubernetes' API says no where the real one does, and how."""

import json
from typing import Any

import pytest

from dynamo.testing.kubernetes_api import KubernetesApi
from dynamo.testing.kubernetes_checks import Refusal

MERGE = "application/merge-patch+json"
SCALE = "/apis/apps/v1/namespaces/serving/deployments/decode/scale"
NO_SCALE = ' "" is invalid: patch: Invalid value'
PODS = "/api/v1/namespaces/serving/pods"


@pytest.fixture
def api() -> KubernetesApi:
    api = KubernetesApi()
    api.reconcile(api.add("decode", replicas=2))
    return api


def call(api: KubernetesApi, method: str, target: str, body: Any = None, content_type: str = MERGE) -> dict[str, Any]:
    headers = {"authorization": "Bearer token", "content-type": content_type}
    return api.answer(method, target, headers, body if isinstance(body, bytes) else json.dumps(body).encode())


def test_a_scale(api: KubernetesApi) -> None:
    scale = call(api, "GET", SCALE)
    assert (scale["kind"], scale["apiVersion"]) == ("Scale", "autoscaling/v1")
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 2, "selector": "app=decode"}
    assert isinstance(scale["metadata"]["resourceVersion"], str)


@pytest.mark.parametrize(
    ("patch", "replicas"),
    [
        ({"spec": {"replicas": 5}}, 5),
        ({"spec": {"replicas": None}}, 0),
        ({"spec": None}, 0),
        ({}, 2),
        ({"unknown": 1, "spec": {"replicas": 3}}, 3),
        ({"metadata": {"resourceVersion": None}, "spec": {"replicas": 4}}, 4),
    ],
)
def test_merge_patches(api: KubernetesApi, patch: dict[str, Any], replicas: int) -> None:
    assert call(api, "PATCH", SCALE, patch, f"{MERGE}; charset=utf-8")["spec"].get("replicas", 0) == replicas


@pytest.mark.parametrize(
    ("patch", "code", "reason", "message"),
    [
        ({"spec": {"replicas": "3"}}, 422, "Invalid", NO_SCALE),
        ({"spec": {"replicas": 2**31}}, 422, "Invalid", NO_SCALE),
        ({"spec": {"replicas": True}}, 422, "Invalid", NO_SCALE),
        ({"spec": 3}, 422, "Invalid", NO_SCALE),
        ({"metadata": 3}, 422, "Invalid", NO_SCALE),
        ({"spec": {"replicas": -1}}, 422, "Invalid", 'Scale.autoscaling "decode" is invalid: spec.replicas: '),
        ({"metadata": {"name": "x"}}, 400, "BadRequest", "the name of the object (x) does not match"),
        ({"metadata": {"resourceVersion": "1"}}, 409, "Conflict", 'Operation cannot be fulfilled on deployments.apps'),
        ([], 400, "BadRequest", "error decoding patch"),
        (b"{", 400, "BadRequest", "error decoding patch"),
    ],
)  # fmt: skip
def test_patches_that_are_refused(api: KubernetesApi, patch: Any, code: int, reason: str, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        call(api, "PATCH", SCALE, patch)
    status = refused.value.body
    assert (status["kind"], status["status"], status["code"], status["reason"]) == ("Status", "Failure", code, reason)
    assert status["message"].startswith(message)
    assert call(api, "GET", SCALE)["spec"] == {"replicas": 2}


@pytest.mark.parametrize(
    ("content_type", "code"),
    [("application/json", 415), ("", 415), ("application/strategic-merge-patch+json", 501)],
)
def test_other_kinds_of_patches(api: KubernetesApi, content_type: str, code: int) -> None:
    with pytest.raises(Refusal) as refused:
        call(api, "PATCH", SCALE, {}, content_type)
    assert refused.value.code == code


def test_of_what_object_it_is_told(api: KubernetesApi) -> None:
    with pytest.raises(Refusal) as refused:
        call(api, "GET", SCALE.replace("decode", "x"))
    assert refused.value.body["details"] == {"name": "x", "group": "apps", "kind": "deployments"}


def test_pages_of_pods(api: KubernetesApi) -> None:
    first = call(api, "GET", f"{PODS}?labelSelector=app%3Ddecode&limit=1")
    token = first["metadata"]["continue"]
    second = call(api, "GET", f"{PODS}?labelSelector=app%3Ddecode&limit=1&continue={token}")
    assert "continue" not in second["metadata"]
    names = [pod["metadata"]["name"] for listed in (first, second) for pod in listed["items"]]
    assert names == ["decode-1", "decode-2"]
    assert len(call(api, "GET", f"{PODS}?limit=0")["items"]) == 2
    assert call(api, "GET", f"{PODS}?labelSelector=app%3Dx")["items"] == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("limit=x", 400),
        ("continue=x", 400),
        ("labelSelector=app%21%3Dx", 501),
        ("labelSelector=app+in+%28a%29", 501),
        ("fieldSelector=a%3Db", 501),
    ],
)
def test_lists_that_it_does_not_know(api: KubernetesApi, query: str, code: int) -> None:
    with pytest.raises(Refusal) as refused:
        call(api, "GET", f"{PODS}?{query}")
    assert refused.value.code == code
