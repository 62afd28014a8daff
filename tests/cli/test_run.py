"""`dynamo run`: a prompt as an argument, from a pipe, and a conversation in a terminal."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pytest

from dynamo.cli.run import main
from dynamo.testing import eventually, within

from .terminal import CTRL_C, CTRL_D, Terminal, terminal

RUN = ("-m", "dynamo.cli.main", "run")
START_S = 60.0


async def run(*arguments: str, stdin: bytes | None = None, environ: Mapping[str, str]) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *RUN,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **environ},
    )
    out, err = await within(process.communicate(stdin), START_S)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_prompt_as_an_argument(tiny_model: Path, environ: dict[str, str]) -> None:
    code, out, err = await run(str(tiny_model), "--engine", "echo", "Hello world", environ=environ)
    assert code == 0
    assert "Hello world" in out
    assert out.endswith("\n")
    assert err == ""


async def test_prompt_from_a_pipe(tiny_model: Path, environ: dict[str, str]) -> None:
    arguments = (str(tiny_model), "--engine", "mocker", "--max-tokens", "5", "--seed", "1")
    flags = ("--", "--max-model-len", "512", "--speedup-ratio", "0")
    first = await run(*arguments, *flags, stdin="Grüße\n".encode(), environ=environ)
    assert first[0] == 0
    assert first[1].strip()
    assert await run(*arguments, *flags, stdin="Grüße\n".encode(), environ=environ) == first


@pytest.mark.parametrize("stdin", [None, b"", b" \n"])
async def test_no_prompt(tiny_model: Path, environ: dict[str, str], stdin: bytes | None) -> None:
    code, _, err = await run(str(tiny_model), "--engine", "echo", stdin=stdin, environ=environ)
    assert code == 2
    assert "the prompt is empty" in err


async def test_prompt_that_is_no_text(tiny_model: Path, environ: dict[str, str]) -> None:
    for arguments, stdin in ((("a\udcff",), None), ((), b"a\xff")):
        code, out, err = await run(str(tiny_model), "--engine", "echo", *arguments, stdin=stdin, environ=environ)
        assert (code, err) == (0, "")
        assert "a\ufffd" in out


async def test_prompt_that_does_not_fit(tiny_model: Path, environ: dict[str, str]) -> None:
    flags = ("--engine", "mocker", "--max-tokens", "100", "--", "--max-model-len", "64")
    code, out, err = await run(str(tiny_model), "Hello", *flags, environ=environ)
    assert (code, out.strip()) == (1, "")
    assert err.startswith("dynamo run: ")
    assert "context length" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["/proc/nowhere", "Hello", "--engine", "echo"], 1, "no model '/proc/nowhere'"),
        (["MODEL", "Hello", "--temperature", "x"], 2, "'x' is not a number"),
        (["MODEL", "--engine", "mocker", "Hello", "--", "--no-such-flag"], 2, "unrecognized arguments: --no-such-flag"),
        (["MODEL", "Hello", "--engine", "gpt"], 2, "'gpt' is not one of"),
        (["MODEL", ""], 2, "the prompt is empty"),
        ([], 2, "MODEL"),
    ],
)
def test_wrong_command_line(
    tiny_model: Path,
    arguments: list[str],
    code: int,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dynamo.telemetry.logging.configure", lambda _: None)
    try:
        ended = main([str(tiny_model) if argument == "MODEL" else argument for argument in arguments])
    except SystemExit as exit_:
        ended = exit_.code  # type: ignore[assignment]
    assert ended == code
    assert reason in capsys.readouterr().err


async def test_conversation(tiny_model: Path, environ: dict[str, str]) -> None:
    async with terminal(*RUN, str(tiny_model), "--engine", "echo", environ=environ) as shown:
        await shown.until("> ", START_S)
        shown.type(b"number one\n")
        await shown.until("user\nnumber one\nassistant\n\n> ")
        shown.type(b"\nnumber two\n")  # an empty line is no question
        await shown.until("user\nnumber two\nassistant\n\n> ")
        _, _, answer = shown.shown.rpartition("> user\n")
        assert answer.startswith("number one\nassistant\n")  # it remembers what was said
        shown.type(CTRL_D)
        assert await shown.exit_code() == 0
        assert "Traceback" not in shown.shown


def answering(shown: Terminal) -> bool:
    return len(shown.shown.rpartition("> ")[2]) > 20


def asked(shown: Terminal, times: int) -> bool:
    return shown.shown.count("> ") == times


async def test_ctrl_c_ends_the_answer_and_then_the_conversation(tiny_model: Path, environ: dict[str, str]) -> None:
    slow = ("--", "--max-model-len", "8192", "--speedup-ratio", "0.1")
    async with terminal(*RUN, str(tiny_model), "--engine", "mocker", *slow, environ=environ) as shown:
        await shown.until("> ", START_S)
        for question in (b"one\n", b"two\n"):
            prompts = shown.shown.count("> ")
            shown.type(question)
            await eventually(partial(answering, shown))
            shown.type(CTRL_C)
            await eventually(partial(asked, shown, prompts + 1))
        shown.type(CTRL_C)
        assert await shown.exit_code(5) == 0
        assert "Traceback" not in shown.shown


async def test_question_that_does_not_fit(tiny_model: Path, environ: dict[str, str]) -> None:
    small = ("--max-tokens", "4", "--", "--max-model-len", "64", "--speedup-ratio", "0")
    async with terminal(*RUN, str(tiny_model), "--engine", "mocker", *small, environ=environ) as shown:
        await shown.until("> ", START_S)
        shown.type(b"Hello " * 40 + b"\n")
        await shown.until("context length")
        shown.type(b"Hi\n")  # the conversation goes on without it
        await shown.until("> ")
        shown.type(CTRL_D)
        assert await shown.exit_code() == 0
        assert shown.shown.count("context length") == 1


async def test_terminated_while_it_waits(tiny_model: Path, environ: dict[str, str]) -> None:
    async with terminal(*RUN, str(tiny_model), "--engine", "echo", environ=environ) as shown:
        await shown.until("> ", START_S)
        shown.signal(signal.SIGTERM)
        assert await shown.exit_code(5) == -signal.SIGTERM
