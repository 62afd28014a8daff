"""What can be registered, and where it lies."""

import ctypes
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

from dynamo.errors import InvalidRequestError, UnsupportedFeatureError
from dynamo.transfer.blocks import Blocks


@runtime_checkable
class Tensor(Protocol):
    """As much of torch.Tensor as is needed: torch itself is not imported."""

    device: Any

    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    def element_size(self) -> int: ...
    def numel(self) -> int: ...


class Region:
    """Registered memory of this process: its bytes stay where they are until close()."""

    __slots__ = ("_agent", "_owner", "address", "gpu", "id", "key", "size_bytes", "writable")

    def __init__(self, agent: str, region_id: int, key: int, memory: "Memory") -> None:
        self._agent = agent
        self._owner = memory
        self.id = region_id
        self.key = key  # differs from that of all regions that had this id before
        self.address = memory.address
        self.size_bytes = memory.size_bytes
        self.writable = memory.writable
        self.gpu = memory.gpu  # None: host memory

    def blocks(self, offsets: Iterable[int], size_bytes: int) -> Blocks:
        """Blocks of one size, at these offsets in bytes. Raises InvalidRequestError for those that lie outside."""
        offsets = list(offsets)
        if (
            size_bytes < 0
            or min(offsets, default=0) < 0
            or max(offsets, default=-size_bytes) + size_bytes > self.size_bytes
        ):
            raise InvalidRequestError(f"the region has {self.size_bytes} bytes, blocks lie outside of it")
        return Blocks.of(self._agent, self.id, offsets, [size_bytes] * len(offsets))

    def all(self) -> Blocks:
        """The whole region as one block."""
        return self.blocks([0], self.size_bytes)

    def view(self) -> memoryview:
        """Its bytes, good as long as this object lives. Raises UnsupportedFeatureError for memory of a GPU."""
        if self.gpu is not None:
            raise UnsupportedFeatureError("memory of a GPU cannot be looked at from here")
        return view_of(self.address, self.size_bytes)


class Memory:
    """Where a caller's object keeps its bytes; keeps the object."""

    __slots__ = ("_buffer", "_object", "address", "gpu", "size_bytes", "writable")

    def __init__(self, source: Any) -> None:
        """`source`: anything with the buffer protocol (bytearray, mmap, NumPy array, …), or a torch tensor, CUDA's too.

        Raises InvalidRequestError for what is not contiguous, UnsupportedFeatureError for memory of another device.
        """
        self._object = source
        self._buffer: _PyBuffer | None = None
        self.gpu: int | None = None
        if isinstance(source, Tensor):
            self._from_tensor(source)
        else:
            self._from_buffer(source)

    def __del__(self) -> None:
        if self._buffer is not None:
            _release_buffer(ctypes.byref(self._buffer))

    def _from_tensor(self, tensor: Tensor) -> None:
        device = getattr(tensor.device, "type", str(tensor.device))
        if device == "cuda":
            self.gpu = tensor.device.index
        elif device != "cpu":
            raise UnsupportedFeatureError(f"memory of a {device} device cannot be registered")
        if not tensor.is_contiguous():
            raise InvalidRequestError("a tensor must be contiguous to be registered")
        self.address = tensor.data_ptr()
        self.size_bytes = tensor.numel() * tensor.element_size()
        self.writable = True

    def _from_buffer(self, source: Any) -> None:
        buffer = _PyBuffer()
        try:
            _get_buffer(source, ctypes.byref(buffer), _PyBUF_SIMPLE)
        except (TypeError, BufferError, ValueError) as error:
            raise InvalidRequestError(f"{type(source).__name__} cannot be registered: {error}") from error
        self._buffer = buffer
        self.address = buffer.buf or 0
        self.size_bytes = buffer.len
        self.writable = not buffer.readonly


def view_of(address: int, size_bytes: int) -> memoryview:
    """Memory of this process, which others keep where it is."""
    return memoryview((ctypes.c_char * size_bytes).from_address(address)).cast("B")


class _PyBuffer(ctypes.Structure):
    """Py_buffer, as PEP 688's C counterpart has it."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_PyBUF_SIMPLE = 0
_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_get_buffer.restype = ctypes.c_int
_release_buffer = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.c_void_p,)
_release_buffer.restype = None
