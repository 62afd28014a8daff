"""The command lines that `dynamo serve` makes: each must be what the process itself understands."""

import dataclasses
import sys
from operator import attrgetter
from typing import Any, TypeVar

import pytest

from dynamo.cli.deployment import Deployment, ServeConfig, worker_name
from dynamo.config import build_parser, from_namespace, parse_known, settings
from dynamo.engines.config import WorkerConfig
from dynamo.engines.echo import EchoConfig
from dynamo.engines.mocker.args import MockerConfig
from dynamo.engines.vllm.args import VllmConfig
from dynamo.errors import ConfigError
from dynamo.frontend.config import FrontendConfig
from dynamo.frontend.overload_config import OverloadConfig
from dynamo.kvbm.config import KvbmOptions, ServiceConfig
from dynamo.llm.migration_config import MigrationConfig
from dynamo.planner.config import PlannerOptions
from dynamo.router.config import KvRouterConfig
from dynamo.router.disagg import DisaggConfig
from dynamo.runtime.config import RuntimeConfig
from dynamo.runtime.discovery.etcd_config import EtcdConfig

T = TypeVar("T")

GIVEN = ServeConfig(
    engine="mocker",
    workers=2,
    namespace="mine",
    discovery_backend="etcd",
    file_kv="/tmp/kv",
    etcd=EtcdConfig(
        endpoints="https://a:1,https://b:2",
        auth_username="user",
        auth_password="hush",
        auth_ca="/tmp/ca.pem",
        auth_client_cert="/tmp/cert.pem",
        auth_client_key="/tmp/key.pem",
        lease_ttl_s=7,
    ),
    event_plane="nats",
    nats_server="nats://me:hush@broker",
    request_plane_secret_file="/tmp/plane-secret",
    request_plane_tls_cert="/tmp/plane.pem",
    request_plane_tls_key="/tmp/plane.key",
    request_plane_tls_ca="/tmp/plane-ca.pem",
    rpc_host="127.0.0.2",
    rpc_port=5000,
    rpc_advertise="gate:8000",
    system_host="127.0.0.3",
    system_port=6000,
    shutdown_timeout_s=5.5,
    heartbeat_interval_s=2.5,
    stall_timeout_s=7.5,
    canary_interval_s=11.0,
    engine_stall_timeout_s=61.0,
    http_host="127.0.0.4",
    http_port=7000,
    router_mode="random",
    router_service=True,
    body_limit_mb=1.5,
    access_log=False,
    keep_alive_s=9,
    client_timeout_s=8.0,
    connections_max=15,
    request_timeout_s=16.0,
    tls_cert_path="/tmp/tls.pem",
    tls_key_path="/tmp/tls.key",
    api_keys_file="/tmp/keys.toml",
    disagg=DisaggConfig(
        conditional_disagg=True,
        disagg_policy="length",
        max_local_prefill_length=7,
        max_local_prefill_ratio=0.25,
        max_prefill_queue_tokens=8,
    ),
    migration=MigrationConfig(migration_limit=4, migration_wait_s=8.5, inter_token_timeout_s=7.5),
    overload=OverloadConfig(
        ttft_limit_s=2.5,
        max_inflight=11,
        max_queued_tokens=12,
        active_decode_blocks_threshold=0.9,
        active_prefill_tokens_threshold=13,
        admission_queue_size=14,
        admission_queue_timeout_s=1.5,
        overload_status=529,
    ),
    kv_router=KvRouterConfig(
        overlap_score_weight=0.5,
        host_cache_hit_weight=0.4,
        disk_cache_hit_weight=0.3,
        prefill_load_scale=2.0,
        router_temperature=0.1,
        use_kv_events=False,
        router_ttl_secs=9.0,
        router_max_tree_size=1000,
        router_queue_threshold=3.0,
        router_queue_policy="wspt",
        router_queue_size=10,
        router_replica_sync=True,
        router_session_affinity="hard",
        router_session_ttl_secs=5.0,
        router_active_request_expiry_secs=60.0,
    ),
)
KVBM = KvbmOptions(
    host_gb=1.5,
    disk_gb=20.0,
    disk_dir="/tmp/blocks",
    object_url="s3://bucket/prefix",
    peers=True,
    policy="lru",
    disk_filter="frequency",
    disk_offload="on-evict",
    onboard_timeout_ms=250,
    linger_s=7.5,
    socket="/tmp/kvbm/s",
    start=False,
)
PLANNER = PlannerOptions(
    ttft_ms=300.0,
    itl_ms=30.0,
    min_prefill_workers=2,
    max_prefill_workers=5,
    min_decode_workers=3,
    max_decode_workers=6,
    gpu_budget=70,
    prefill_gpus=2,
    decode_gpus=4,
    mode="load",
    predictor="kalman",
    interval_s=1.5,
    throughput_interval_s=60.0,
    scale_down_delay_s=9.0,
    start_timeout_s=99.0,
    convert_roles=True,
    profile="/tmp/profile.json",
    advisory=True,
)
CANNOT_DIFFER = {"request_plane"}  # from its default: there is but one for several processes
IN_THE_ENVIRONMENT = {"etcd.auth_password", "nats_server"}
NOT_THE_FRONTENDS = {"rpc_port", "rpc_advertise", "system_host", "system_port"}  # workers listen there


