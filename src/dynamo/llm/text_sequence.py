"""One sequence on its way from tokens to text: characters, stop strings, logprobs, echo."""

from collections import deque
from collections.abc import Sequence

from dynamo.errors import InternalError, RequestCancelledError
from dynamo.llm.logprobs import score, score_prompt
from dynamo.llm.sequence import ScoredToken, SequenceRequest, TextOutput
from dynamo.llm.stop_strings import StopStrings
from dynamo.llm.tokenizer import Tokenizer
from dynamo.protocols.generation import FinishReason, LLMEngineOutput, TokenLogprobs


class TextSequence:
    """The text of one sequence. `finished`: its last output is out; `stopped`: before the engine said so."""

    __slots__ = (
        "_decoded_chars", "_decoder", "_end_ids", "_index", "_plain", "_released_chars", "_request", "_scored",
        "_started", "_stop", "_stop_after", "_tokenizer", "_tokens", "_top", "finished", "stopped",
    )  # fmt: skip

    def __init__(self, tokenizer: Tokenizer, request: SequenceRequest) -> None:
        engine_request = request.engine_request
        conditions = engine_request.stop_conditions
        self.finished = False
        self.stopped = False
        self._tokenizer = tokenizer
        self._request = request
        self._index = request.index
        self._decoder = tokenizer.decoder(continues=request.continues_prompt)
        self._stop = StopStrings(request.stop) if request.stop else None
        self._stop_after = conditions.min_tokens
        # The token that ends an answer is none of its text.
        self._end_ids = {*conditions.stop_token_ids, *(() if conditions.ignore_eos else engine_request.eos_token_ids)}
        self._top = engine_request.output_options.logprobs  # None: no logprobs
        self._scored: deque[tuple[int, ScoredToken]] = deque()  # with where their text ends: held back until then
        self._started = False
        self._plain = False  # started, and nothing but text is asked for
        self._tokens = 0  # so far, counted only where stop strings ask
        self._decoded_chars = self._released_chars = len(request.echo or "")

    def push(self, output: LLMEngineOutput) -> TextOutput:
        """What `output` adds."""
        if self._plain and output.finish_reason is None:
            token_ids = output.token_ids
            return TextOutput(self._index, self._decoder.push(token_ids), len(token_ids))
        return self._push(output)

    def _push(self, output: LLMEngineOutput) -> TextOutput:
        result = TextOutput(self._index)
        if not self._started:
            self._start(output, result)
            if self.stopped:
                return result
        if self._stop is None and self._top is None:
            result.token_count = len(output.token_ids)
            result.text += self._decoder.push(self._text_ids(output))
        else:
            self._push_each(self._text_ids(output), output, result)
        if output.finish_reason is not None and not self.stopped:
            self._finish(output.finish_reason, result)
        if self._top is not None:
            self._release_scored(result)
        return result

    def _start(self, output: LLMEngineOutput, result: TextOutput) -> None:
        request = self._request
        self._started = True
        self._plain = self._stop is None and self._top is None
        result.worker_id, result.routing = output.worker_id, output.routing
        result.disaggregation = output.disaggregation
        if request.counts_prompt:
            result.prompt_tokens = len(request.engine_request.token_ids)
            result.cached_tokens = output.cached_tokens
        if request.echo is not None:
            result.text = request.echo
            self._echo_scored(output.prompt_logprobs, result)
        if request.echo_only:
            result.finish_reason = "length"
            self.finished = self.stopped = True

    def _echo_scored(self, entries: Sequence[TokenLogprobs | None] | None, result: TextOutput) -> None:
        top = self._request.engine_request.output_options.prompt_logprobs
        if top is None:
            return
        token_ids = self._request.engine_request.token_ids
        if entries is None or len(entries) != len(token_ids):
            raise InternalError("The engine did not return the logprobs of the prompt.")
        result.logprobs = score_prompt(self._tokenizer, token_ids, entries, top, result.text)

    def _text_ids(self, output: LLMEngineOutput) -> list[int]:
        token_ids = output.token_ids
        ended = output.finish_reason is FinishReason.STOP and bool(token_ids) and token_ids[-1] in self._end_ids
        return token_ids[:-1] if ended else token_ids

    def _push_each(self, token_ids: list[int], output: LLMEngineOutput, result: TextOutput) -> None:
        result.token_count = len(output.token_ids)
        for i, token_id in enumerate(token_ids):
            text = self._decoder.push((token_id,))
            if self._top is not None and output.logprobs:
                scored = score(self._tokenizer, output.logprobs[i], self._top, self._decoded_chars)
                self._scored.append((self._decoded_chars + len(text), scored))
            self._tokens += 1
            self._add(text, result)
            if self.stopped:
                result.token_count = i + 1
                return

    def _add(self, text: str, result: TextOutput) -> None:
        """Adds decoded text, as far as it can't be part of a stop string."""
        self._decoded_chars += len(text)
        if self._stop is not None and self._tokens > self._stop_after:
            text, self.stopped = self._stop.push(text)
        result.text += text
        self._released_chars += len(text)
        if self.stopped:
            result.finish_reason = "stop"
            self.finished = True

    def _finish(self, reason: FinishReason, result: TextOutput) -> None:
        if reason is FinishReason.CANCELLED:
            raise RequestCancelledError("The engine cancelled the request.")
        if reason is FinishReason.ERROR:
            raise InternalError("The engine failed on this request.")
        self._add(self._decoder.flush(), result)
        if self.stopped:
            return
        if self._stop is not None:
            held = self._stop.flush()
            result.text += held
            self._released_chars += len(held)
        result.finish_reason = reason.value
        self.finished = True

    def _release_scored(self, result: TextOutput) -> None:
        """Gives out the logprobs of tokens whose text is out; of a token cut by a stop string too."""
        released, scored = self._released_chars, self._scored
        ready = []
        while scored and (scored[0][0] <= released or (self.finished and scored[0][1].offset < released)):
            ready.append(scored.popleft()[1])
        if ready:
            result.logprobs = (result.logprobs or []) + ready
