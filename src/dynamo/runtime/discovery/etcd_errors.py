"""How a call to etcd fails."""

from enum import IntEnum


class Code(IntEnum):
    """Those of gRPC's codes that mean no, whenever one asks."""

    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    FAILED_PRECONDITION = 9
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    UNAUTHENTICATED = 16


class EtcdError(Exception):
    """Base of both."""


class EtcdUnavailableError(EtcdError):
    """No endpoint has answered, or none can serve now: another try may succeed."""


class EtcdRefusedError(EtcdError):
    """etcd has understood and says no."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code

    @property
    def may_be_the_token(self) -> bool:
        """Whether logging in anew can help: it has expired, or etcd's users have changed since."""
        return self.code in (Code.UNAUTHENTICATED, Code.INVALID_ARGUMENT)

    @property
    def has_no_users(self) -> bool:
        """The answer to a login where etcd runs without authentication."""
        return self.code == Code.FAILED_PRECONDITION


def error_of(message: str, code: int) -> EtcdError:
    """What an answer of that gRPC code amounts to."""
    try:
        return EtcdRefusedError(message, Code(code))
    except ValueError:
        return EtcdUnavailableError(message)
