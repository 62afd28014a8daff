"""Whose memory a descriptor describes."""

from enum import IntEnum


class DeviceKind(IntEnum):
    UNSPECIFIED = 0
    HOST = 1
    CUDA = 2

    def __str__(self) -> str:
        return {DeviceKind.HOST: "cpu", DeviceKind.CUDA: "cuda"}.get(self, "<invalid>")


class Device:
    """The host, or one GPU."""

    __slots__ = ("id", "kind")

    def __init__(self, metadata: str | tuple[DeviceKind, int]) -> None:
        """`metadata`: "cpu", "cuda", "cuda:1" and the like, or kind and number.

        Raises ValueError for other text, TypeError for something else.
        """
        if isinstance(metadata, str):
            self.kind, self.id = _parsed(metadata)
            return
        match metadata:
            case (DeviceKind() as kind, int() as number):
                self.kind, self.id = kind, number
            case _:
                raise TypeError("a device is given by a text or by a DeviceKind and a number")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and (self.kind, self.id) == (other.kind, other.id)

    def __hash__(self) -> int:
        return hash((self.kind, self.id))

    def __repr__(self) -> str:
        return f"Device(kind={self.kind}, id={self.id})"

    def __str__(self) -> str:
        return f"{self.kind}:{self.id}" if self.kind is DeviceKind.CUDA else str(self.kind)


def _parsed(text: str) -> tuple[DeviceKind, int]:
    name, _, number = text.strip().lower().partition(":")
    if name in ("cpu", "host"):
        return DeviceKind.HOST, 0
    if name in ("cuda", "gpu") and (number.isdecimal() or not number):
        return DeviceKind.CUDA, int(number or 0)
    raise ValueError(f"a device is 'cpu' or 'cuda:<number>', not {text!r}")
