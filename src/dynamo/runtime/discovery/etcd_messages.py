"""What travels between us and etcd's JSON gateway: the parts of etcdserverpb that discovery needs.

Field names are etcd's. In its JSON, bytes are base64, 64-bit integers are strings (numbers are understood too), and
what has its default value is left out.
"""

import msgspec


class Header(msgspec.Struct):
    """Stands in every answer; `revision` counts the changes of the whole store."""

    revision: int = 0


class KeyValue(msgspec.Struct):
    key: bytes = b""
    value: bytes = b""
    mod_revision: int = 0
    lease: int = 0


class RangeRequest(msgspec.Struct, omit_defaults=True):
    """/v3/kv/range: `key`, or all from it up to `range_end`."""

    key: bytes
    range_end: bytes = b""


class RangeResponse(msgspec.Struct):
    header: Header = msgspec.field(default_factory=Header)
    kvs: list[KeyValue] = []


class PutRequest(msgspec.Struct):
    key: bytes
    value: bytes
    lease: int


class RequestOp(msgspec.Struct, omit_defaults=True):
    """One of them."""

    request_put: PutRequest | None = None
    request_range: RangeRequest | None = None
    request_delete_range: RangeRequest | None = None


class ResponseOp(msgspec.Struct):
    response_range: RangeResponse | None = None


class Compare(msgspec.Struct, omit_defaults=True):
    """Whether the key's `target`, CREATE or LEASE, equals the field of that name."""

    key: bytes
    target: str
    create_revision: int | None = None
    lease: int | None = None


class TxnRequest(msgspec.Struct, omit_defaults=True):
    """/v3/kv/txn: `success` where all of `compare` holds, else `failure`."""

    compare: list[Compare]
    success: list[RequestOp]
    failure: list[RequestOp] = []


class TxnResponse(msgspec.Struct):
    header: Header = msgspec.field(default_factory=Header)
    succeeded: bool = False
    responses: list[ResponseOp] = []


class LeaseGrantRequest(msgspec.Struct):
    """/v3/lease/grant: in seconds."""

    TTL: int


class LeaseGrantResponse(msgspec.Struct):
    ID: int


class LeaseRequest(msgspec.Struct):
    """/v3/lease/keepalive and /v3/lease/revoke."""

    ID: int


class LeaseState(msgspec.Struct):
    """`TTL` is 0 for a lease that is no more."""

    TTL: int = 0


class LeaseKeepAliveResponse(msgspec.Struct):
    result: LeaseState


class Nothing(msgspec.Struct):
    """An answer that says no more than that it was done."""


class AuthenticateRequest(msgspec.Struct):
    """/v3/auth/authenticate"""

    name: str
    password: str


class AuthenticateResponse(msgspec.Struct):
    token: str


class WatchCreateRequest(msgspec.Struct):
    key: bytes
    range_end: bytes
    start_revision: int


class WatchRequest(msgspec.Struct):
    """/v3/watch, which answers with a line for each response."""

    create_request: WatchCreateRequest


class WatchEvent(msgspec.Struct):
    kv: KeyValue
    type: str = "PUT"  # or DELETE


class WatchResponse(msgspec.Struct):
    header: Header = msgspec.field(default_factory=Header)
    canceled: bool = False  # compacted, or not allowed
    events: list[WatchEvent] = []


class StreamError(msgspec.Struct):
    """How a stream fails; gRPC's code stands under either name, depending on etcd's version."""

    message: str = ""
    grpc_code: int = 0
    code: int = 0


class WatchLine(msgspec.Struct):
    """Without a `result` the stream has failed, and this is the last line."""

    result: WatchResponse | None = None
    error: StreamError | None = None


class ErrorBody(msgspec.Struct):
    """Of an answer that is not 200; `code` is gRPC's. Of a stream, all stands in `error`."""

    message: str = ""
    code: int = 0
    error: StreamError | str = ""
