"""One resolver for every configuration: a frozen dataclass whose fields say their flag, variable and help once.

    @dataclass(frozen=True, slots=True, kw_only=True)
    class FrontendConfig:
        '''Serve the OpenAI API.'''

        http_port: int = option(8000, flag="--http-port", env="DYN_HTTP_PORT", help="port of the OpenAI API")

    config = parse(FrontendConfig, sys.argv[1:], prog="python -m dynamo.frontend")

A field declared by `group` holds another such class, whose options stand beside its own.

A flag wins over the environment, which wins over the default. A wrong flag ends the program with argparse's message
and exit code 2; a wrong variable is a warning, because an environment made for another program must not stop this one.
"""

import argparse
import dataclasses
import logging
import math
import operator
import os
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar

from dynamo.errors import ConfigError

T = TypeVar("T")

logger = logging.getLogger(__name__)

_TRUE = frozenset({"1", "true", "yes", "on", "y", "t"})
_FALSE = frozenset({"0", "false", "no", "off", "n", "f"})
_NUMBERS: Mapping[type, str] = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How one field is set from outside."""

    flags: tuple[str, ...]
    help: str
    env: str | None = None
    choices: tuple[str, ...] | None = None
    metavar: str | None = None
    minimum: float | None = None  # of a number, which must be finite then
    maximum: float | None = None
    aliases: Mapping[str, str] = dataclasses.field(default_factory=dict)  # other spellings of a choice


def option(
    default: Any,
    *,
    flag: str | Sequence[str],
    help: str,  # noqa: A002 - argparse's name
    env: str | None = None,
    choices: Sequence[str] | None = None,
    metavar: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Any:
    """A dataclass field that can be set by `flag` (one or several spellings, the first is the main one) or `env`.

    A secret has no flag, `()`: everybody on a host can read command lines. It is left out of the dataclass's repr too.
    """
    described = Option(
        flags=(flag,) if isinstance(flag, str) else tuple(flag),
        help=help,
        env=env,
        choices=tuple(choices) if choices is not None else None,
        metavar=metavar,
        minimum=minimum,
        maximum=maximum,
        aliases=aliases or {},
    )
    return dataclasses.field(default=default, metadata={"option": described}, repr=bool(described.flags))


def group(cls: type[T]) -> T:
    """A dataclass field that holds a `cls`, set by the options of `cls`."""
    field: T = dataclasses.field(default_factory=cls, metadata={"group": cls})
    return field


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One field of a configuration class with everything that is known about it."""

    name: str  # with the name of its group and a point before it, if it is in one
    type: type
    default: Any
    option: Option


def settings(cls: type) -> list[Setting]:
    """The fields of `cls` that were declared by `option`, inherited ones first, and those of its groups."""
    hints = typing.get_type_hints(cls)
    found: list[Setting] = []
    for f in dataclasses.fields(cls):
        if "option" in f.metadata:
            described = f.metadata["option"]
            found.append(Setting(name=f.name, type=_plain_type(hints[f.name]), default=f.default, option=described))
        elif "group" in f.metadata:
            found += [dataclasses.replace(s, name=f"{f.name}.{s.name}") for s in settings(f.metadata["group"])]
    return found


def setting_values(config: Any) -> dict[str, str]:
    """The fields of a configuration by name, as text that its flags would take; "" for None."""
    values = {s.name: operator.attrgetter(s.name)(config) for s in settings(type(config))}
    return {name: _text(value) for name, value in values.items()}


def as_flags(cls: type, config: Any, *, without: Collection[str] = ()) -> list[str]:
    """The command line that gives the fields of `cls` their values in `config`, but for those named in `without`.

    None, which no flag can say, is left to the default, and a secret to the environment.
    """
    flags: list[str] = []
    for setting in settings(cls):
        value = operator.attrgetter(setting.name)(config)
        if value is None or setting.name in without or not setting.option.flags:
            continue
        flag = setting.option.flags[0]
        if setting.type is bool:
            flags.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            flags += [flag, str(value)]
    return flags


def as_typed(name: str) -> str:
    """A field's name as people write it: in the way of flags."""
    return name.replace("_", "-")


class Live(Generic[T]):
    """A configuration that may change while the process runs; those who read it take `value` each time."""

    __slots__ = ("value",)

    def __init__(self, value: T) -> None:
        self.value = value

    def change(self, values: Mapping[str, str]) -> None:
        """Sets fields by name to what a flag would make of these texts: all of them, or none.

        Names may be written as flags are, with hyphens. Raises ConfigError for a name that there is not, and for a text
        that the flag would not take.
        """
        known = {as_typed(setting.name): setting for setting in settings(type(self.value))}
        changes: dict[str, Any] = {}
        for name, text in ((as_typed(name), text) for name, text in values.items()):
            if name not in known:
                raise ConfigError(f"there is no setting {name!r}; there is: {', '.join(known)}")
            try:
                changes[known[name].name] = _value(known[name], text)
            except (ValueError, argparse.ArgumentTypeError) as error:
                raise ConfigError(f"{name}: {text!r} is not usable: {error}") from error
        self.value = dataclasses.replace(typing.cast("Any", self.value), **changes)


