"""The request plane within one process: the same protocol over a pair of transports that hand bytes across."""

import asyncio
import secrets

import msgspec

from dynamo.errors import UnreachableError
from dynamo.runtime.credentials import NO_CREDENTIALS
from dynamo.runtime.request_plane.base import Address
from dynamo.runtime.request_plane.call import Dispatcher
from dynamo.runtime.request_plane.caller import CallerConnection
from dynamo.runtime.request_plane.connection import Connection
from dynamo.runtime.request_plane.handshake import caller_handshake
from dynamo.runtime.request_plane.listener import ConnectionListener


class InprocNetwork:
    """The listeners that several InprocPlane objects of a process can reach."""

    def __init__(self) -> None:
        self.listeners: dict[str, ConnectionListener] = {}


class InprocPlane:
    """Calls between runtimes of one process, on one event loop."""

    def __init__(self, network: InprocNetwork | None = None) -> None:
        self._network = network or InprocNetwork()

    async def listen(self, dispatch: Dispatcher) -> ConnectionListener:
        listener = ConnectionListener(dispatch, secrets.token_hex(16))
        name = secrets.token_hex(8)
        listener.address = msgspec.structs.replace(listener.address, inproc=name)
        self._network.listeners[name] = listener

        async def stop_accepting() -> None:
            self._network.listeners.pop(name, None)

        listener.on_stop(stop_accepting)
        return listener

    async def connect(self, address: Address) -> CallerConnection:
        listener = self._network.listeners.get(address.inproc or "")
        if listener is None:
            raise UnreachableError("the worker is not in this process")
        caller = CallerConnection(caller_handshake(address.secret, NO_CREDENTIALS))
        callee = listener.accept()
        near, far = _Pipe(callee), _Pipe(caller)
        near.other, far.other = far, near
        callee.connection_made(far)
        caller.connection_made(near)
        return caller


class _Pipe(asyncio.Transport):
    """Delivers what is written to it to `receiver`, in a later turn of the event loop."""

    other: "_Pipe"

    def __init__(self, receiver: Connection) -> None:
        super().__init__()
        self._receiver = receiver
        self._loop = asyncio.get_running_loop()
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._loop.call_soon(self._receiver.data_received, bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._closing = self.other._closing = True
            self._loop.call_soon(self._receiver.connection_lost, None)
            self._loop.call_soon(self.other._receiver.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self._closing
