import inspect
import pickle

import pytest

from dynamo import errors
from dynamo.errors import (
    ConnectionLostError,
    DynamoError,
    ErrorInfo,
    HandlerError,
    InternalError,
    InvalidRequestError,
    ProtocolError,
    from_info,
    to_info,
)

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, DynamoError)]


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class StricterError(InvalidRequestError):
    """A user's own, under its parent's code."""


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_survives_the_journey(cls: type[DynamoError]) -> None:
    arrived = from_info(to_info(cls("what happened", param="field")))
    assert type(arrived) is (InternalError if cls is DynamoError else cls)
    assert arrived.message == str(arrived) == "what happened"
    if cls is not HandlerError:
        assert arrived.param == "field"


@pytest.mark.parametrize("cls", CLASSES)
def test_every_class_says_what_callers_read(cls: type[DynamoError]) -> None:
    assert cls.code.isidentifier()
    assert 400 <= cls.http_status <= 599
    assert isinstance(cls.retryable, bool)
    drawn = {tuple(line.strip(" │├└─").split()[:2]) for line in (errors.__doc__ or "").splitlines()}
    status = "---" if cls is errors.ConfigError else str(cls.http_status)
    assert (cls.__name__, status) in drawn or cls is DynamoError


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES if cls is not DynamoError]
    assert len(codes) == len(set(codes))


def test_a_peer_that_talks_nonsense_is_not_asked_again() -> None:
    assert ConnectionLostError.retryable
    assert not ProtocolError.retryable


def test_foreign_exceptions_become_handler_errors() -> None:
    info = to_info(KeyError("k"))
    assert (info.code, info.message, info.error_type) == ("handler_error", "'k'", "KeyError")
    arrived = from_info(info)
    assert isinstance(arrived, HandlerError)
    assert to_info(arrived) == info  # through a second process it stays what it was


def test_code_of_a_newer_peer() -> None:
    arrived = from_info(ErrorInfo(code="invented_later", message="m", param="p"))
    assert type(arrived) is InternalError
    assert (arrived.message, arrived.param) == ("m", "p")


def test_users_own_subclass_arrives_as_its_parent() -> None:
    assert type(from_info(to_info(StricterError("m")))) is InvalidRequestError


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("no file \udcff"), "no file \\udcff"),
        (ValueError("x" * 20_000), "x" * 10_000),
        (UnprintableError(), "<unprintable UnprintableError>"),
        (ValueError(), ""),
        (InvalidRequestError("\udcff", param="\udcff"), "\\udcff"),
        (InvalidRequestError(ValueError("inner"), param=5), "inner"),  # type: ignore[arg-type]
    ],
)
def test_messages_can_always_be_sent(error: Exception, message: str) -> None:
    info = to_info(error)
    assert info.message == message
    info.message.encode()
    (info.param or "").encode()


@pytest.mark.parametrize("cls", CLASSES)
def test_errors_can_be_pickled(cls: type[DynamoError]) -> None:
    copy = pickle.loads(pickle.dumps(cls("m", param="p")))
    assert (type(copy), copy.message, copy.param) == (cls, "m", "p")
