"""How a call to etcd fails."""

NOT_FOUND = 5  # gRPC's codes
_INVALID_ARGUMENT = 3
_FAILED_PRECONDITION = 9
_UNAUTHENTICATED = 16
_FINAL = frozenset({_INVALID_ARGUMENT, NOT_FOUND, 6, 7, _FAILED_PRECONDITION, 11, 12, _UNAUTHENTICATED})


class EtcdError(Exception):
    """Base of both."""


class EtcdUnavailableError(EtcdError):
    """No endpoint has answered, or none can serve now: another try may succeed."""


class EtcdRefusedError(EtcdError):
    """etcd has understood and says no; `code` is gRPC's."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code

    @property
    def may_be_the_token(self) -> bool:
        """Whether logging in anew can help: it has expired, or etcd's users have changed since."""
        return self.code in (_UNAUTHENTICATED, _INVALID_ARGUMENT)

    @property
    def has_no_users(self) -> bool:
        """The answer to a login where etcd runs without authentication."""
        return self.code == _FAILED_PRECONDITION


def error_of(message: str, code: int) -> EtcdError:
    """What an answer of that gRPC code amounts to."""
    return EtcdRefusedError(message, code) if code in _FINAL else EtcdUnavailableError(message)
