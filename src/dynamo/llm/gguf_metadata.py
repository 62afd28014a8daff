"""Typed access to the metadata of a GGUF file."""

from pathlib import Path
from typing import Any, TypeVar

from dynamo.errors import ConfigError

T = TypeVar("T")


class GgufMetadata:
    """The key-value part of one GGUF file.

    Raises ConfigError when the file is not a GGUF, the gguf package is missing, or a key is absent or of another type.
    """

    def __init__(self, path: Path) -> None:
        try:
            from gguf import GGUFReader
        except ImportError:
            raise ConfigError("reading a GGUF file needs the gguf package: pip install 'dynamo-py[gguf]'") from None
        self._path = path
        try:
            self._reader: Any = GGUFReader(path)
        except (ValueError, IndexError) as error:
            raise ConfigError(f"{path} is not a usable GGUF file: {error}") from error

    def text(self, key: str) -> str:
        return self._get(key, str)

    def integer(self, key: str) -> int:
        return self._get(key, int)

    def real(self, key: str) -> float:
        return float(f"{self._get(key, float):.7g}")  # stored as float32: 1e-05, not 9.999999747378752e-06

    def texts(self, key: str) -> list[str]:
        return self._get(key, list)

    def integers(self, key: str) -> list[int]:
        return self._get(key, list)

    def tensors(self) -> list[Any]:
        """gguf.ReaderTensor objects, in the order of the file; their data are maps into it."""
        return list(self._reader.tensors)

    def _get(self, key: str, kind: type[T]) -> T:
        field = self._reader.get_field(key)
        value = field.contents() if field is not None else None
        if not isinstance(value, kind):
            raise ConfigError(f"{self._path} lacks {key} as {kind.__name__}")
        return value
