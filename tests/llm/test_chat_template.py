import json
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dynamo.errors import ConfigError, InvalidRequestError
from dynamo.llm import chat_template
from dynamo.llm.chat_template import ChatTemplate
from dynamo.protocols.openai import Message, Tool

TEMPLATES = sorted((Path(__file__).parent / "chat_templates").glob("*.jinja"))
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a <city>, in °C",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "array", "items": {"type": "integer"}},
                "unit": {"enum": ["c", "f"]},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "call12345", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "short": [{"role": "user", "content": "Hello"}],
    "system": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "  Hi\nthere "}],
    "turns": [
        {"role": "user", "content": "What is 1 < 2 & 'so on'?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nTrue 你好"},
        {"role": "user", "content": "Sure? \U0001f600"},
    ],
    "silent": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": '{"t": 21}', "tool_call_id": "call12345"},
    ],
    "reasoning": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "Which city?", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "21", "tool_call_id": "call12345"},
        {"role": "tool", "content": "22", "tool_call_id": "call12345"},
    ],
    "not alternating": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
}


def messages(*plain: dict[str, Any]) -> list[Message]:
    return msgspec.convert(list(plain), list[Message])


def user(content: object) -> list[Message]:
    return messages({"role": "user", "content": content})


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL_TOKENS)


@pytest.mark.vllm
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("tools", [None, [WEATHER]], ids=["no tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False, "reasoning_effort": "high"}], ids=["", "kwargs"])
def test_the_text_is_what_transformers_makes(
    path: Path, name: str, tools: list[dict[str, Any]] | None, variables: dict[str, Any]
) -> None:
    conversation = CONVERSATIONS[name]
    # parts_only takes no texts, and transformers hands over what it is given.
    given = [m | {"content": [{"type": "text", "text": m["content"]}] if m["content"] else []} for m in conversation]
    source = path.read_text()
    expected = _transformers(source, given if path.stem == "parts_only" else conversation, tools, variables)
    try:
        rendered = template(source).render(
            messages(*conversation), None if tools is None else msgspec.convert(tools, list[Tool]), variables
        )
    except InvalidRequestError:
        rendered = None
    assert rendered == expected


def _transformers(
    source: str, conversation: list[dict[str, Any]], tools: list[dict[str, Any]] | None, variables: dict[str, Any]
) -> str | None:
    """What transformers renders; None where the template raises."""
    from jinja2 import TemplateError
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()), **SPECIAL_TOKENS)
    try:
        rendered = tokenizer.apply_chat_template(
            conversation, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True, **variables
        )
    except (TemplateError, TypeError):
        return None
    assert isinstance(rendered, str)
    return rendered


@pytest.mark.vllm
def test_the_files_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from dynamo.testing.tiny_model import byte_level_files

    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"__type": "AddedToken", "content": "<|im_start|>", "special": True},
        "eos_token": "<|im_end|>",
        "image_token": "<image>",
        "chat_template": "not this one",
    }
    source = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ image_token }}|{{ messages[0].content }}"
    files = byte_level_files() | {
        "tokenizer_config.json": json.dumps(config).encode(),
        "chat_template.jinja": source.encode(),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    expected = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    found = ChatTemplate.from_files(files)
    assert found is not None
    assert found.render(user("hi")) == expected


def test_parts_go_to_templates_that_take_them() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    both = template("{% for p in messages[0].content %}{{ p.text }}+{% endfor %}")
    assert both.render(user(parts)) == "a+b+"
    assert both.render(user("a")) == "a+"
    assert both.render(user("")) == ""


def test_parts_are_joined_for_templates_that_take_texts() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for source in (
        "{{ messages[0].content }}",
        "{{ messages[0]['content'] + '' }}",
        "{{ messages[0].content | trim }}",
    ):
        assert template(source).render(user(parts)) == "a\nb"


def test_the_developer_is_the_system_where_the_template_knows_no_developer() -> None:
    conversation = messages({"role": "developer", "content": "x"})
    assert template("{{ messages[0].role }}").render(conversation) == "system"
    assert template("{{ messages[0].role }}{# 'developer' #}").render(conversation) == "developer"


def test_an_assistant_without_content_prints_nothing() -> None:
    conversation = messages({"role": "user", "content": "x"}, {"role": "assistant", "content": None})
    assert template("{{ messages[1].content }}|").render(conversation) == "|"


def test_arguments_are_handed_over_as_objects() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}
    shown = template("{{ messages[0].tool_calls[0].function.arguments.a[0] }}")
    assert shown.render(messages({"role": "assistant", "tool_calls": [call]})) == "1"
    empty = call | {"function": {"name": "f", "arguments": ""}}
    assert template("{{ messages[0].tool_calls[0] | tojson }}").render(
        messages({"role": "assistant", "tool_calls": [empty]})
    ) == json.dumps({"type": "function", "function": {"name": "f", "arguments": {}}})


