"""A stand-in for Prometheus: instant queries by its published HTTP API, without a database behind them.

It checks what a real one would of the form of a request, and answers with what the test says.
"""

import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(slots=True)
class PrometheusStandIn:
    """`figures` are the samples of the answer, as text, by their label `figure`."""

    url: str = ""
    figures: Mapping[str, str] = field(default_factory=dict)
    raw: tuple[int, bytes] | None = None  # an answer of the test's own
    queries: list[str] = field(default_factory=list)

    def answer(self, path: str, form: Mapping[str, list[str]]) -> tuple[int, bytes]:
        if self.raw is not None:
            return self.raw
        if path != "/prefix/api/v1/query" or "query" not in form:
            return 400, self._error("bad_data", 'invalid parameter "query"')
        (query,) = form["query"]
        self.queries.append(query)
        now = 1435781451.781
        result = [{"metric": {"figure": name}, "value": [now, value]} for name, value in self.figures.items()]
        body = {"status": "success", "data": {"resultType": "vector", "result": result}}
        return 200, json.dumps(body).encode()

    @staticmethod
    def _error(kind: str, text: str) -> bytes:
        return json.dumps({"status": "error", "errorType": kind, "error": text}).encode()


@contextmanager
def prometheus() -> Iterator[PrometheusStandIn]:
    """One that listens, at a path as behind a proxy."""
    stand_in = PrometheusStandIn()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            form = urllib.parse.parse_qs(self.rfile.read(length).decode())
            status, body = stand_in.answer(self.path, form)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stand_in.url = f"http://127.0.0.1:{server.server_port}/prefix"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
