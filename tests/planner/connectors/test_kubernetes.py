"""Scaling Deployments, at a stand-in for the Kubernetes API (see dynamo.testing.kubernetes_api)."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from dynamo.errors import ConfigError, InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.connectors import kubernetes_client
from dynamo.planner.connectors.kubernetes import KubernetesConnector
from dynamo.planner.connectors.kubernetes_config import Cluster, KubernetesConfig
from dynamo.planner.decision import Convert, Scale
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType
from dynamo.testing import within
from dynamo.testing.kubernetes_api import PLANNER_ROLE, KubernetesApi
from dynamo.testing.kubernetes_objects import StandInScaled
from dynamo.testing.kubernetes_server import KubernetesServer

A, P, D = WorkerType.Aggregated, WorkerType.Prefill, WorkerType.Decode


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes_client, "_RETRY_S", (0.01, 0.02))


@pytest.fixture
def server() -> Iterator[KubernetesServer]:
    with KubernetesServer(KubernetesApi()) as server:
        yield server


@pytest.fixture
def api(server: KubernetesServer) -> KubernetesApi:
    return server.api


@pytest.fixture
def decode(api: KubernetesApi) -> StandInScaled:
    """A Deployment that wants two pods, and has them ready."""
    decode = api.add("decode", replicas=2)
    api.reconcile(decode)
    for pod in decode.pods:
        api.set_ready(decode, pod)
    return decode


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("token\n")
    return path


@pytest.fixture
def config(server: KubernetesServer, token: Path) -> KubernetesConfig:
    return KubernetesConfig(workers="decode", namespace="serving", url=server.url, token_file=str(token), timeout_s=5.0)


@pytest.fixture
async def connector(config: KubernetesConfig) -> AsyncIterator[KubernetesConnector]:
    connector = KubernetesConnector(config)
    yield connector
    await connector.close()


def _write(token: Path, text: str) -> None:
    token.write_text(text)


async def test_a_fleet_that_is_ready(connector: KubernetesConnector, decode: StandInScaled) -> None:
    assert await connector.fleets() == {A: Fleet(desired=2, ready=2)}


async def test_more_pods(connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled) -> None:
    await connector.apply(Scale(role=A, workers=3))
    assert decode.replicas == 3
    fleet = (await connector.fleets())[A]
    assert (fleet.desired, fleet.ready, len(fleet.starting_s)) == (3, 2, 1)  # one that has not even been made yet
    api.reconcile(decode)
    api.skew_s = 30.0
    fleet = (await connector.fleets())[A]
    assert (fleet.ready, len(fleet.starting_s)) == (2, 1)
    assert 29 <= fleet.starting_s[0] < 45  # by the server's clock
    api.set_ready(decode, decode.pods[2])
    assert (await connector.fleets())[A] == Fleet(desired=3, ready=3)


async def test_fewer_pods(connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled) -> None:
    await connector.apply(Scale(role=A, workers=1))
    api.reconcile(decode)
    assert (await connector.fleets())[A] == Fleet(desired=1, ready=1, draining=1)
    api.remove(decode, decode.pods[1])
    assert (await connector.fleets())[A] == Fleet(desired=1, ready=1)
    await connector.apply(Scale(role=A, workers=0))
    api.reconcile(decode)
    api.remove(decode, decode.pods[0])
    assert (await connector.fleets())[A] == Fleet(desired=0, ready=0)


async def test_a_pod_that_has_stopped_serving(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    api.skew_s = 1000.0
    api.set_ready(decode, decode.pods[0], ready=False)
    fleet = (await connector.fleets())[A]
    assert fleet.ready == 1
    assert 0 <= fleet.starting_s[0] < 100  # since then, not since it was made
    decode.pods[0].phase = "Failed"  # evicted: another takes its place
    fleet = (await connector.fleets())[A]
    assert (fleet.ready, len(fleet.starting_s), fleet.draining) == (1, 1, 0)


async def test_pods_that_are_never_made(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    """A quota forbids them. For how long they have been missing is known, so that it can be reported."""
    await connector.apply(Scale(role=A, workers=4))
    first = (await connector.fleets())[A].starting_s
    assert len(first) == 2
    second = (await connector.fleets())[A].starting_s
    assert min(second) > max(first)
    await connector.apply(Scale(role=A, workers=2))
    assert (await connector.fleets())[A].starting_s == ()


async def test_somebody_elses_change_is_what_is_desired(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    await connector.fleets()
    api.set_replicas(decode, 5)
    with pytest.raises(UnavailableError, match=r"somebody has set deployments\.apps/decode to 5 replicas"):
        await connector.apply(Scale(role=A, workers=3))
    assert decode.replicas == 5
    assert (await connector.fleets())[A].desired == 5
    await connector.apply(Scale(role=A, workers=3))
    assert decode.replicas == 3


async def test_a_conflict_over_its_status_is_tried_again(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    await connector.fleets()
    api.before_patch = [2, 2]  # the same number, but another resourceVersion
    await connector.apply(Scale(role=A, workers=3))
    assert decode.replicas == 3
    assert sum(request.startswith("PATCH") for request in api.requests) == 3


async def test_a_change_between_read_and_write_is_not_overwritten(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    await connector.fleets()
    api.before_patch = [7]
    with pytest.raises(UnavailableError, match="somebody has set"):
        await connector.apply(Scale(role=A, workers=3))
    assert decode.replicas == 7


async def test_conflicts_without_end(connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled) -> None:
    await connector.fleets()
    api.before_patch = [2] * 100
    with pytest.raises(UnavailableError, match="changed all the time"):
        await connector.apply(Scale(role=A, workers=3))


async def test_nothing_is_written_that_is_so_already(
    connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
) -> None:
    await connector.apply(Scale(role=A, workers=2))
    assert not any(request.startswith("PATCH") for request in api.requests)


async def test_prefill_and_decode(config: KubernetesConfig, api: KubernetesApi, decode: StandInScaled) -> None:
    prefill = api.add("prefill")
    connector = KubernetesConnector(replace(config, workers=None, prefill="prefill", decode="decode"))
    fleets = await connector.fleets()
    assert (fleets[P].desired, fleets[D].desired) == (1, 2)
    await connector.apply(Scale(role=P, workers=2))
    assert (prefill.replicas, decode.replicas) == (2, 2)
    with pytest.raises(InvalidRequestError, match="no aggregated workers"):
        await connector.apply(Scale(role=A, workers=2))
    await connector.close()


async def test_another_kind_of_object(config: KubernetesConfig, api: KubernetesApi) -> None:
    group, version, plural = "leaderworkerset.x-k8s.io", "v1", "leaderworkersets"
    scaled = api.add("big", group=group, version=version, plural=plural)
    api.allowed |= {("get", group, f"{plural}/scale"), ("patch", group, f"{plural}/scale")}
    connector = KubernetesConnector(replace(config, workers=f"{group}/{version}/{plural}/big"))
    await connector.apply(Scale(role=A, workers=2))
    assert scaled.replicas == 2
    await connector.close()


async def test_many_pods(connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled) -> None:
    api.page_max = 2
    api.set_replicas(decode, 7)
    api.reconcile(decode)
    fleet = (await connector.fleets())[A]
    assert (fleet.ready, len(fleet.starting_s)) == (2, 5)


async def test_workers_do_not_turn(connector: KubernetesConnector) -> None:
    assert not connector.converts
    with pytest.raises(UnsupportedFeatureError):
        await connector.apply(Convert(source=D, destination=P, workers=1))


class TestRefusals:
    async def test_no_such_deployment(self, connector: KubernetesConnector) -> None:
        with pytest.raises(UnavailableError, match=r'404: deployments.apps "decode" not found'):
            await connector.fleets()
        with pytest.raises(InvalidRequestError, match="404"):
            await connector.apply(Scale(role=A, workers=1))

    @pytest.mark.parametrize("lacking", sorted(PLANNER_ROLE))
    async def test_not_allowed(
        self, connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled, lacking: tuple[str, str, str]
    ) -> None:
        api.allowed.remove(lacking)
        verb, _, resource = lacking

        async def look_and_scale() -> None:
            await connector.fleets()
            await connector.apply(Scale(role=A, workers=3))

        with pytest.raises((UnavailableError, InvalidRequestError), match=f'cannot {verb} resource "{resource}"'):
            await look_and_scale()

    async def test_wrong_token(self, connector: KubernetesConnector, token: Path, decode: StandInScaled) -> None:
        _write(token, "another")
        with pytest.raises(UnavailableError, match="401: Unauthorized"):
            await connector.fleets()

    async def test_a_negative_number(self, connector: KubernetesConnector, decode: StandInScaled) -> None:
        with pytest.raises(InvalidRequestError, match=r"422.*must be greater than or equal to 0"):
            await connector.apply(Scale(role=A, workers=-1))

    async def test_a_scale_that_does_not_tell_its_pods(
        self, connector: KubernetesConnector, api: KubernetesApi, decode: StandInScaled
    ) -> None:
        decode.labels = {}
        with pytest.raises(UnavailableError, match="does not say which pods"):
            await connector.fleets()
        assert not any("pods" in request for request in api.requests)


class TestNonsense:
    @pytest.mark.parametrize("replicas", [-1, 2_000_000_000])
    async def test_replicas(self, connector: KubernetesConnector, decode: StandInScaled, replicas: int) -> None:
        decode.replicas = replicas
        with pytest.raises(UnavailableError, match="cannot be meant"):
            await connector.fleets()

    @pytest.mark.parametrize("created", ["2024-01-01T00:00:00", "yesterday"])  # the first: by which clock?
    async def test_a_pods_age(
        self,
        connector: KubernetesConnector,
        api: KubernetesApi,
        decode: StandInScaled,
        created: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(api, "_list", lambda *_: {"items": [{"metadata": {"creationTimestamp": created}}]})
        with pytest.raises(UnavailableError, match="as Kubernetes does"):
            await connector.fleets()


class TestOutages:
    async def test_a_token_that_is_renewed(
        self, connector: KubernetesConnector, api: KubernetesApi, token: Path, decode: StandInScaled
    ) -> None:
        await connector.fleets()
        api.tokens = {"renewed"}
        _write(token, "renewed")
        assert (await connector.fleets())[A].ready == 2

    async def test_a_token_that_is_gone(self, config: KubernetesConfig, tmp_path: Path) -> None:
        connector = KubernetesConnector(replace(config, token_file=str(tmp_path / "gone")))
        with pytest.raises(UnavailableError, match="no token for Kubernetes"):
            await connector.fleets()
        await connector.close()

    async def test_a_token_that_is_none(self, connector: KubernetesConnector, token: Path) -> None:
        for text in ("geheim\u00e4", "two\nlines"):
            _write(token, text)
            with pytest.raises(UnavailableError) as failed:
                await connector.fleets()
            assert text not in str(failed.value)

    @pytest.mark.parametrize("status", [429, 500, 503])
    async def test_a_busy_server(
        self, connector: KubernetesConnector, server: KubernetesServer, decode: StandInScaled, status: int
    ) -> None:
        server.failures += [status] * 2
        assert (await connector.fleets())[A].ready == 2
        server.failures += [status] * 3
        with pytest.raises(UnavailableError, match=str(status)):
            await connector.fleets()
        server.failures += [status] * 3
        with pytest.raises(UnavailableError, match=str(status)):
            await connector.apply(Scale(role=A, workers=3))

    async def test_a_server_that_restarts(
        self, connector: KubernetesConnector, server: KubernetesServer, decode: StandInScaled
    ) -> None:
        """The connection that was kept is dead, which is not the call's fault."""
        await connector.fleets()
        await asyncio.to_thread(server.stop)
        server.start()
        assert (await connector.fleets())[A].ready == 2
        await asyncio.to_thread(server.stop)
        server.start()
        await connector.apply(Scale(role=A, workers=3))
        assert decode.replicas == 3

    async def test_a_server_that_is_down(
        self, connector: KubernetesConnector, server: KubernetesServer, decode: StandInScaled
    ) -> None:
        await asyncio.to_thread(server.stop)
        with pytest.raises(UnavailableError, match=server.url):
            await connector.fleets()
        with pytest.raises(UnavailableError):
            await connector.apply(Scale(role=A, workers=3))
        server.start()
        assert (await connector.fleets())[A].ready == 2

    async def test_a_server_that_is_silent(
        self, config: KubernetesConfig, server: KubernetesServer, decode: StandInScaled
    ) -> None:
        connector = KubernetesConnector(replace(config, timeout_s=0.05))
        server.failures += [0] * 3
        with pytest.raises(UnavailableError, match="no answer"):
            await within(connector.fleets())
        await connector.close()


