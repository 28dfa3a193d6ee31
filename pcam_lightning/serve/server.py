"""serve: a local web page that predicts your own patches with an exported network."""

import errno
import socket
from pathlib import Path

import uvicorn

from pcam_lightning.serve.app import build_app
from pcam_lightning.serve.security import is_loopback
from pcam_lightning.utils.errors import UserError, check_number, rank_zero_info, rank_zero_warn
from pcam_lightning.utils.signals import stop_if_asked

CONNECTIONS = 200  # concurrent connections; a browser opens six
_GRACE = 3  # seconds for open requests after Ctrl-C


def serve(folder: Path, host: str = "127.0.0.1", port: int = 8000, max_mb: int = 20) -> None:
    """Serve a web page that predicts patches with an exported network, until Ctrl-C.

    Images are processed in memory and not stored. The page is for research and not for diagnosis.

    Args:
        folder: folder written by `export`.
        host: name or address to listen on; any except 127.0.0.1 and localhost exposes the page to the network.
        port: port to listen on; 0 for a free port.
        max_mb: largest accepted file, in MB.

    Raises:
        UserError: the folder has no model.onnx or a damaged file, or the port cannot be used.
        KeyboardInterrupt: Ctrl-C, after the server has stopped.
    """
    check_number("port", port, whole=True)
    check_number("max_mb", max_mb, 1, whole=True)
    if port > 65535:
        raise UserError(f"`port` {port}: should be an integer of at most 65535.")
    with _listen(host, port) as listener:
        app = build_app(folder, host, max_mb)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=_GRACE,
        )
        if not is_loopback(host):
            rank_zero_warn(f"`host` {host}: everyone on the network can use this page without a password.")
        name, number = listener.getsockname()[:2]
        rank_zero_info(f"http://{f'[{name}]' if ':' in name else name}:{number}: open in a browser; Ctrl-C stops it.")
        uvicorn.Server(config).run(sockets=[listener])
        stop_if_asked()  # uvicorn raises the signal that stopped it again


def _listen(host: str, port: int) -> socket.socket:
    """Open the port.

    Raises:
        UserError: the port is in use or not allowed, or the host is not an address of this computer.
    """
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
        return socket.create_server(address[:2], family=family, backlog=CONNECTIONS)
    except (socket.gaierror, UnicodeError):
        raise UserError(f"`host` {host}: no such name or address.") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"`port` {port} is in use; choose another, such as {port % 65535 + 1}.") from None
        if error.errno == errno.EADDRNOTAVAIL:
            raise UserError(f"`host` {host}: not an address of this computer.") from None
        raise UserError(f"`port` {port} cannot be used: {error.strerror}.") from None
