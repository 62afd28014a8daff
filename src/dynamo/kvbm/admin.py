"""Asking the service as its administrator."""

from pathlib import Path

from dynamo.errors import ConnectionLostError, ErrorInfo, from_info
from dynamo.kvbm.frames import frame, reply_reader
from dynamo.kvbm.socket_path import connect
from dynamo.protocols.kvbm import Clear, Inspect, Refused, Reply, Stop, Verify

_READ_BYTES = 256 << 10


def ask(path: Path, request: Inspect | Clear | Verify | Stop, timeout_s: float) -> Reply:
    """The answer. Blocks.

    Raises ConnectionLostError when there is no service, or none that answers within `timeout_s`; what the service says
    is wrong, as the error that it is.
    """
    with connect(path, timeout_s) as sock:
        reader = reply_reader()
        try:
            sock.sendall(frame(request))
            while True:
                data = sock.recv(_READ_BYTES)
                if not data:
                    raise ConnectionLostError("the block manager has closed the connection")
                for reply in reader.feed(data):
                    if isinstance(reply, Refused):
                        raise from_info(ErrorInfo(code=reply.code, message=reply.message))
                    return reply
        except OSError as error:
            raise ConnectionLostError(f"the block manager at {path} does not answer: {error}") from error
