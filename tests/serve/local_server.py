"""A served folder in a thread, a client of it, and the folder."""

import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from filelock import FileLock

from pcam_lightning.export.export_network import export_network
from pcam_lightning.serve.app import build_app
from pcam_lightning.serve.security import HEADERS

LEAKS = re.compile(r"Traceback|\.py\b|/(?:work|tmp|home|root|usr|etc)\b|\\\\")


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def export_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export pcam-small, once for all processes of the tests; tests only read it."""
    shared = tmp_path_factory.getbasetemp()
    if shared.name.startswith("popen-"):  # of a worker of pytest-xdist
        shared = shared.parent
    with FileLock(shared / "serve.lock"):
        if not (shared / "serve" / "model.onnx").exists():
            export_network(["pcam-small"], shared / "serve", sample=2)
    return shared / "serve"


@contextmanager
def running(folder: Path, max_mb: int = 20) -> Iterator[int]:
    """Serve a folder from a thread, as `serve` does; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    options: dict[str, Any] = {"http": "h11", "ws": "none", "lifespan": "off", "log_config": None}
    server = uvicorn.Server(uvicorn.Config(build_app(folder, max_mb=max_mb), **options))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def send(port: int, method: str, path: str, body: Any = None, **headers: str) -> Answer:
    """Send a request, and return the response."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())
    connection.close()
    return answer


def send_raw(port: int, request: bytes, *, ends: bool = False) -> bytes:
    """Send bytes, and return all that comes back; `ends` closes this side's half of the connection first."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(request)
        if ends:
            connection.shutdown(socket.SHUT_WR)
        found = b""
        while part := connection.recv(65536):
            found += part
    return found


def error(answer: Answer) -> str:
    """Return the reason of a response, after checking that it is one plain sentence."""
    assert 400 <= answer.status < 500
    assert answer.headers["content-type"] == "application/json"
    assert HEADERS.items() <= {name: answer.headers.get(name.lower()) for name in HEADERS}.items()
    assert set(answer.json) <= {"error", "image"}
    reason = str(answer.json["error"])
    assert not LEAKS.search(reason)
    assert reason.endswith((".", "?"))
    assert "\n" not in reason
    return reason
