"""The request path: from an OpenAI request to token ids and back; and announcing one's own model."""

from dynamo.llm.register import register_llm, register_model
from dynamo.protocols.model_card import EngineFeature, ModelInput, ModelType, RuntimeLimits, WorkerType

__all__ = [
    "EngineFeature",
    "ModelInput",
    "ModelType",
    "RuntimeLimits",
    "WorkerType",
    "register_llm",
    "register_model",
]
