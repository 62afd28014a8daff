"""What the stand-in for Kubernetes' API says no to: with the real one's codes and reasons, and mostly in its words.

docs/planner-kubernetes.md says what they were compared with.
"""

import json
from collections.abc import Mapping
from typing import Any

from dynamo.testing.kubernetes_objects import StandInScaled, scale_object

_PATCHES = (
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
)
_INT32_MAX = 2**31 - 1


class Refusal(Exception):  # noqa: N818 - an answer
    """An answer that is no 200: a Status object."""

    def __init__(self, code: int, reason: str, message: str, *, details: Mapping[str, Any] | None = None) -> None:
        """`details`: of what object it is told, and of which fields."""
        super().__init__(message)
        self.code = code
        self.body: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            **({"details": dict(details)} if details is not None else {}),
            "code": code,
        }


def described(group: str, plural: str, name: str) -> dict[str, str]:
    """An object, in a Refusal's details."""
    found = {"name": name, "group": group, "kind": plural}
    return {key: value for key, value in found.items() if value}


def selected(selector: str) -> dict[str, str]:
    """The labels in an equality-based selector; empty for all."""
    labels = {}
    for requirement in filter(None, selector.split(",")):
        if any(character in requirement for character in "!() "):
            raise Refusal(501, "NotImplemented", f"this stand-in does not know the requirement {requirement!r}")
        name, equals, value = requirement.partition("=")
        if not equals or not name:
            raise Refusal(501, "NotImplemented", f"this stand-in does not know the requirement {requirement!r}")
        labels[name] = value.removeprefix("=")
    return labels


def page(limit: str, token: str) -> tuple[int | None, int]:
    """How many items are asked for at most, None for all, and after how many."""
    if not limit.isdecimal():
        raise Refusal(400, "BadRequest", f'strconv.ParseInt: parsing "{limit}": invalid syntax')
    if not token.isdecimal():
        raise Refusal(400, "BadRequest", "continue key is not valid")
    return int(limit) or None, int(token)


def merge_patch(content_type: str, body: bytes) -> dict[str, Any]:
    """What is to be merged into an object; Refusal."""
    kind = content_type.partition(";")[0]
    if kind not in _PATCHES:
        accepted = ", ".join(_PATCHES)
        message = f"the body of the request was in an unknown format - accepted media types include: {accepted}"
        raise Refusal(415, "UnsupportedMediaType", message)
    if kind != "application/merge-patch+json":
        raise Refusal(501, "NotImplemented", f"this stand-in does not know {kind}")
    try:
        patch = json.loads(body)
    except ValueError as error:
        raise Refusal(400, "BadRequest", f"error decoding patch: {error}") from error
    if not isinstance(patch, dict):
        raise Refusal(400, "BadRequest", "error decoding patch: it is no object")
    return patch


def patched_replicas(scaled: StandInScaled, namespace: str, patch: Mapping[str, Any]) -> int:
    """How many replicas a patch of its scale leaves it with; Refusal, in the order of the API server's checks."""
    patched = _merged(scale_object(scaled, namespace), patch)
    replicas = _replicas(patched)
    name = patched["metadata"].get("name", "")
    if name != scaled.name:
        message = f"the name of the object ({name}) does not match the name on the URL ({scaled.name})"
        raise Refusal(400, "BadRequest", message)
    if replicas < 0:
        invalid = f"Invalid value: {replicas}: must be greater than or equal to 0"
        raise Refusal(
            422,
            "Invalid",
            f'Scale.autoscaling "{scaled.name}" is invalid: spec.replicas: {invalid}',
            details=described("autoscaling", "Scale", scaled.name)
            | {"causes": [{"reason": "FieldValueInvalid", "message": invalid, "field": "spec.replicas"}]},
        )
    if patched["metadata"].get("resourceVersion", "") not in ("", str(scaled.resource_version)):
        message = (
            f'Operation cannot be fulfilled on {scaled.plural}.{scaled.group} "{scaled.name}": the object has been'
            " modified; please apply your changes to the latest version and try again"
        )
        raise Refusal(409, "Conflict", message, details=described(scaled.group, scaled.plural, scaled.name))
    return replicas


def _replicas(scale: Mapping[str, Any]) -> int:
    """As the API server decodes it: what is left out is 0, and what has another type makes the whole patch invalid."""
    spec, metadata = scale.get("spec", {}), scale.get("metadata")
    replicas = spec.get("replicas", 0) if isinstance(spec, dict) else None
    texts = metadata.values() if isinstance(metadata, dict) else (None,)
    if type(replicas) is not int or abs(replicas) > _INT32_MAX or not all(isinstance(text, str) for text in texts):
        shown = json.dumps(json.dumps(scale))
        message = f' "" is invalid: patch: Invalid value: {shown}: json: cannot unmarshal it into a Scale'
        raise Refusal(422, "Invalid", message)
    return replicas


def _merged(target: Any, patch: Any) -> Any:
    """By RFC 7386: null takes a field away."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged.get(key), value)
    return merged