async def test_tls(tmp_path: Path, config: KubernetesConfig) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.crt")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with KubernetesServer(KubernetesApi(), tls=context) as server:
        server.api.add("decode", replicas=0)
        secured = replace(config, url=server.url)
        distrusting = KubernetesConnector(secured)
        with pytest.raises(UnavailableError, match="certificate"):
            await distrusting.fleets()
        await distrusting.close()
        trusting = KubernetesConnector(replace(secured, ca_file=str(tmp_path / "ca.crt")))
        assert await trusting.fleets() == {A: Fleet(desired=0, ready=0)}
        await trusting.close()


class TestWhereItIs:
    def test_in_a_pod(self, tmp_path: Path) -> None:
        (tmp_path / "namespace").write_text("serving")
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"}
        assert Cluster.of(KubernetesConfig(), environ, tmp_path) == Cluster(
            url="https://10.0.0.1:443",
            namespace="serving",
            token_file=tmp_path / "token",
            ca_file=tmp_path / "ca.crt",
        )
        environ["KUBERNETES_SERVICE_HOST"] = "fd00::1"
        assert Cluster.of(KubernetesConfig(), environ, tmp_path).url == "https://[fd00::1]:443"

    def test_elsewhere(self, tmp_path: Path) -> None:
        config = KubernetesConfig(url="http://127.0.0.1:8001/", namespace="n")
        assert Cluster.of(config, {}, tmp_path) == Cluster(
            url="http://127.0.0.1:8001", namespace="n", token_file=None, ca_file=None
        )

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (KubernetesConfig(), "this is no pod"),
            (KubernetesConfig(url="http://localhost:1"), "--kubernetes-namespace"),
            (KubernetesConfig(url="localhost:1", namespace="n"), "--kubernetes-url is written"),
            (KubernetesConfig(url="http://example.org", namespace="n", token_file="t"), "in the clear"),
            (KubernetesConfig(url="HTTP://example.org", namespace="n", token_file="t"), "--kubernetes-url is written"),
            (KubernetesConfig(url="http://localhost:1", namespace="../kube-system"), "is no name of Kubernetes'"),
        ],
    )
    def test_not_said(self, config: KubernetesConfig, reason: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=reason):
            Cluster.of(config, {}, tmp_path)

    @pytest.mark.parametrize(
        ("config", "reason"),
        [
            (KubernetesConfig(), "--kubernetes-workers, or both"),
            (KubernetesConfig(prefill="p"), "--kubernetes-workers, or both"),
            (KubernetesConfig(workers="w", prefill="p", decode="d"), "--kubernetes-workers, or both"),
            (KubernetesConfig(prefill="p", decode="p"), "the same object"),
            (KubernetesConfig(workers="a/b"), "is written NAME or"),
            (KubernetesConfig(workers="../x"), "is written NAME or"),
            (KubernetesConfig(workers="Decode"), "is written NAME or"),
            (KubernetesConfig(workers="decode-"), "is written NAME or"),
            (KubernetesConfig(workers="apps/v1/deployments/.."), "is written NAME or"),
        ],
    )
    def test_fleets_that_cannot_be(self, config: KubernetesConfig, reason: str) -> None:
        with pytest.raises(ConfigError, match=reason):
            config.fleets()
