"""Guard: refuse requests from other sites, and set security headers."""

import ipaddress
import socket
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcam_lightning.utils.errors import logger

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
FAILED = "The server could not process this request; see its terminal for the reason."


def error_response(status: int, reason: str, **more: object) -> JSONResponse:
    """Return a JSON response with the reason in `error`."""
    return JSONResponse({"error": reason, **more}, status)


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is reachable only from this computer."""
    try:
        found = socket.getaddrinfo(host or None, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return all(ipaddress.ip_address(str(address[0])).is_loopback for *_, address in found)


class Guard:
    """Checks requests before the app, adds `HEADERS` to responses, and hides tracebacks from clients.

    Another site can make a browser send requests to this server. With DNS rebinding, its own host name resolves to
    127.0.0.1, and `Host` is foreign. With cross-site requests, `Origin` is foreign.

    Args:
        app: app to protect.
        host: host that the server listens on; on loopback, requests for other host names are refused.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host, self._loopback = app, host.lower(), is_loopback(host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        if reason := self._refuse(Headers(scope=scope)):
            await error_response(403, reason)(scope, receive, guarded)
            return
        try:
            await self._app(scope, receive, guarded)
        except Exception:
            logger.exception("A request failed.")
            if not started:
                await error_response(500, FAILED)(scope, receive, guarded)

    def _refuse(self, headers: Headers) -> str | None:
        """Return the reason to refuse a request with these headers, or None."""
        host = headers.get("host", "")
        if self._loopback and not self._is_own(host):
            return "This server accepts requests for localhost only; this request names another host."
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return "This server does not accept requests from other sites."
        return None

    def _is_own(self, host: str) -> bool:
        """Return whether a `Host` header names this computer; any port, because SSH may forward one."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in ("localhost", self._host) or ipaddress.ip_address(name).is_loopback
        except ValueError:
            return False
