"""A started engine, and all that others see of it."""

from dataclasses import replace

from dynamo.engines.base import EngineInfo, LLMEngine
from dynamo.engines.config import DisaggregatedWorkerConfig, WorkerConfig
from dynamo.engines.engine_endpoint import EngineEndpoint
from dynamo.engines.vitals import EngineVitals
from dynamo.llm.register import register_model, unregister_model
from dynamo.protocols.generation import PreprocessedRequest
from dynamo.protocols.model_card import ModelInput, ModelType, WorkerType
from dynamo.router.load_publisher import serve_load
from dynamo.router.publisher import KvEventFeed
from dynamo.runtime.distributed import DistributedRuntime
from dynamo.runtime.event_plane.base import Part


class ServedEngine:
    """Its endpoints and its model's entry: under one role at a time, and under one instance id in all of them."""

    def __init__(
        self,
        runtime: DistributedRuntime,
        config: WorkerConfig,
        engine: LLMEngine,
        info: EngineInfo,
        kv_events: KvEventFeed | None,
        *,
        name: str,
        model_path: str,
        model_type: ModelType,
    ) -> None:
        """`config` names the first role; `kv_events` are what the engine tells of its cache, if it does."""
        self.runtime = runtime
        self.config = config
        self.info = info
        self.name = name
        self._engine = engine
        self._endpoint = EngineEndpoint(engine)
        self._kv_events = kv_events
        self._model_path = model_path
        self._model_type = model_type
        self._load: Part | None = None

    @property
    def role(self) -> WorkerType:
        return self.config.worker_type

    async def announce(self) -> None:
        """Serves it in its role; the model becomes visible last. Raises what register_model() does."""
        config, info = self.config, self.info
        endpoint = self.runtime.endpoint(str(config.endpoint_id()))
        self._load = await serve_load(endpoint, self._endpoint.load)
        if self._kv_events is not None:
            await self._kv_events.start(endpoint)
        await endpoint.start(self._endpoint.generate, request_type=PreprocessedRequest)
        await register_model(
            ModelInput.Tokens,
            self._model_type,
            endpoint,
            self._model_path,
            self.name,
            worker_type=self.role,
            context_length=info.context_length,
            runtime_config=info.limits,
            custom_template_path=config.chat_template(),
            features=info.features,
            handoff_format=info.handoff_format,
        )
        vitals = EngineVitals(self._engine, self.name, self._endpoint.vitals)
        self.runtime.watch(endpoint.id, vitals, "the engine makes no progress")

    async def withdraw(self, timeout_s: float) -> None:
        """Takes all of it back. Returns when requests under way have ended, which they may for `timeout_s`.

        To be called once for each announce().
        """
        endpoint = self.runtime.endpoint(str(self.config.endpoint_id()))
        await unregister_model(endpoint, self.name)
        if self._load is not None:
            self._load.close()
        if self._kv_events is not None:
            self._kv_events.stop()  # a stream without end is not to be waited for
        await self.runtime.leave(endpoint.id.namespace, endpoint.id.component, timeout_s)

    async def change_role(self, role: WorkerType) -> None:
        """Has the engine play `role` from now on, and announce() say so; to be called between the two above."""
        assert self.info.change_role is not None
        assert isinstance(self.config, DisaggregatedWorkerConfig)
        await self.info.change_role(role)
        self.config = replace(self.config, disaggregation_mode=role.value)
