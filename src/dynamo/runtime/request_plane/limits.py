"""How much one peer may ask for. Frames have a limit of their own, in the codec."""

import math
from collections.abc import Mapping

from dynamo.errors import InvalidRequestError, RequestTooLargeError
from dynamo.runtime.codec import Call

HANDSHAKE_TIMEOUT_S = 5.0  # in which a caller has to show who it is
CONNECTIONS_MAX = 4096  # of one listener
UNREAD_BYTES_MAX = 64 << 20  # that a peer leaves unread while it asks for more: credit keeps items far below
STREAMS_MAX = 16_384  # of one connection
METADATA_BYTES_MAX = 64 << 10  # of one call; counted as characters, which are fewer
_NAME_CHARS_MAX = 1024


def check_call(call: Call) -> None:
    """Raises RequestTooLargeError, or InvalidRequestError for a time that is none."""
    for name in (call.endpoint, call.request_id, call.traceparent or ""):
        check_name(name)
    if call.metadata:
        check_metadata(call.metadata)
    if call.timeout_s is not None and math.isnan(call.timeout_s):  # it would upset the order of the loop's timers
        raise InvalidRequestError("the timeout is no number")


def check_name(name: str) -> None:
    """Raises RequestTooLargeError; of an endpoint, a request or a trace."""
    if len(name) > _NAME_CHARS_MAX:
        raise RequestTooLargeError(f"a name of {len(name)} characters is over the limit of {_NAME_CHARS_MAX}")


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises RequestTooLargeError."""
    size = sum(len(name) + len(value) for name, value in metadata.items())
    if size > METADATA_BYTES_MAX:
        raise RequestTooLargeError(f"metadata of {size} characters is over the limit of {METADATA_BYTES_MAX}")
