"""What can be registered, and where it lies."""

import ctypes
from typing import Any, Protocol, runtime_checkable

from dynamo.errors import InvalidRequestError, UnsupportedFeatureError
from dynamo.transfer.extent import Extent
from dynamo.transfer.shared_memory import SharedMemory


@runtime_checkable
class Tensor(Protocol):
    """As much of torch.Tensor as is needed: torch itself is not imported."""

    device: Any

    def data_ptr(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    def element_size(self) -> int: ...
    def numel(self) -> int: ...


class Region(Extent):
    """Registered memory of this process: its bytes stay where they are until close()."""

    __slots__ = ("_owner", "address", "fd", "gpu", "key")

    def __init__(self, agent: str, region_id: int, key: int, memory: "Memory | SharedMemory") -> None:
        super().__init__(agent, region_id, memory.size_bytes, memory.writable)
        self._owner = memory
        self.key = key  # differs from that of all regions that had this id before
        self.address = memory.address
        self.fd = memory.fd if isinstance(memory, SharedMemory) else None  # by which others can map it
        self.gpu = memory.gpu if isinstance(memory, Memory) else None  # None: host memory

    def view(self) -> memoryview:
        """Its bytes; the view keeps them, and is read-only where they are.

        Raises UnsupportedFeatureError for memory of a GPU.
        """
        if self.gpu is not None:
            raise UnsupportedFeatureError("memory of a GPU cannot be looked at from here")
        view = view_of(self.address, self.size_bytes, self)
        return view if self.writable else view.toreadonly()


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


def view_of(address: int, size_bytes: int, owner: object = None) -> memoryview:
    """Memory of this process, which `owner`, kept by the view, or somebody else keeps where it is."""
    array = (ctypes.c_char * size_bytes).from_address(address)
    array.owner = owner  # type: ignore[attr-defined]
    return memoryview(array).cast("B")


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
