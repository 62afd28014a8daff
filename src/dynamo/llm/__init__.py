"""The request path from an OpenAI request to token ids and back; announcing one's own model; the KV router."""

from dynamo.llm.block_hashes import compute_block_hash_for_seq
from dynamo.llm.kv_router import KvRouter
from dynamo.llm.register import register_llm, register_model
from dynamo.protocols.model_card import EngineFeature, ModelInput, ModelType, RuntimeLimits, WorkerType
from dynamo.router.approx import ApproxKvIndexer
from dynamo.router.config import KvRouterConfig
from dynamo.router.publisher import KvEventPublisher, WorkerMetricsPublisher
from dynamo.router.radix_tree import OverlapScores, RadixTree
from dynamo.router.selection import RouterMode

__all__ = [
    "ApproxKvIndexer",
    "EngineFeature",
    "KvEventPublisher",
    "KvRouter",
    "KvRouterConfig",
    "ModelInput",
    "ModelType",
    "OverlapScores",
    "RadixTree",
    "RouterMode",
    "RuntimeLimits",
    "WorkerMetricsPublisher",
    "WorkerType",
    "compute_block_hash_for_seq",
    "register_llm",
    "register_model",
]