def parse(cls: type[T], argv: Sequence[str], *, prog: str, environ: Mapping[str, str] | None = None) -> T:
    """A `cls` from the command line and the environment; exits like argparse on a wrong command line."""
    parser = build_parser(cls, prog=prog)
    return from_namespace(cls, parser.parse_args(argv), environ=environ)


def parse_known(
    cls: type[T], argv: Sequence[str], *, prog: str, environ: Mapping[str, str] | None = None
) -> tuple[T, list[str]]:
    """Like parse(), but returns the arguments that `cls` does not know, in order."""
    namespace, rest = build_parser(cls, prog=prog).parse_known_args(argv)
    return from_namespace(cls, namespace, environ=environ), rest


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without the usage, which with so many flags would push it off the screen."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n`{self.prog} --help` lists the flags.\n")


def build_parser(cls: type, *, prog: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """The argparse parser of `cls`; its description is the class's docstring."""
    parser = _Parser(prog=prog, description=cls.__doc__, epilog=epilog, allow_abbrev=False)
    add_arguments(cls, parser)
    return parser


def add_arguments(cls: type, parser: argparse.ArgumentParser) -> None:
    """Adds the flags of `cls` to a parser that may hold more."""
    for setting in settings(cls):
        described = setting.option
        if not described.flags:
            continue
        keywords: dict[str, Any] = {
            "dest": setting.name,
            "default": argparse.SUPPRESS,
            "help": _help_text(setting).replace("%", "%%"),
        }
        if setting.type is bool:
            keywords["action"] = argparse.BooleanOptionalAction
        else:
            keywords["type"] = _converter(setting)
            keywords["metavar"] = described.metavar or _metavar(setting)
        parser.add_argument(*described.flags, **keywords)


def from_namespace(cls: type[T], namespace: argparse.Namespace, *, environ: Mapping[str, str] | None = None) -> T:
    """A `cls` from parsed flags, then the environment, then the defaults."""
    given = vars(namespace)
    values = from_environment(cls, os.environ if environ is None else environ)
    values |= {s.name: given[s.name] for s in settings(cls) if s.name in given}
    for f in dataclasses.fields(typing.cast("Any", cls)):
        if "group" in f.metadata:
            prefix = f"{f.name}."
            inner = {name: values.pop(name) for name in tuple(values) if name.startswith(prefix)}
            values[f.name] = f.metadata["group"](**{name.removeprefix(prefix): v for name, v in inner.items()})
    return cls(**values)


def from_environment(cls: type, environ: Mapping[str, str]) -> dict[str, Any]:
    """The fields of `cls` that the environment sets; unusable values are warned about and left out."""
    values: dict[str, Any] = {}
    for setting in settings(cls):
        text = environ.get(setting.option.env) if setting.option.env else None
        if not text:  # set but empty, as in many a compose file, means unset
            continue
        try:
            values[setting.name] = _value(setting, text)
        except (ValueError, argparse.ArgumentTypeError) as error:
            default = "no value" if setting.default is None else repr(setting.default)
            logger.warning("%s=%r is not usable (%s): using %s", setting.option.env, text, error, default)
    return values


def _plain_type(hint: Any) -> type:
    """The type without `| None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return typing.cast("type", hint)


def _value(setting: Setting, text: str) -> Any:
    """Raises ValueError or ArgumentTypeError."""
    return _boolean(text) if setting.type is bool else _converter(setting)(text)


def _converter(setting: Setting) -> typing.Callable[[str], Any]:
    described = setting.option

    def convert(text: str) -> Any:
        text = described.aliases.get(text, text)
        if described.choices is not None and text not in described.choices:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(described.choices)}")
        try:
            value = setting.type(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not {_NUMBERS.get(setting.type, 'usable')}") from error
        if described.minimum is not None and not described.minimum <= value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {described.minimum:g}")
        if described.maximum is not None and not value <= described.maximum:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at most {described.maximum:g}")
        return value

    return convert


def _text(value: Any) -> str:
    """What a flag would take for `value`; "" for None."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _boolean(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    raise ValueError("neither true nor false")


def _metavar(setting: Setting) -> str:
    if setting.option.choices is not None:
        return "{" + ",".join(setting.option.choices) + "}"
    return {int: "N", float: "X"}.get(setting.type, "TEXT")


def _help_text(setting: Setting) -> str:
    text = setting.option.help
    notes = []
    if setting.default is not None and setting.default != "":
        notes.append(f"default: {setting.default}")
    if setting.option.env:
        notes.append(f"env: {setting.option.env}")
    return f"{text} ({'; '.join(notes)})" if notes else text
