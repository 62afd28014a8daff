"""Files in the directory that no process of ours would write, each locked as if its owner lived."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from dynamo.runtime.discovery.base import Put
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.testing import run_strictly, within

MAGIC = b"dynamo-discovery-1 "
NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), max_size=20).map(
    lambda name: f"@{name}"
)
CONTENTS = st.binary(max_size=40) | st.binary(max_size=40).map(lambda content: MAGIC + content)


@contextlib.contextmanager
def locked(path: Path, content: bytes) -> Iterator[None]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(descriptor, content)
        yield
    finally:
        os.close(descriptor)


@settings(max_examples=60)
@given(st.dictionaries(NAMES, CONTENTS, min_size=1, max_size=4))
@example({"@another": MAGIC + b"good\nbad"})  # or its end would be taken for the good one's
@example({"@huge": MAGIC + b"huge\n" + bytes(3 << 20)})
def test_watchers_go_on(files: dict[str, bytes]) -> None:
    async def run(directory: Path) -> None:
        discovery = FileDiscovery(directory, poll_interval_s=0.001)
        with contextlib.ExitStack() as stack:
            for name, content in files.items():
                stack.enter_context(locked(directory / name, content))
            watch = discovery.watch("good")
            await discovery.register("good", b"value")
            assert await within(anext(watch)) == Put("good", b"value")
        await discovery.register(
            "good-too", b""
        )  # once it is seen, all have been looked at since they lost their owners
        assert await within(anext(watch)) == Put("good-too", b"")
        await within(discovery.close())

    with tempfile.TemporaryDirectory() as directory:
        run_strictly(run(Path(directory)))