@pytest.mark.parametrize("arguments", ["{", "[]", "1", '{"a": "\\ud800"}'])
def test_arguments_that_are_no_object(arguments: str) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    with pytest.raises(InvalidRequestError) as caught:
        template("").render(messages({"role": "user", "content": ""}, {"role": "assistant", "tool_calls": [call]}))
    assert caught.value.param == "messages[1].tool_calls[0].function.arguments"


def test_named_templates() -> None:
    sources = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]
    tools = msgspec.convert([WEATHER], list[Tool])
    for value in (sources, {"default": "plain", "tool_use": "tools"}):
        found = ChatTemplate.from_files({"tokenizer_config.json": json.dumps({"chat_template": value}).encode()})
        assert found is not None
        assert (found.render(user("")), found.render(user(""), tools), found.render(user(""), [])) == (
            "plain",
            "tools",
            "plain",
        )


def test_templates_in_files() -> None:
    files = {"chat_template.jinja": b"plain", "additional_chat_templates/tool_use.jinja": b"tools"}
    found = ChatTemplate.from_files(files | {"tokenizer_config.json": b'{"chat_template": "old"}'})
    assert found is not None
    assert found.render(user("")) == "plain"
    assert found.render(user(""), msgspec.convert([WEATHER], list[Tool])) == "tools"


def test_a_model_can_have_no_template() -> None:
    assert ChatTemplate.from_files({}) is None
    assert ChatTemplate.from_files({"tokenizer_config.json": b'{"chat_template": null}'}) is None


@pytest.mark.parametrize(
    "files",
    [
        {"chat_template.jinja": b"{% if %}"},
        {"chat_template.jinja": b"\xff"},
        {"tokenizer_config.json": b'{"chat_template": [{"name": "rag", "template": "x"}]}'},
        {"chat_template.jinja": b"{% no_such_tag %}"},
    ],
)
def test_unusable_templates(files: dict[str, bytes]) -> None:
    with pytest.raises(ConfigError):
        ChatTemplate.from_files(files)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('no') }}",
        "{{ messages[5].role }}",
        "{{ 1 / 0 }}",
        "{{ messages + 1 }}",
        "{{ messages[0].content.no_such_method() }}",
        "{{ messages.append(1) }}",  # the sandbox keeps what it is given as it is
        "{{ ''.__class__.__mro__ }}{{ ''.__class__.__base__.__subclasses__() }}",
        "{{ range(1000000) | list }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages | tojson(indent='x', no_such_option=1) }}",
        "{{ 'a' * 10 ** 18 }}",
        "{% include 'other' %}",
    ],
)
def test_a_template_that_fails_is_the_clients_error(source: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        template(source).render(user("hi"))
    assert caught.value.param == "messages"


def test_a_template_that_writes_for_ever_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = "{% for a in range(99999) %}{% for b in range(99999) %}{{ b }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(chat_template, "TEXT_CHARS_MAX", 10_000)
    started_s = time.monotonic()
    with pytest.raises(InvalidRequestError, match="too long"):
        template(endless).render(user("hi"))
    monkeypatch.setattr(chat_template, "TEXT_CHARS_MAX", 10**12)
    monkeypatch.setattr(chat_template, "RENDER_S_MAX", 0.01)
    with pytest.raises(InvalidRequestError, match="too long"):
        template(endless).render(user("hi"))
    assert time.monotonic() - started_s < 30


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt"])
def test_a_request_cannot_set_what_we_set(name: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        template("x").render(user("hi"), variables={name: 1})
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_variables_of_the_request() -> None:
    shown = template("{{ enable_thinking }}")
    assert shown.render(user("hi"), variables={"enable_thinking": False}) == "False"
    assert shown.reads("enable_thinking")
    assert not shown.reads("reasoning_effort")


def test_one_request_leaves_nothing_for_the_next() -> None:
    counted = template("{% set ns = namespace(n=0) %}{% set ns.n = ns.n + messages | length %}{{ ns.n }}")
    assert [counted.render(user("hi")) for _ in range(3)] == ["1", "1", "1"]