def commands(config: ServeConfig, *worker_flags: str) -> dict[str, list[str]]:
    """Of every process that there is at first."""
    deployment = deployed(config, *worker_flags)
    made = deployment.services()
    roles = deployment.workers()
    for position, role in enumerate(roles):
        made[worker_name(role, roles[: position + 1].count(role))] = deployment.worker(role, position)
    return made


def deployed(config: ServeConfig, *worker_flags: str) -> Deployment:
    return Deployment(config=config, model_name="m", model_dir="/models/m", worker_flags=worker_flags)


def parsed(cls: type[T], command: list[str]) -> T:
    return from_namespace(cls, build_parser(cls, prog="test").parse_args(command[3:]), environ={})


def test_given_differs_from_every_default() -> None:
    for setting in settings(FrontendConfig):
        if setting.name not in CANNOT_DIFFER:
            assert attrgetter(setting.name)(GIVEN) != setting.default, setting.name


def test_the_frontend_gets_every_flag() -> None:
    made = commands(GIVEN)
    assert list(made) == ["frontend", "worker-1", "worker-2"]
    assert made["frontend"][1:3] == ["-m", "dynamo.frontend"]
    config = parsed(FrontendConfig, made["frontend"])
    for setting in settings(FrontendConfig):
        if setting.name not in NOT_THE_FRONTENDS | IN_THE_ENVIRONMENT:
            assert attrgetter(setting.name)(config) == attrgetter(setting.name)(GIVEN), setting.name


@pytest.mark.parametrize(("engine", "cls"), [("mocker", MockerConfig), ("echo", EchoConfig), ("vllm", VllmConfig)])
def test_workers_get_the_flags_that_concern_them(engine: str, cls: type[WorkerConfig]) -> None:
    made = commands(dataclasses.replace(GIVEN, engine=engine))
    for position, command in enumerate((made["worker-1"], made["worker-2"])):
        assert command[1:3] == ["-m", f"dynamo.{engine}"]
        config = parsed(cls, command)
        assert config.namespace == "mine"
        assert config.file_kv == "/tmp/kv"
        assert config.etcd == dataclasses.replace(GIVEN.etcd, auth_password=None)
        assert config.shutdown_timeout_s == 5.5
        assert config.event_plane == "nats"
        assert (config.rpc_host, config.rpc_port) == ("127.0.0.2", 5000 + position)
        assert config.advertised() == ("gate", 8000 + position)
        for name in ("secret_file", "tls_cert", "tls_key", "tls_ca"):
            assert getattr(config, f"request_plane_{name}") == getattr(GIVEN, f"request_plane_{name}")
        assert (config.system_host, config.system_port) == ("127.0.0.3", 6000 + position)
        assert "m" in command
        assert "/models/m" in command


def test_no_command_line_tells_a_secret() -> None:
    assert deployed(GIVEN).environ() == {"NATS_SERVER": "nats://me:hush@broker", "ETCD_AUTH_PASSWORD": "hush"}
    assert not any("hush" in argument for command in commands(GIVEN).values() for argument in command)


