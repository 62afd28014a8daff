"""Workers in Kubernetes: each fleet is a Deployment, or another object with a scale, and its pods are the workers."""

import asyncio
from collections.abc import Mapping, Sequence

from dynamo.errors import InvalidRequestError, UnavailableError, UnsupportedFeatureError
from dynamo.planner.config import WORKERS_MAX
from dynamo.planner.connectors.kubernetes_client import KubernetesClient, KubernetesError
from dynamo.planner.connectors.kubernetes_config import Cluster, KubernetesConfig, ScaledObject
from dynamo.planner.connectors.kubernetes_messages import PatchedMeta, Scale, ScalePatch, ScaleSpec
from dynamo.planner.connectors.kubernetes_pods import Pods
from dynamo.planner.decision import Action, Convert
from dynamo.planner.observation import Fleet
from dynamo.protocols.model_card import WorkerType

_CONFLICTS_MAX = 5  # in a row, until a change is left to the next decision


class KubernetesConnector:
    """Reads and changes the scale of a fleet's object; which pod ends then is Kubernetes' to decide."""

    converts = False  # a pod belongs to the one object that has made it
    problems: Sequence[str] = ()  # those that there are show in the fleets: pods that do not become ready

    def __init__(self, config: KubernetesConfig, cluster: Cluster | None = None) -> None:
        """Raises ConfigError for fleets that are not named, and a cluster that cannot be reached by `config`."""
        self._objects = config.fleets()
        self._cluster = cluster or Cluster.of(config)
        self._client = KubernetesClient(self._cluster, timeout_s=config.timeout_s)
        self._seen: dict[WorkerType, int] = {}  # replicas that were wanted when we have last looked
        self._short_since_s: dict[WorkerType, float] = {}  # since when there are fewer pods than that

    async def fleets(self) -> Mapping[WorkerType, Fleet]:
        try:
            return {role: await self._fleet(role, scaled) for role, scaled in self._objects.items()}
        except KubernetesError as error:
            raise UnavailableError(str(error)) from error

    async def apply(self, action: Action) -> None:
        """What somebody else has set since fleets() stays; UnavailableError says so."""
        if isinstance(action, Convert):
            raise UnsupportedFeatureError("a pod of Kubernetes cannot turn from one role to another")
        scaled = self._objects.get(action.role)
        if scaled is None:
            raise InvalidRequestError(f"there are no {action.role.value} workers here", param="role")
        try:
            await self._set(action.role, scaled, action.workers)
        except KubernetesError as error:
            if error.is_refusal:
                raise InvalidRequestError(str(error)) from error
            raise UnavailableError(str(error)) from error

    async def close(self) -> None:
        await self._client.close()

    async def _set(self, role: WorkerType, scaled: ScaledObject, workers: int) -> None:
        path = scaled.path(self._cluster.namespace)
        for _ in range(_CONFLICTS_MAX):
            scale = await self._client.scale(path)
            if scale.spec.replicas == workers:
                break
            if scale.spec.replicas != self._seen.get(role, scale.spec.replicas):
                raise UnavailableError(f"somebody has set {scaled} to {scale.spec.replicas} replicas meanwhile")
            patch = ScalePatch(PatchedMeta(scale.metadata.resource_version), ScaleSpec(workers))
            try:
                await self._client.patch_scale(path, patch)
                break
            except KubernetesError as error:
                if not error.is_conflict:  # which its status gives cause to as well, whenever a pod becomes ready
                    raise
        else:
            raise UnavailableError(f"{scaled} is changed all the time: {_CONFLICTS_MAX} tries have come too late")
        self._seen[role] = workers

    async def _fleet(self, role: WorkerType, scaled: ScaledObject) -> Fleet:
        scale = await self._client.scale(scaled.path(self._cluster.namespace))
        if not scale.status.selector:  # which would be all pods there are
            raise KubernetesError(f"the scale of {scaled} does not say which pods are its own")
        if not 0 <= scale.spec.replicas <= WORKERS_MAX:
            raise KubernetesError(f"{scaled} has {scale.spec.replicas} replicas, which cannot be meant")
        self._seen[role] = scale.spec.replicas
        found, now = await self._client.pods(scale.status.selector)
        pods = Pods.of(found, now)
        return Fleet(
            desired=scale.spec.replicas,
            ready=pods.ready,
            starting_s=(*self._missing_s(role, scale, pods), *pods.starting_s),
            draining=pods.draining,
        )

    def _missing_s(self, role: WorkerType, scale: Scale, pods: Pods) -> tuple[float, ...]:
        """For how long there have been fewer pods than wanted, for each that is missing: a quota may forbid them."""
        missing = scale.spec.replicas - pods.ready - len(pods.starting_s)
        now_s = asyncio.get_running_loop().time()
        if missing <= 0:
            self._short_since_s.pop(role, None)
            return ()
        return (now_s - self._short_since_s.setdefault(role, now_s),) * missing
