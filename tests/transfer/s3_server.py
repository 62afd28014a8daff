"""A small S3 server, the package localbucket, over a directory. It takes any credentials."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamo.testing import Program
from dynamo.testing.program import program
from dynamo.transfer import ObjectStore, open_store

INSTALLED = importlib.util.find_spec("localbucket") is not None
_BUCKET = "bucket"
_SERVE = """
import re
import sys
from http.server import ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree
from localbucket import S3Handler
class Handler(S3Handler):
    def _post_request(self, bucket, key):
        if "delete" not in self.query:  # of several objects at once, which it lacks
            return super()._post_request(bucket, key)
        result = ElementTree.Element("DeleteResult")
        for name in re.findall("<Key>(.*?)</Key>", self._read_body().decode()):
            self._object_path(bucket, name).unlink(missing_ok=True)
            ElementTree.SubElement(ElementTree.SubElement(result, "Deleted"), "Key").text = name
        self._send_xml(result)
S3Handler.data_root = Path(sys.argv[1])
ThreadingHTTPServer.request_queue_size = 64
server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print("port", server.server_port, flush=True)
server.serve_forever()
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Server:
    port: int
    process: Program

    def store(self, bucket: str = _BUCKET) -> ObjectStore:
        return open_store(
            f"s3://{bucket}/some/prefix",
            endpoint=f"http://127.0.0.1:{self.port}",
            region="us-east-1",
            access_key_id="any",
            secret_access_key="any",
        )


@asynccontextmanager
async def s3_server(directory: Path) -> AsyncIterator[S3Server]:
    """Serves `directory`, in which one bucket is made."""
    (directory / _BUCKET).mkdir()
    async with program(["-c", _SERVE, str(directory)]) as process:
        line = await process.line("port ", 30)
        yield S3Server(port=int(line.split()[1]), process=process)
