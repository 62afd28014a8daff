"""Asking a worker process of this host to go on in another role."""

import asyncio
from typing import Protocol

from dynamo.errors import DynamoError, InvalidRequestError, UnavailableError
from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import ROLE_COMPONENT, ROLE_ENDPOINT, RoleRequest, WorkerRole
from dynamo.runtime.client import Client
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.instance import EndpointId
from dynamo.runtime.request_plane.tcp import host_id

_ANSWER_S = 5.0  # how long a worker may take to say who it is


class WorkerRoles(Protocol):
    """Whoever can reach workers by their process id."""

    async def change(self, pid: int, role: WorkerType) -> None:
        """Returns when the process serves in that role, its requests under way finished.

        Raises InvalidRequestError when it refuses, another DynamoError when it cannot be told what came of it.
        """
        ...


class EndpointWorkerRoles:
    """By the endpoint that each of a namespace's workers has for it."""

    def __init__(self, runtime: DistributedRuntime, namespace: str) -> None:
        self._client: Client = runtime.client(EndpointId(namespace, ROLE_COMPONENT, ROLE_ENDPOINT), WorkerRole)

    async def change(self, pid: int, role: WorkerType) -> None:
        found = [i for i in self._client.instances() if i.address.host_id in (None, host_id())]
        states = await asyncio.gather(*(self._state(i.instance_id) for i in found))
        own = [i.instance_id for i, state in zip(found, states, strict=True) if state is not None and state.pid == pid]
        if not own:
            raise UnavailableError(f"process {pid} does not say what it can do")
        asked = (self._client.ask(RoleRequest(role=role), instance_id) for instance_id in own)
        answers = await asyncio.gather(*asked, return_exceptions=True)
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if len(errors) == len(own) and all(isinstance(error, InvalidRequestError) for error in errors):
            raise errors[0]
        if errors:
            raise UnavailableError(f"{len(errors)} of {len(own)} workers of process {pid}: {errors[0]}") from errors[0]

    async def _state(self, instance_id: int) -> WorkerRole | None:
        try:
            async with asyncio.timeout(_ANSWER_S):
                state: WorkerRole = await self._client.ask(RoleRequest(), instance_id)
        except (DynamoError, TimeoutError):
            return None  # another worker's affair
        return state
