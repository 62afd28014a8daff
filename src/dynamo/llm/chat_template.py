"""Turns a conversation into the text of a prompt, by the template that comes with the model.

What is bounded: the length of the text, and the time of a template that keeps writing. What is not: a template that
computes for ever without writing anything, or builds one huge value, holds up the process. Templates come with models,
never with requests, so that whoever deploys a model decides about them.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template, TemplateError

from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.llm.chat_messages import Accepts, plain_messages, plain_tools, probe
from dynamo.llm.jinja_environment import RefusedByTemplateError, environment
from dynamo.llm.tokenizer_config import read_json, special_tokens
from dynamo.protocols.openai.messages import JsonObject, Message, Tool

TEXT_CHARS_MAX = 50_000_000
RENDER_S_MAX = 2.0

# What a template can raise by what it computes; anything else is a defect of ours.
_FAILURES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TemplateError,
    TypeError,
    ValueError,
)
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


class ChatTemplate:
    """The template of one model, or its two: one for requests with tools."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources` has a "default" and may have a "tool_use"; ConfigError if not, or if one does not compile."""
        if "default" not in sources:
            raise ConfigError(f"the model has chat templates, but no default one: {', '.join(sorted(sources))}")
        self._special_tokens = dict(special_tokens)
        self._templates = {name: _compile(name, source) for name, source in sources.items()}
        self._sources = dict(sources)
        self._accepts = {name: self._probe(name) for name in sources}

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> "ChatTemplate | None":
        """The template in a model directory, given as file name -> content; None when it has none.

        A chat_template.jinja goes before the one in tokenizer_config.json.
        """
        sources = _sources(files)
        return cls(sources, special_tokens(files)) if sources else None

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of the prompt, up to where the assistant's answer begins.

        `variables` are further ones of the request's own. Raises InvalidRequestError when the template refuses the
        conversation or fails on it, and for a variable that the template is given by us.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        for variable in variables or ():
            if variable in _RESERVED:
                raise InvalidRequestError(f"{variable} cannot be set.", param=f"chat_template_kwargs.{variable}")
        try:
            return self._render(
                name,
                messages=plain_messages(messages, self._accepts[name]),
                tools=plain_tools(tools) if tools else None,
                **variables or {},
            )
        except RefusedByTemplateError as error:
            raise InvalidRequestError(f"The chat template refuses this: {error.message}", param="messages") from error
        except _FAILURES as error:
            raise InvalidRequestError(f"The chat template fails on this: {error}", param="messages") from error

    def reads(self, variable: str) -> bool:
        """Whether the template knows a variable of this name."""
        return any(variable in source for source in self._sources.values())

    def _render(self, name: str, **variables: Any) -> str:
        given = self._special_tokens | {"documents": None, "add_generation_prompt": True} | variables
        parts: list[str] = []
        length, deadline_s = 0, time.monotonic() + RENDER_S_MAX
        for part in self._templates[name].generate(given):
            parts.append(part)
            length += len(part)
            if length > TEXT_CHARS_MAX or time.monotonic() > deadline_s:
                raise RefusedByTemplateError("its output is too long")
        return "".join(parts)

    def _probe(self, name: str) -> Accepts:
        def rendered(messages: list[JsonObject]) -> str:
            try:
                return self._render(name, messages=messages, tools=None)
            except _FAILURES:
                return ""

        return probe(self._sources[name], rendered)


def _compile(name: str, source: str) -> Template:
    try:
        template = environment().from_string(source)
    except (TemplateError, RecursionError) as error:
        raise ConfigError(f"the {name} chat template cannot be used: {error}") from error
    template.globals = dict(template.globals)  # it is a ChainMap, which each rendering would copy key by key
    return template


def _sources(files: Mapping[str, bytes]) -> dict[str, str]:
    folder, ending = "additional_chat_templates/", ".jinja"
    found = {
        name.removeprefix(folder).removesuffix(ending): _text(name, content)
        for name, content in files.items()
        if name.startswith(folder) and name.endswith(ending)
    }
    if "chat_template.jinja" in files:
        found["default"] = _text("chat_template.jinja", files["chat_template.jinja"])
    return found or _named(read_json(files, "tokenizer_config.json").get("chat_template"))


def _named(value: object) -> dict[str, str]:
    """A template is a text, or several: {"default": …} or [{"name": "default", "template": …}]."""
    if isinstance(value, str):
        return {"default": value}
    if isinstance(value, list):
        value = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
    if not isinstance(value, dict):
        return {}
    return {name: text for name, text in value.items() if isinstance(name, str) and isinstance(text, str)}


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name} is not UTF-8") from error
