"""What the stand-in for Kubernetes' API says no to, in the words of the real one."""

import json
from collections.abc import Mapping
from typing import Any

from dynamo.testing.kubernetes_objects import StandInScaled

_PATCHES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


class Refusal(Exception):  # noqa: N818 - an answer
    """An answer that is no 200: a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
        }


def selected(selector: str) -> dict[str, str]:
    """The labels in an equality-based selector; empty for all."""
    labels = {}
    for requirement in filter(None, selector.split(",")):
        name, equals, value = requirement.partition("=")
        if not equals or not name:
            raise Refusal(400, "BadRequest", f"unable to parse requirement: {requirement!r}")
        labels[name] = value.removeprefix("=")
    return labels


def merge_patch(content_type: str, body: bytes) -> dict[str, Any]:
    """What is to be merged into an object; Refusal."""
    if content_type not in _PATCHES:
        accepted = ", ".join(_PATCHES)
        message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
        raise Refusal(415, "UnsupportedMediaType", message)
    if content_type != "application/merge-patch+json":
        raise Refusal(501, "NotImplemented", f"this stand-in does not know {content_type}")
    try:
        patch = json.loads(body)
    except ValueError as error:
        raise Refusal(400, "BadRequest", f"error decoding patch: {error}") from error
    if not isinstance(patch, dict):
        raise Refusal(400, "BadRequest", "error decoding patch: it is no object")
    return patch


def patched_replicas(scaled: StandInScaled, patch: Mapping[str, Any]) -> int:
    """How many replicas a patch of its scale leaves it with; Refusal."""
    described = f'{scaled.plural}.{scaled.group} "{scaled.name}"'
    metadata = patch.get("metadata", {})
    if metadata.get("name", scaled.name) != scaled.name:
        raise Refusal(400, "BadRequest", "the name of the object does not match the name on the URL")
    if metadata.get("resourceVersion", str(scaled.resource_version)) != str(scaled.resource_version):
        message = (
            f"Operation cannot be fulfilled on {described}: the object has been modified; "
            "please apply your changes to the latest version and try again"
        )
        raise Refusal(409, "Conflict", message)
    replicas = patch.get("spec", {}).get("replicas", scaled.replicas)
    if type(replicas) is not int:
        raise Refusal(400, "BadRequest", "Scale in version v1 cannot be handled: spec.replicas is no int32")
    if replicas < 0:
        invalid = f"spec.replicas: Invalid value: {replicas}: must be greater than or equal to 0"
        raise Refusal(422, "Invalid", f"{described} is invalid: {invalid}")
    return replicas
