"""Upstream's `dynamo.nixl_connect` over dynamo.transfer: one side offers memory, the other reads or writes it.

The names, arguments and error types are upstream's, so that its programs run here; NIXL is not needed for memory of the
host. What differs: a failed transfer raises its DynamoError in wait_for_completion(), a Connector can be closed, and
the processes of one host need no network.
"""

from dynamo.nixl_connect.active import ReadOperation, WriteOperation
from dynamo.nixl_connect.connector import Connector
from dynamo.nixl_connect.descriptor import Descriptor
from dynamo.nixl_connect.device import Device, DeviceKind
from dynamo.nixl_connect.metadata import OperationKind, RdmaMetadata, SerializedDescriptor
from dynamo.nixl_connect.passive import ReadableOperation, WritableOperation
from dynamo.nixl_connect.status import OperationStatus

__all__ = [
    "Connector",
    "Descriptor",
    "Device",
    "DeviceKind",
    "OperationKind",
    "OperationStatus",
    "RdmaMetadata",
    "ReadOperation",
    "ReadableOperation",
    "SerializedDescriptor",
    "WritableOperation",
    "WriteOperation",
]
