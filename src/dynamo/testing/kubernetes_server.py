"""The stand-in for Kubernetes' API, reachable by HTTP."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from dynamo.testing.kubernetes_api import KubernetesApi
from dynamo.testing.kubernetes_checks import Refusal


class KubernetesServer:
    """Serves an API within a `with` block, on a port that was free; in threads of its own."""

    def __init__(self, api: KubernetesApi, *, tls: ssl.SSLContext | None = None) -> None:
        self.api = api
        self.failures: list[int] = []  # HTTP statuses that the next requests are answered with; 0: never
        self._tls = tls
        self._port = 0
        self._server: _Server | None = None
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def start(self) -> None:
        """At the same port as before it was stopped."""
        handler = type("Handler", (_Handler,), {"served": self})
        self._stopping.clear()
        self._server = server = _Server(("127.0.0.1", self._port), handler)
        self._port = server.server_address[1]
        if self._tls is not None:
            server.socket = self._tls.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), name="kubernetes-api", daemon=True).start()

    def stop(self) -> None:
        """Cuts all connections."""
        if self._server is not None:
            self._stopping.set()
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def wait_for_stop(self) -> None:
        self._stopping.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(address, handler)
        self._connections: set[Any] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        super().server_close()
        for connection in tuple(self._connections):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who has broken off knows it."""


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    served: KubernetesServer

    def do_GET(self) -> None:
        self._respond("GET")

    def do_PATCH(self) -> None:
        self._respond("PATCH")

    def do_PUT(self) -> None:
        self._respond("PUT")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Tests look at `requests`."""

    def _respond(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", "0")))
        failure = self.served.failures.pop(0) if self.served.failures else None
        if failure == 0:
            self.served.wait_for_stop()
            self.close_connection = True
            return
        try:
            if failure is not None:
                raise Refusal(failure, "", "a test has it so")
            headers = {name.lower(): value for name, value in self.headers.items()}
            code, answer = 200, self.served.api.answer(method, self.path, headers, body)
        except Refusal as refusal:
            code, answer = refusal.code, refusal.body
        data = json.dumps(answer).encode()
        self.send_response_only(code)
        self.send_header("Date", self.served.api.date())
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
