"""How far an operation is."""

from enum import IntEnum


class OperationStatus(IntEnum):
    UNINITIALIZED = 0
    INITIALIZED = 1
    IN_PROGRESS = 2
    COMPLETE = 3
    CANCELLED = 4
    ERRORED = 5

    def __str__(self) -> str:
        return _SHORT[self]


_SHORT = {
    OperationStatus.UNINITIALIZED: "<invalid>",
    OperationStatus.INITIALIZED: "INIT",
    OperationStatus.IN_PROGRESS: "PROC",
    OperationStatus.COMPLETE: "DONE",
    OperationStatus.CANCELLED: "STOP",
    OperationStatus.ERRORED: "ERR",
}
