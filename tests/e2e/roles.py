"""Asking the workers of a deployment for their roles, as a planner does."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager

from dynamo.protocols.model_card import WorkerType
from dynamo.protocols.role import ROLE_COMPONENT, ROLE_ENDPOINT, RoleRequest, WorkerRole
from dynamo.runtime.client import Client
from dynamo.testing import Program, within
from dynamo.testing.deployment import Deployment


class Roles:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def ask(
        self,
        instance_id: int,
        role: WorkerType | None = None,
        *,
        force: bool = False,
        drain_timeout_s: float | None = None,
        timeout_s: float = 30.0,
    ) -> WorkerRole:
        """Raises what the worker answers instead."""
        request = RoleRequest(role=role, force=force, drain_timeout_s=drain_timeout_s)

        async def answer() -> WorkerRole:
            async with aclosing(await self._client.direct(request, instance_id, annotated=False)) as answers:
                result: WorkerRole = await anext(answers)
            return result

        return await within(answer(), timeout_s)

    async def ids(self) -> dict[int, int]:
        """The instance ids of all workers that have a role, by their processes'."""
        return {(await self.ask(instance_id)).pid: instance_id for instance_id in self._client.instance_ids()}

    async def until(self, count: int) -> None:
        """Waits until so many are known."""
        while len(self._client.instance_ids()) != count:
            await within(self._client.wait_for_change())

    async def id_of(self, program: Program) -> int:
        return (await self.ids())[program.pid]


@asynccontextmanager
async def roles(deployment: Deployment, namespace: str = "dynamo") -> AsyncIterator[Roles]:
    runtime = deployment.runtime()
    try:
        endpoint = runtime.endpoint(f"{namespace}.{ROLE_COMPONENT}.{ROLE_ENDPOINT}")
        yield Roles(await endpoint.client(response_type=WorkerRole))
    finally:
        await runtime.close()