def test_a_further_worker() -> None:
    (interpreter, *plain) = deployed(
        ServeConfig(engine="mocker", http_port=9000), "--block-size", "16"
    ).further_worker()
    assert interpreter == sys.executable
    expected = "-m dynamo.mocker --model /models/m --model-name m --namespace serve-9000 --block-size 16"
    assert plain == expected.split()
    command = deployed(GIVEN).further_worker()
    config = parsed(MockerConfig, command)
    assert (config.namespace, config.file_kv, config.stall_timeout_s) == ("mine", "/tmp/kv", 7.5)
    assert (config.rpc_port, config.system_port) == (0, -1)  # those are taken
    assert not any("hush" in argument for argument in command)
    apart = deployed(ServeConfig(engine="mocker", prefill_workers=1, decode_workers=1)).further_worker()
    assert parsed(MockerConfig, apart).worker_type.value == "decode"


def test_ports_that_need_not_differ() -> None:
    config = parsed(EchoConfig, commands(ServeConfig(engine="echo", workers=3))["worker-3"])
    assert (config.rpc_port, config.system_port) == (0, -1)


def test_prefill_and_decode_workers() -> None:
    made = commands(ServeConfig(engine="mocker", prefill_workers=1, decode_workers=2, system_port=6000))
    assert list(made) == ["frontend", "prefill-1", "decode-1", "decode-2"]
    configs = [parsed(MockerConfig, command) for command in list(made.values())[1:]]
    assert [config.worker_type.value for config in configs] == ["prefill", "decode", "decode"]
    assert [config.system_port for config in configs] == [6000, 6001, 6002]
    assert str(configs[0].endpoint_id()).endswith(".prefill.generate")
    assert str(configs[1].endpoint_id()).endswith(".backend.generate")
    beside = commands(ServeConfig(engine="mocker", workers=1, decode_workers=1))
    assert list(beside) == ["frontend", "worker-1", "decode-1"]
    assert "--disaggregation-mode" not in beside["worker-1"]  # engines without such roles do not know it


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"prefill_workers": 1}, "somebody has to go on"),
        ({"prefill_workers": -1, "decode_workers": 1}, "at least 0"),
        ({"decode_workers": -1}, "at least 0"),
        ({"workers": 0}, "at least 1"),
        ({"engine": "echo", "decode_workers": 1}, "echo cannot do"),
        ({"engine": "echo", "kvbm": KvbmOptions(host_gb=1)}, "no KV cache"),
        ({"planner": PlannerOptions(ttft_ms=3)}, "--ttft-ms needs --planner"),
        ({"with_planner": True, "workers": 1, "decode_workers": 1}, "scales either --workers, or"),
        ({"with_planner": True, "workers": 65}, "65 --workers is more"),
        ({"with_planner": True, "planner": PlannerOptions(max_decode_workers=257)}, "and one host 256"),
        ({"with_planner": True, "prefill_workers": 65, "decode_workers": 1}, "65 --prefill-workers is more"),
        (
            {"with_planner": True, "prefill_workers": 1, "decode_workers": 1, "planner": PlannerOptions(gpu_budget=1)},
            "the fewest prefill and decode workers have 2 GPUs",
        ),
        (
            {"with_planner": True, "workers": 3, "planner": PlannerOptions(gpu_budget=5, decode_gpus=2)},
            "to begin with, the workers have 6 GPUs",
        ),
        ({"with_planner": True, "prefill_workers": 1, "decode_workers": 65}, "65 --decode-workers is more"),
        (
            {
                "engine": "vllm",
                "with_planner": True,
                "planner": PlannerOptions(convert_roles=True),
                "kvbm": KvbmOptions(host_gb=1),
                "decode_workers": 2,
            },
            "--convert-roles and --kvbm-host-gb",
        ),
    ],
)
def test_workers_that_cannot_be(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        ServeConfig(**({"engine": "mocker"} | options))


def test_a_block_manager_of_its_own() -> None:
    for setting in settings(KvbmOptions):
        assert attrgetter(setting.name)(KVBM) != setting.default, setting.name
    made = commands(dataclasses.replace(GIVEN, engine="vllm", kvbm=KVBM))
    assert list(made) == ["frontend", "kvbm", "worker-1", "worker-2"]
    assert made["kvbm"][1:3] == ["-m", "dynamo.kvbm"]
    service = parsed(ServiceConfig, made["kvbm"])
    assert (service.socket_path, service.kvbm_linger_s) == (KVBM.socket_path, None)
    assert (service.namespace, service.rpc_port) == ("mine", 0)
    workers = [parsed(VllmConfig, made[name]) for name in ("worker-1", "worker-2")]
    assert [process.system_port for process in (service, *workers)] == [6000, 6001, 6002]
    assert parsed(VllmConfig, made["worker-2"]).kvbm == KVBM
    assert (
        parsed(VllmConfig, deployed(dataclasses.replace(GIVEN, engine="vllm", kvbm=KVBM)).further_worker()).kvbm == KVBM
    )


def test_block_managers_of_one_host_stay_apart() -> None:
    sockets = set()
    for port in (8000, 9000):
        made = commands(ServeConfig(http_port=port, kvbm=KvbmOptions(host_gb=1)))
        options = parsed(VllmConfig, made["worker-1"]).kvbm
        assert options.socket_path == parsed(ServiceConfig, made["kvbm"]).socket_path
        assert not options.start, "the deployment does"
        sockets.add(options.socket_path)
    assert len(sockets) == 2


def test_a_simulated_engine_simulates_its_tiers() -> None:
    made = commands(ServeConfig(engine="mocker", kvbm=KvbmOptions(host_gb=1)))
    assert list(made) == ["frontend", "worker-1"]
    assert parsed(MockerConfig, made["worker-1"]).kvbm.host_gb == 1


def test_a_planner_of_its_own() -> None:
    for setting in settings(PlannerOptions):
        assert attrgetter(setting.name)(PLANNER) != setting.default, setting.name
    made = commands(dataclasses.replace(GIVEN, with_planner=True, planner=PLANNER))
    assert list(made) == ["frontend", "planner", "worker-1", "worker-2"]
    assert made["planner"][1:5] == ["-m", "dynamo.planner", "--connector", "local"]
    runtime, unknown = parse_known(RuntimeConfig, made["planner"][5:], prog="test", environ={})
    assert (runtime.namespace, runtime.file_kv, runtime.stall_timeout_s) == ("mine", "/tmp/kv", 7.5)
    assert (runtime.rpc_port, runtime.system_host, runtime.system_port) == (5000, "127.0.0.3", 6000)
    assert parse_known(PlannerOptions, unknown, prog="test", environ={}) == (PLANNER, [])
    workers = [parsed(MockerConfig, made[name]) for name in ("worker-1", "worker-2")]
    assert [(worker.rpc_port, worker.system_port) for worker in workers] == [(5001, 6001), (5002, 6002)]


@pytest.mark.parametrize("engine", ["mocker", "vllm"])
def test_workers_whose_role_may_change(engine: str) -> None:
    config = ServeConfig(engine=engine, decode_workers=2, prefill_workers=1)
    changing = dataclasses.replace(config, with_planner=True, planner=PlannerOptions(convert_roles=True))
    assert ("--changeable-role" in commands(changing)["prefill-1"]) is (engine == "vllm")
    assert deployed(changing).converts
    assert deployed(config).converts is (engine == "mocker")
    assert deployed(config, "--changeable-role").converts
    together = dataclasses.replace(changing, decode_workers=0, prefill_workers=0)
    assert "--changeable-role" not in commands(together)["worker-1"]
    assert not deployed(together).converts


def test_how_to_look_at_the_planner() -> None:
    plain = deployed(ServeConfig(engine="mocker", http_port=9000, with_planner=True)).planner_status()
    assert plain == ["dynamo", "planner", "status", "--namespace", "serve-9000"]
    command = deployed(GIVEN).planner_status()
    assert "--file-kv" in command
    assert not any("hush" in argument for argument in command)


def test_the_supervisor_takes_no_ports_of_workers() -> None:
    control = deployed(GIVEN).control()
    assert (control.namespace, control.file_kv, control.etcd) == ("mine", "/tmp/kv", GIVEN.etcd)
    assert (control.rpc_port, control.advertised(), control.system_port) == (0, None, -1)


def test_own_flags_of_the_workers_come_last() -> None:
    made = commands(ServeConfig(engine="mocker"), "--block-size", "16")
    assert parsed(MockerConfig, made["worker-1"]).block_size == 16
    assert "--block-size" not in made["frontend"]


def test_deployments_of_one_host_stay_apart() -> None:
    namespaces = set()
    for port in (8000, 9000, 0):
        made = commands(ServeConfig(engine="echo", http_port=port))
        namespace = parsed(FrontendConfig, made["frontend"]).namespace
        assert parsed(EchoConfig, made["worker-1"]).namespace == namespace
        namespaces.add(namespace)
    assert len(namespaces - {None}) == 3
