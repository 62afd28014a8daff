"""The stages that turn an OpenAI request into sequences of tokens to continue.

Both are Stages and deliver TextOutput. What the client got wrong they raise before the first output, as an
InvalidRequestError or one of its subclasses.
"""

from collections.abc import Sequence

from dynamo.errors import InvalidRequestError, UnsupportedFeatureError
from dynamo.llm.engine_requests import engine_requests
from dynamo.llm.fan_out import fan_out
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.prompt_limits import AnswerLimit, check_ids
from dynamo.llm.sequence import SequenceRequest, TextOutput
from dynamo.llm.support import refuse_unsupported_chat, refuse_unsupported_completion
from dynamo.protocols.generation import OutputOptions
from dynamo.protocols.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    choices_per_prompt,
    stop_strings,
)
from dynamo.protocols.routing import SESSION_ID
from dynamo.runtime.context import Context
from dynamo.runtime.stage import Deliver, Stage
from dynamo.tokens import TokenArray, token_array


class ChatPreprocessor:
    """A Stage for ChatCompletionRequest."""

    def __init__(self, text: Stage[SequenceRequest, TextOutput], model: LoadedModel) -> None:
        self._text = text
        self._model = model

    async def __call__(self, request: ChatCompletionRequest, context: Context, deliver: Deliver[TextOutput]) -> None:
        refuse_unsupported_chat(request, self._model.card.features)
        prompts = await self._model.encode([self._render(request)], add_special_tokens=False, field="messages")
        await _answer(self._text, self._sequences(request, prompts, context), context, deliver)

    def _render(self, request: ChatCompletionRequest) -> str:
        template = self._model.chat_template
        if template is None:
            raise InvalidRequestError("model: it has no chat template; use /v1/completions.", param="model")
        variables = dict(request.chat_template_kwargs or {})
        if request.reasoning_effort is not None:
            if not template.reads("reasoning_effort"):
                raise UnsupportedFeatureError("reasoning_effort: the model has none.", param="reasoning_effort")
            variables["reasoning_effort"] = request.reasoning_effort
        return template.render(request.messages, None if request.tool_choice == "none" else request.tools, variables)

    def _sequences(
        self, request: ChatCompletionRequest, prompts: Sequence[TokenArray], context: Context
    ) -> list[SequenceRequest]:
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        choices = engine_requests(
            request,
            self._model,
            prompts,
            limit=_chat_limit(request),
            output_options=OutputOptions(logprobs=logprobs),
            session_id=context.metadata.get(SESSION_ID),
            field="messages",
        )
        stop = stop_strings(request)
        return [
            SequenceRequest(engine_request=choice, index=i, stop=stop, counts_prompt=i == 0)
            for i, choice in enumerate(choices)
        ]


class CompletionPreprocessor:
    """A Stage for CompletionRequest; n choices for the first prompt come first, then those for the second."""

    def __init__(self, text: Stage[SequenceRequest, TextOutput], model: LoadedModel) -> None:
        self._text = text
        self._model = model

    async def __call__(self, request: CompletionRequest, context: Context, deliver: Deliver[TextOutput]) -> None:
        refuse_unsupported_completion(request, self._model.card.features)
        texts, prompts = await self._prompts(request)
        sequences = self._sequences(request, texts, prompts, context)
        if request.max_tokens == 0 and request.logprobs is None:
            all(deliver(_echoed(sequence)) for sequence in sequences)
            return
        await _answer(self._text, sequences, context, deliver)

    async def _prompts(self, request: CompletionRequest) -> tuple[list[str], list[TokenArray]]:
        """The texts of the prompts, empty ones where nobody will need them, and their token ids."""
        tokenizer = self._model.tokenizer
        given = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        texts = [item for item in given if isinstance(item, str)]
        if texts:
            return texts, await self._model.encode(texts, add_special_tokens=True, field="prompt")
        lists = [item for item in given if isinstance(item, list)]
        ids = lists or [[item for item in given if isinstance(item, int)]]
        for prompt in ids:
            check_ids(prompt, tokenizer.vocab_size, "prompt")
        texts = [tokenizer.decode(prompt, skip_special_tokens=False) if request.echo else "" for prompt in ids]
        return texts, [token_array(prompt) for prompt in ids]

    def _sequences(
        self, request: CompletionRequest, texts: Sequence[str], prompts: Sequence[TokenArray], context: Context
    ) -> list[SequenceRequest]:
        echo_only = request.max_tokens == 0
        choices = engine_requests(
            request,
            self._model,
            prompts,
            limit=_completion_limit(request),
            output_options=OutputOptions(
                logprobs=None if echo_only else request.logprobs,
                prompt_logprobs=request.logprobs if request.echo else None,
            ),
            session_id=context.metadata.get(SESSION_ID),
            field="prompt",
        )
        stop, n = stop_strings(request), choices_per_prompt(request)
        return [
            SequenceRequest(
                engine_request=choice,
                index=i,
                stop=stop,
                continues_prompt=True,
                echo=texts[i // n] if request.echo else None,
                echo_only=echo_only,
                counts_prompt=i % n == 0,
            )
            for i, choice in enumerate(choices)
        ]


async def _answer(
    text: Stage[SequenceRequest, TextOutput],
    sequences: Sequence[SequenceRequest],
    context: Context,
    deliver: Deliver[TextOutput],
) -> None:
    if len(sequences) == 1:
        await text(sequences[0], context, deliver)
    else:
        await fan_out(text, sequences, context, deliver)


def _chat_limit(request: ChatCompletionRequest) -> AnswerLimit | None:
    if request.max_completion_tokens is not None:
        return AnswerLimit(field="max_completion_tokens", tokens=request.max_completion_tokens)
    return None if request.max_tokens is None else AnswerLimit(field="max_tokens", tokens=request.max_tokens)


def _completion_limit(request: CompletionRequest) -> AnswerLimit | None:
    if request.max_tokens is None:
        return None
    # The logprobs of an echo come from the engine, which makes at least one token.
    at_least = 0 if request.logprobs is None else 1
    return AnswerLimit(field="max_tokens", tokens=max(request.max_tokens, at_least))


def _echoed(sequence: SequenceRequest) -> TextOutput:
    """An answer that is only the prompt needs no engine."""
    prompt_tokens = len(sequence.engine_request.token_ids) if sequence.counts_prompt else None
    return TextOutput(sequence.index, sequence.echo or "", finish_reason="length", prompt_tokens=prompt_tokens)
