"""What a worker says about the model it serves, enough for a frontend to serve it too."""

from enum import Flag, StrEnum, auto
from typing import Annotated

import msgspec

Positive = Annotated[int, msgspec.Meta(ge=1)]
Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]  # a file's name in the caches of frontends


class ModelInput(StrEnum):
    """What the worker's handler is given."""

    Text = "text"  # the OpenAI request as it came; it yields OpenAI chunks
    Tokens = "tokens"  # token ids; it yields token ids


class ModelType(Flag):
    """The OpenAI routes the model answers; combine with |."""

    Chat = auto()
    Completions = auto()


class WorkerType(StrEnum):
    """The stage of the request that the worker does."""

    Aggregated = "aggregated"
    Prefill = "prefill"
    Decode = "decode"


class EngineFeature(StrEnum):
    """Abilities that not every engine has; a request for a missing one is refused."""

    LOGPROBS = "logprobs"
    PROMPT_LOGPROBS = "prompt_logprobs"
    GUIDED_DECODING = "guided_decoding"
    LOGIT_BIAS = "logit_bias"


class Artifact(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the model directory, named by its content."""

    name: str
    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class RuntimeLimits(msgspec.Struct, omit_defaults=True, kw_only=True):
    """What the engine was started with."""

    kv_block_size: Positive | None = None  # tokens
    total_kv_blocks: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    data_parallel_size: Positive = 1


class ModelCard(msgspec.Struct, omit_defaults=True, kw_only=True):
    """One model as one instance serves it."""

    name: str
    model_type: int  # value of ModelType
    model_input: ModelInput
    worker_type: WorkerType = WorkerType.Aggregated
    context_length: int | None = None  # tokens; None: unlimited
    created_s: int = 0  # Unix time
    artifacts: list[Artifact] = []
    features: list[EngineFeature] = []
    handoff_format: str = ""  # equal for workers that can hand KV caches to each other; empty: it is not told
    limits: RuntimeLimits = msgspec.field(default_factory=RuntimeLimits)
    content_hash: str = ""  # over name, types, context length and artifacts
