"""Object stores by obstore: S3 and what speaks like it, Google's, Azure's, a directory, this process's memory."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any

from dynamo.errors import ConfigError, ConnectionLostError, DynamoError, InvalidRequestError, NotFoundError
from dynamo.transfer.objects import ObjectStore, ShortObjectError

_RETRIES_MAX = 3
_RETRY_TIMEOUT_S = 10.0
_WHOLE_BYTES_MAX = 64 << 20  # larger objects are sent in parts of this size


def open_store(url: str, **options: str) -> ObjectStore:
    """The store at s3://bucket/prefix, gs://…, az://…, file:///directory or memory:///. For Agent.register_objects().

    `options` are those of obstore's stores, such as endpoint, region, access_key_id, secret_access_key; what is not
    given comes from the environment (AWS_ACCESS_KEY_ID, …). A store in memory is another one with each call.
    Raises ConfigError when obstore is not installed, or makes nothing of this.
    """
    try:
        import obstore
        from obstore.store import from_url
    except ImportError:
        raise ConfigError("object stores need the obstore package: pip install 'dynamo-py[object]'") from None
    try:
        if url.startswith(("file:", "memory:")):
            store = from_url(url, **options)
        else:
            without_tls = options.get("endpoint", "").startswith("http:")
            store = from_url(
                url,
                client_options={"allow_http": True} if without_tls else None,  # else as AWS_ALLOW_HTTP has it
                retry_config={"max_retries": _RETRIES_MAX, "retry_timeout": timedelta(seconds=_RETRY_TIMEOUT_S)},
                **options,
            )
    except (obstore.exceptions.BaseError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]  # the rest is for who debugs obstore
        raise ConfigError(f"{url} cannot be an object store: {reason}") from error
    return _Obstore(obstore, store)


class _Obstore:
    """As ObjectStore."""

    def __init__(self, obstore: ModuleType, store: Any) -> None:
        self._obstore = obstore
        self._store = store

    async def get_ranges(self, key: str, starts: list[int], lengths: list[int]) -> Sequence[memoryview]:
        try:
            ranges = await self._obstore.get_ranges_async(self._store, key, starts=starts, lengths=lengths)
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            end = max(start + length for start, length in zip(starts, lengths, strict=True))
            raise await self._why_unread(key, end, error) from error
        return [memoryview(data) for data in ranges]

    async def put(self, key: str, data: bytearray) -> None:
        try:
            await self._obstore.put_async(self._store, key, data, chunk_size=_WHOLE_BYTES_MAX)
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._failure(key, error) from error

    async def delete(self, key: str) -> None:
        try:
            await self._obstore.delete_async(self._store, key)
        except FileNotFoundError:
            return
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._failure(key, error) from error

    async def keys(self, directory: str) -> AsyncIterator[Sequence[str]]:
        try:
            async for page in self._obstore.list(self._store, directory):
                yield [found["path"] for found in page]
        except (self._obstore.exceptions.BaseError, OSError, ValueError) as error:
            raise self._failure(directory, error) from error

    async def _why_unread(self, key: str, end: int, error: Exception) -> DynamoError:
        """For a range that an object does not have each store has another error."""
        if isinstance(error, self._obstore.exceptions.GenericError):
            try:
                found = await self._obstore.head_async(self._store, key)
            except (self._obstore.exceptions.BaseError, OSError) as other:
                return self._failure(key, other)
            if found["size"] < end:
                return ShortObjectError(f"{key!r} has {found['size']} bytes, not {end}")
        return self._failure(key, error)

    def _failure(self, key: str, error: Exception) -> DynamoError:
        exceptions = self._obstore.exceptions
        text = f"{key!r}: {str(error).splitlines()[0]}"  # the rest is for who debugs obstore
        if isinstance(error, FileNotFoundError):
            return NotFoundError(text)
        refused = (exceptions.InvalidPathError, exceptions.PermissionDeniedError, exceptions.UnauthenticatedError)
        if isinstance(error, (ValueError, PermissionError, exceptions.NotSupportedError, *refused)):
            return InvalidRequestError(text)
        return ConnectionLostError(text)
