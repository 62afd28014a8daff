"""The manifests in docs/planner-kubernetes.md."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.config import build_parser, from_namespace
from dynamo.engines.vllm.args import VllmConfig
from dynamo.planner.process_config import PlannerConfig
from dynamo.protocols.model_card import WorkerType
from dynamo.testing.kubernetes_api import PLANNER_ROLE

PAGE = Path(__file__).parents[3] / "docs" / "planner-kubernetes.md"


@pytest.fixture(scope="module")
def manifests() -> dict[tuple[str, str], Any]:
    """By kind and name."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    objects = [msgspec.yaml.decode(text) for block in blocks for text in block.split("---\n")]
    return {(made["kind"], made["metadata"]["name"]): made for made in objects}


def container(deployment: Any) -> Any:
    spec = deployment["spec"]
    assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items()
    (found,) = spec["template"]["spec"]["containers"]
    return found


def test_the_role_is_the_one_that_the_tests_have(manifests: dict[tuple[str, str], Any]) -> None:
    allowed = {
        (verb, group, resource)
        for rule in manifests["Role", "planner"]["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed == PLANNER_ROLE


def test_the_planners_command(manifests: dict[tuple[str, str], Any]) -> None:
    planner = container(manifests["Deployment", "planner"])
    assert planner["command"] == ["python", "-m", "dynamo.planner"]
    parser = build_parser(PlannerConfig, prog="test")
    config = from_namespace(PlannerConfig, parser.parse_args(planner["args"]), environ={})
    names = {scaled.name for scaled in config.kubernetes.fleets().values()}
    (rule, _) = manifests["Role", "planner"]["rules"]
    assert names == set(rule["resourceNames"])
    assert planner["ports"][0]["containerPort"] == config.system_port


def test_workers_have_the_time_to_drain(manifests: dict[tuple[str, str], Any]) -> None:
    deployment = manifests["Deployment", "decode"]
    assert "replicas" not in deployment["spec"]
    worker = container(deployment)
    parser = build_parser(VllmConfig, prog="test")
    config = from_namespace(VllmConfig, parser.parse_args(worker["args"]), environ={})
    assert config.worker_type is WorkerType.Decode
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > config.shutdown_timeout_s + 10
    assert worker["readinessProbe"]["httpGet"] == {"path": "/health", "port": config.system_port}
