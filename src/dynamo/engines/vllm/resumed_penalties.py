"""Presence and frequency penalties of outputs that another worker has begun.

To vLLM a resumed output is part of the prompt, which these penalties do not count (the repetition penalty counts both).
So this is a logits processor, for vLLM's first model runner: it takes off what the penalties would have taken off for
the resumed tokens. vLLM then goes on with those that it has made itself.
"""

from collections import Counter
from typing import TYPE_CHECKING

import torch
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

if TYPE_CHECKING:
    from vllm.config import VllmConfig as EngineConfig
    from vllm.logits_process import LogitsProcessor as RequestLogitsProcessor
    from vllm.sampling_params import SamplingParams

RESUMED_TOKENS = "dynamo_resumed_tokens"  # in SamplingParams.extra_args: how many of the prompt's last tokens


def count_resumed(config: "EngineConfig") -> None:
    """Has the engine that `config` describes count them, where it can."""
    if not config.use_v2_model_runner and config.speculative_config is None:
        config.model_config.logits_processors = [*(config.model_config.logits_processors or ()), ResumedPenalties]


class ResumedPenalties(AdapterLogitsProcessor):  # type: ignore[misc] # vLLM is untyped here
    """Costs nothing in a batch without such requests."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: "SamplingParams") -> "RequestLogitsProcessor | None":
        resumed = (params.extra_args or {}).get(RESUMED_TOKENS)
        return _Penalty(params, resumed).apply if resumed else None


class _Penalty:
    """Of one request."""

    def __init__(self, params: "SamplingParams", resumed: int) -> None:
        self._presence = params.presence_penalty
        self._frequency = params.frequency_penalty
        self._repetition = params.repetition_penalty
        self._resumed = resumed
        self._places: dict[int, int] = {}  # of the resumed token ids, in the tensors
        self._ids: torch.Tensor | None = None
        self._amounts: torch.Tensor | None = None  # to take off
        self._read = 0  # of the output

    def apply(self, prompt_ids: list[int], output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """`logits` of one position, changed in place."""
        if self._ids is None or self._amounts is None:
            counts = Counter(prompt_ids[-self._resumed :])
            self._places = {token_id: place for place, token_id in enumerate(counts)}
            self._ids = torch.tensor(list(counts), device=logits.device)
            amounts = [self._presence + self._frequency * count for count in counts.values()]
            self._amounts = torch.tensor(amounts, device=logits.device, dtype=logits.dtype)
        self._leave_presence_of(output_ids, self._amounts)
        before = logits[self._ids]
        logits[self._ids] = self._inverse(self._repeated(before) - self._amounts)
        return logits

    def _leave_presence_of(self, output_ids: list[int], amounts: torch.Tensor) -> None:
        """A token that is in both parts is present once, which vLLM takes off."""
        for token_id in output_ids[self._read :]:
            if token_id < 0:  # not known yet
                break
            self._read += 1
            place = self._places.pop(token_id, None)
            if place is not None:
                amounts[place] -= self._presence

    def _repeated(self, logits: torch.Tensor) -> torch.Tensor:
        """With the repetition penalty, which vLLM applies after this, and before the other two."""
        return torch.where(logits > 0, logits / self._repetition, logits * self._repetition)

    def _inverse(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(logits > 0, logits * self._repetition, logits / self._repetition)
