"""`dynamo run`: a conversation in the terminal, the engine in this process."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from dynamo.cli.worker_flags import split_at_dashes
from dynamo.config import build_parser, from_namespace, option
from dynamo.engines.base import LLMEngine
from dynamo.engines.make import ENGINES, check_engine, make_engine
from dynamo.errors import ConfigError, DynamoError, InvalidRequestError
from dynamo.llm.loaded_model import LoadedModel
from dynamo.llm.model_card import artifact_paths, build_card
from dynamo.llm.model_source import resolve_model
from dynamo.llm.pipeline import TokenPipeline
from dynamo.llm.sequence import TextOutput
from dynamo.protocols.model_card import ModelInput, ModelType
from dynamo.protocols.openai import ChatCompletionRequest, Message
from dynamo.runtime.context import Context
from dynamo.runtime.stage import pushed
from dynamo.telemetry import logging as telemetry_logging

PROG = "dynamo run"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Chat with MODEL in the terminal. Without a prompt it is read from standard input, or asked for."""

    engine: str = option("vllm", flag="--engine", choices=ENGINES, help="what runs the model")
    max_tokens: int | None = option(None, flag="--max-tokens", help="longest answer (default: what the context leaves)")
    temperature: float | None = option(
        None, flag="--temperature", metavar="X", help="0 always gives the likeliest token"
    )
    seed: int | None = option(None, flag="--seed", help="makes the answer repeatable")


def main(argv: Sequence[str]) -> int:
    telemetry_logging.configure({"DYN_LOG": "warn"} | dict(os.environ))
    own, flags = split_at_dashes(argv)
    parser = build_parser(RunConfig, prog=PROG, epilog="What follows -- goes to the engine.")
    parser.add_argument("model", metavar="MODEL", help="smollm2, a directory or a hub name")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="one question, to be answered and done with")
    namespace = parser.parse_intermixed_args(own)  # the prompt may come after flags
    config = from_namespace(RunConfig, namespace)
    prompt = None if namespace.prompt is None else _printable(namespace.prompt)
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.buffer.read().decode(errors="replace").strip()
    if prompt is not None and not prompt:
        parser.error("the prompt is empty")
    try:
        check_engine(config.engine)  # before anything is fetched for it
        model_dir = resolve_model(namespace.model, weights=config.engine == "vllm")
        engine = make_engine(config.engine, str(model_dir), flags)
        return uvloop.run(_run(engine, model_dir, config, prompt))
    except DynamoError as error:
        print(f"{PROG}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


async def _run(engine: LLMEngine, model_dir: Path, config: RunConfig, prompt: str | None) -> int:
    try:
        info = await engine.start()
        files = {name: path.read_bytes() for name, path in artifact_paths(model_dir).items()}
        if "tokenizer.json" not in files:
            raise ConfigError(f"{model_dir} has no tokenizer.json")
        card = build_card(
            name=model_dir.name,
            model_type=ModelType.Chat,
            model_input=ModelInput.Tokens,
            context_length=info.context_length,
            features=info.features,
        )
        chat = Chat(TokenPipeline(LoadedModel.load(card, files), pushed(engine.generate)), card.name, config)
        if prompt is not None:
            await chat.ask(prompt)
        else:
            await _converse(chat)
        return 0
    finally:
        await engine.cleanup()


async def _converse(chat: "Chat") -> None:
    print("Ctrl-C ends an answer, Ctrl-C or Ctrl-D at the prompt the conversation.", file=sys.stderr)
    while (question := _ask_user()) is not None:
        if question.strip():
            try:
                await chat.ask(question)
            except InvalidRequestError as error:  # such as a conversation that has become too long
                print(f"{PROG}: {error}", file=sys.stderr)


def _ask_user() -> str | None:
    """What the user types; None for Ctrl-D and Ctrl-C. It blocks: while the user thinks there is nothing else to do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _printable(input("> "))
    except (EOFError, KeyboardInterrupt):
        print(file=sys.stderr)
        return None
    finally:
        signal.signal(signal.SIGINT, before)


def _printable(text: str) -> str:
    """Bytes of a terminal or command line that are no UTF-8 arrive as lone surrogates, which no tokenizer takes."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


class Chat:
    """A conversation that remembers what was said."""

    def __init__(self, pipeline: TokenPipeline, model: str, config: RunConfig) -> None:
        self._pipeline = pipeline
        self._model = model
        self._config = config
        self._messages: list[Message] = []

    async def ask(self, question: str) -> None:
        """Prints the answer as it comes. Ctrl-C ends the answer, not the conversation.

        Raises InvalidRequestError for a question that cannot be answered; it is forgotten then.
        """
        messages = [*self._messages, Message(role="user", content=question)]
        request = ChatCompletionRequest(
            model=self._model,
            messages=messages,
            max_tokens=self._config.max_tokens,
            temperature=self._config.temperature,
            seed=self._config.seed,
        )
        answer: list[str] = []

        def show(output: TextOutput) -> bool:
            answer.append(output.text)
            print(output.text, end="", flush=True)
            return True

        with contextlib.suppress(asyncio.CancelledError), _interruptible():
            await self._pipeline.chat(request, b"", Context(), show)
        print()
        self._messages = [*messages, Message(role="assistant", content="".join(answer))]


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Within the block, Ctrl-C cancels the current task's wait."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
