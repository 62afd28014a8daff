"""What must hold between the fields of a request, beyond the type of each."""

from collections.abc import Iterable

from dynamo.errors import InvalidRequestError
from dynamo.protocols.openai.messages import Message
from dynamo.protocols.openai.requests import (
    ChatCompletionRequest,
    CompletionRequest,
    GenerationRequest,
    Prompt,
    choices_per_prompt,
)

NESTING_MAX = 200  # of what is handed on as it is: schemas and arguments
CHOICES_MAX = 1024  # prompts times n: each is a stream of its own
INSTANCE_ID_MAX = 2**64 - 1  # more than a field's type can say


def check_chat(request: ChatCompletionRequest) -> None:
    """Raises InvalidRequestError."""
    _check_generation(request)
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidRequestError("top_logprobs needs logprobs to be true.", param="top_logprobs")
    _check_min_tokens(request, _first_set(request.max_completion_tokens, request.max_tokens))
    for i, message in enumerate(request.messages):
        _check_message(message, f"messages[{i}]")
    for i, tool in enumerate(request.tools or ()):
        check_nesting(tool.function.parameters, f"tools[{i}].function.parameters")
    check_nesting(request.chat_template_kwargs, "chat_template_kwargs")


def check_completion(request: CompletionRequest) -> None:
    """Raises InvalidRequestError."""
    _check_generation(request)
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequestError("max_tokens may be 0 only with echo.", param="max_tokens")
    _check_min_tokens(request, request.max_tokens)
    prompts = _check_prompt(request.prompt)
    if prompts * choices_per_prompt(request) > CHOICES_MAX:
        raise InvalidRequestError(f"The number of prompts times n is over {CHOICES_MAX}.", param="prompt")


def _check_generation(request: GenerationRequest) -> None:
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options needs stream to be true.", param="stream_options")
    if request.nvext is not None and (request.nvext.backend_instance_id or 0) > INSTANCE_ID_MAX:
        raise InvalidRequestError("nvext.backend_instance_id: over 64 bits.", param="nvext.backend_instance_id")
    response_format = request.response_format
    if response_format is None or response_format.type != "json_schema":
        return
    if response_format.json_schema is None:
        raise InvalidRequestError("json_schema: required, but missing.", param="response_format.json_schema")
    if response_format.json_schema.schema is None:
        raise InvalidRequestError("schema: required, but missing.", param="response_format.json_schema.schema")
    check_nesting(response_format.json_schema.schema, "response_format.json_schema.schema")


def _check_min_tokens(request: GenerationRequest, max_tokens: int | None) -> None:
    if request.min_tokens and max_tokens is not None and request.min_tokens > max_tokens:
        raise InvalidRequestError(f"min_tokens is greater than max_tokens, {max_tokens}.", param="min_tokens")


def _check_message(message: Message, field: str) -> None:
    if message.content is None and message.role != "assistant":
        raise InvalidRequestError(f"{field}.content: required, but missing.", param=f"{field}.content")
    if isinstance(message.content, list):
        for j, part in enumerate(message.content):
            if part.type == "text" and part.text is None:
                place = f"{field}.content[{j}].text"
                raise InvalidRequestError(f"{place}: required, but missing.", param=place)
    for j, call in enumerate(message.tool_calls or ()):
        check_nesting(call.function.arguments, f"{field}.tool_calls[{j}].function.arguments")


def _check_prompt(prompt: Prompt) -> int:
    """How many prompts there are."""
    if isinstance(prompt, str):
        return 1
    if not prompt:
        raise InvalidRequestError("prompt: expected at least one text or token id.", param="prompt")
    kinds = set(map(type, prompt))
    if len(kinds) > 1:
        raise InvalidRequestError("prompt: texts, token ids and lists of ids cannot be mixed.", param="prompt")
    if [] in prompt:
        raise InvalidRequestError("prompt: expected at least one token id in each list.", param="prompt")
    return 1 if kinds == {int} else len(prompt)


def check_nesting(value: object, field: str | None) -> None:
    """Raises InvalidRequestError for what later stages, which walk it recursively, could not take."""
    level: list[object] = [value]
    for _ in range(NESTING_MAX):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    where = "The body is" if field is None else f"{field}:"
    raise InvalidRequestError(f"{where} nested more than {NESTING_MAX} levels deep.", param=field)


def _children(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _first_set(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)
