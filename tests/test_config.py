"""Flags, environment and defaults."""

import logging
from dataclasses import dataclass

import pytest

from dynamo.config import as_flags, build_parser, from_environment, group, option, parse, parse_known, settings


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """Do something."""

    port: int = option(8000, flag="--port", env="T_PORT", help="port to listen on")
    name: str | None = option(None, flag=("--name", "--served-name"), env="T_NAME", help="a name")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(BaseConfig):
    """Do something more, 100% of it."""

    fast: bool = option(False, flag="--fast", env="T_FAST", help="be quick; saves 50% of the time")
    warm: bool = option(True, flag="--warm", env="T_WARM", help="warm up")
    mode: str = option(
        "a", flag="--mode", env="T_MODE", choices=("a", "b"), aliases={"alpha": "a", "beta": "b"}, help="how"
    )
    ratio: float = option(1.5, flag="--ratio", env="T_RATIO", help="a ratio")
    directory: str | None = option(None, flag="--dir", metavar="DIR", help="where")
    secret: str | None = option(None, flag=(), env="T_SECRET", help="a secret")
    computed: int = 5  # not an option


def read(*argv: str, **environ: str) -> Config:
    return parse(Config, argv, prog="test", environ=environ)


def test_defaults() -> None:
    assert read() == Config()


def test_flag_wins_over_environment_wins_over_default() -> None:
    assert read(T_PORT="9000").port == 9000
    assert read("--port", "9001", T_PORT="9000").port == 9001
    assert read("--port=9001").port == 9001
    assert read("--mode", "a", T_MODE="b").mode == "a"


def test_secret_comes_from_the_environment_alone() -> None:
    config = read(T_SECRET="xyz")
    assert config.secret == "xyz"
    assert "xyz" not in repr(config)
    assert "xyz" not in as_flags(Config, config)
    with pytest.raises(SystemExit):
        read("--secret", "xyz")


def test_flag_set_to_the_default_still_wins() -> None:
    assert read("--port", "8000", T_PORT="9000").port == 8000
    assert read("--no-fast", T_FAST="1").fast is False


def test_other_spellings() -> None:
    assert read("--served-name", "x").name == "x"
    assert read("--mode", "beta").mode == "b"
    assert read(T_MODE="beta").mode == "b"


@pytest.mark.parametrize(("text", "value"), [("1", True), ("TRUE", True), ("on", True), ("0", False), ("No", False)])
def test_booleans(text: str, value: bool) -> None:
    assert read(T_FAST=text).fast is value
    assert read(T_WARM=text).warm is value
    assert (read("--fast").fast, read("--no-warm").warm) == (True, False)


def test_negative_numbers_and_text_that_looks_like_a_flag() -> None:
    assert read("--port", "-1").port == -1
    assert read("--ratio", "-0.5").ratio == -0.5
    assert read("--name=--x").name == "--x"


@pytest.mark.parametrize(
    ("name", "text"),
    [("T_PORT", "http"), ("T_FAST", "perhaps"), ("T_MODE", "c"), ("T_RATIO", "half"), ("T_PORT", "1.5")],
)
def test_unusable_environment_is_a_warning(name: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert read(**{name: text}) == Config()
    assert f"{name}={text!r}" in caplog.text


def test_warning_names_the_value_that_is_used(caplog: pytest.LogCaptureFixture) -> None:
    read(T_PORT="http")
    assert "using 8000" in caplog.text


def test_set_but_empty_means_unset(caplog: pytest.LogCaptureFixture) -> None:
    assert read(T_PORT="", T_MODE="", T_RATIO="", T_WARM="", T_NAME="") == Config()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--port", "http"], "--port: 'http' is not a whole number"),
        (["--mode", "c"], "'c' is not one of a, b"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--por", "5"], "unrecognized arguments"),
        (["--port"], "expected one argument"),
        (["stray"], "unrecognized arguments: stray"),
    ],
)
def test_wrong_command_line(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        read(*argv)
    assert exit_info.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.splitlines()[1:] == ["`test --help` lists the flags."]


def test_unknown_arguments_are_left_in_order() -> None:
    config, rest = parse_known(
        Config, ["--max-len", "5", "--port", "1", "--x=y", "stray", "--name", "n"], prog="test", environ={}
    )
    assert (config.port, config.name) == (1, "n")
    assert rest == ["--max-len", "5", "--x=y", "stray"]


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        read("--help")
    assert exit_info.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Do something more, 100% of it." in text
    assert "--port N port to listen on (default: 8000; env: T_PORT)" in text
    assert "--name TEXT, --served-name TEXT a name (env: T_NAME)" in text
    assert "--fast, --no-fast be quick; saves 50% of the time (default: False; env: T_FAST)" in text
    assert "--mode {a,b} how (default: a; env: T_MODE)" in text
    assert "--dir DIR where" in text


def test_settings_list_the_inherited_first() -> None:
    assert [s.name for s in settings(Config)] == [
        "port",
        "name",
        "fast",
        "warm",
        "mode",
        "ratio",
        "directory",
        "secret",
    ]
    assert [s.type for s in settings(Config)] == [int, str, bool, bool, str, float, str, str]


def test_environment_alone() -> None:
    assert from_environment(Config, {"T_PORT": "1", "T_OTHER": "x"}) == {"port": 1}


def test_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T_PORT", "77")
    assert parse(Config, [], prog="test").port == 77
    assert build_parser(Config, prog="test", epilog="the end").format_help().endswith("the end\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    """A part of something."""

    depth: float = option(1.0, flag="--depth", env="T_DEPTH", minimum=0, help="how deep")
    share: float = option(0.5, flag="--share", minimum=0, maximum=1, help="how much of it")
    wide: bool = option(True, flag="--wide", help="not narrow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    """Something with a part."""

    port: int = option(1, flag="--port", minimum=1, help="a port")
    inner: Inner = group(Inner)
    title: str | None = option(None, flag="--title", help="a title")


def read_outer(*argv: str, **environ: str) -> Outer:
    return parse(Outer, argv, prog="test", environ=environ)


def test_a_group_is_set_like_fields_of_its_owner() -> None:
    assert read_outer() == Outer()
    assert read_outer("--depth", "2", "--no-wide", "--port", "3") == Outer(port=3, inner=Inner(depth=2.0, wide=False))
    assert read_outer(T_DEPTH="4").inner.depth == 4
    assert [setting.name for setting in settings(Outer)] == [
        "port",
        "inner.depth",
        "inner.share",
        "inner.wide",
        "title",
    ]


def test_numbers_below_their_minimum(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("-1", "inf", "nan"):
        with pytest.raises(SystemExit):
            read_outer("--depth", text)
        assert f"{text} is not a number of at least 0" in capsys.readouterr().err
    assert read_outer(T_DEPTH="-1") == Outer()
    assert "T_DEPTH='-1' is not usable" in caplog.text


def test_numbers_above_their_maximum(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_outer("--share", "1").inner.share == 1
    with pytest.raises(SystemExit):
        read_outer("--share", "7")
    assert "7 is not a number of at most 1" in capsys.readouterr().err


@pytest.mark.parametrize("config", [Outer(), Outer(port=3, inner=Inner(depth=0.5, wide=False), title="a b")])
def test_a_configuration_as_flags(config: Outer) -> None:
    assert read_outer(*as_flags(Outer, config), T_DEPTH="7") == config
    assert read_outer(*as_flags(Outer, config, without=["inner.depth"])).inner.depth == 1
