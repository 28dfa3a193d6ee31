"""Web app: a page for uploads, and endpoints that predict them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pcam_lightning.serve.patch_images import as_png, data_uri, heat_overlay
from pcam_lightning.serve.patch_predictor import PatchPredictor
from pcam_lightning.serve.security import FAILED, Guard, error_response
from pcam_lightning.serve.upload import PatchRefused, read_patch_bytes

MB = 10**6
SLOTS = 4  # concurrent uploads; further uploads wait in network buffers, which use little memory
SECONDS = 30.0  # timeout of one upload
_DISCARDED, _PATIENCE = 64 * MB, 2.0  # limits in bytes and seconds for reading and discarding a refused upload


def build_app(folder: Path | str, host: str = "127.0.0.1", max_mb: int = 20) -> ASGIApp:
    """Build the web app of an exported network, without opening a port.

    `GET /` returns the page. `POST /predict` takes the bytes of an image file and returns JSON: `prob`, `logit`,
    `warning` (a sentence or null) and `image` (a PNG data URI). `POST /grad_cam` takes the same bytes and returns
    `heat` (a PNG data URI) and `center`, the share of heat in the center. Errors are JSON with one
    sentence, `error`. File names are ignored.

    Args:
        folder: folder written by `export`.
        host: host that the server listens on.
        max_mb: largest upload, in units of 1,000,000 bytes.

    Raises:
        UserError: the folder has no model.onnx, or a file in it is damaged.
    """
    return Guard(_Endpoints(PatchPredictor(folder), max_mb).app(), host)


class _Endpoints:
    """Endpoints of the app.

    Args:
        predictor: predictor of patches.
        max_mb: largest upload, in units of 1,000,000 bytes.
    """

    def __init__(self, predictor: PatchPredictor, max_mb: int) -> None:
        self._predictor, self._max_mb = predictor, max_mb
        self._slots = asyncio.Semaphore(SLOTS)
        self._worker = ThreadPoolExecutor(1, "predict")  # one network call already uses all cores

    def app(self) -> Starlette:
        """Return the app."""
        return Starlette(
            routes=[
                Route("/", _constant(self._page(), "text/html")),
                *(Route(f"/page.{end}", _constant(_read(end), f"text/{kind}")) for end, kind in _ASSETS.items()),
                Route("/examples/{number:int}.png", self._example),
                Route("/predict", self._upload(self._predict), methods=["POST"]),
                Route("/grad_cam", self._upload(self._grad_cam), methods=["POST"]),
            ],
            exception_handlers={HTTPException: _http_error, Exception: _failed},
        )

    def _page(self) -> str:
        """Render the page."""
        environment = Environment(loader=PackageLoader("pcam_lightning.serve"), autoescape=True, trim_blocks=True)
        return environment.get_template("page.html").render(
            metadata=self._predictor.metadata,
            examples=len(self._predictor.examples),
            has_heat=self._predictor.has_heat,
            compares=self._predictor.distance is not None,
            max_mb=self._max_mb,
        )

    async def _example(self, request: Request) -> Response:
        """Return a synthetic patch."""
        number = request.path_params["number"]
        if number >= len(self._predictor.examples):
            raise HTTPException(404)
        return Response(as_png(self._predictor.examples[number]), media_type="image/png")

    def _upload(self, answer: Callable[[bytes], dict[str, Any]]) -> Callable[[Request], Any]:
        """Return an endpoint that passes an uploaded file to a function in the worker thread."""

        async def endpoint(request: Request) -> Response:
            async with self._slots:
                try:
                    content = await self._read(request)
                    loop = asyncio.get_running_loop()
                    return JSONResponse(await loop.run_in_executor(self._worker, answer, content))
                except PatchRefused as refused:
                    image = {} if refused.image is None else {"image": data_uri(refused.image)}
                    kind = _TooLarge if refused.status == 413 else JSONResponse
                    return kind({"error": refused.reason, **image}, refused.status)
                except TimeoutError:
                    return error_response(408, "The upload took too long.")
                except ClientDisconnect:
                    return error_response(400, "The upload ended early.")

        return endpoint

    async def _read(self, request: Request) -> bytes:
        """Read the body of a request into memory.

        Raises:
            PatchRefused: the body is too large, according to its header or its received size.
            TimeoutError: the upload is too slow.
            ClientDisconnect: the upload is incomplete.
        """
        limit = self._max_mb * MB
        refused = PatchRefused(413, f"The file is too large: at most {self._max_mb} MB are accepted.")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise refused
        content = bytearray()
        async with asyncio.timeout(SECONDS):
            async for chunk in request.stream():
                if len(content) + len(chunk) > limit:
                    raise refused
                content += chunk
        return bytes(content)

    def _predict(self, content: bytes) -> dict[str, Any]:
        image = read_patch_bytes(content)
        found = self._predictor.predict(image)
        return {"prob": found.prob, "logit": found.logit, "warning": found.warning, "image": data_uri(image)}

    def _grad_cam(self, content: bytes) -> dict[str, Any]:
        if not self._predictor.has_heat:
            raise PatchRefused(404, "Grad-CAM is not available for this network.")
        heat, center = self._predictor.heat(read_patch_bytes(content))
        return {"heat": data_uri(heat_overlay(heat)), "center": center}


class _TooLarge(JSONResponse):
    """A response to an upload that is still in progress.

    The upload is read and discarded, up to a limit. Closing a connection with unread data resets it, and the client
    would not see the response.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response, then discard the upload."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        dropped, more = 0, True
        try:
            async with asyncio.timeout(_PATIENCE):
                while more and dropped < _DISCARDED:
                    message = await receive()
                    dropped += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        except TimeoutError:
            pass
        await send({"type": "http.response.body", "body": b""})


_ASSETS = {"css": "css", "js": "javascript"}
_REASONS = {404: "This page does not exist.", 405: "This page does not accept this method."}


def _read(end: str) -> str:
    """Return an asset of the page."""
    return files("pcam_lightning.serve").joinpath("templates", f"page.{end}").read_text(encoding="utf-8")


def _constant(content: str, media_type: str) -> Callable[[Request], Any]:
    """Return an endpoint with a constant response."""

    async def endpoint(request: Request) -> Response:
        return HTMLResponse(content, media_type=media_type)

    return endpoint


async def _http_error(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return error_response(status, _REASONS.get(status, "The request is not valid."))


async def _failed(request: Request, error: Exception) -> Response:
    return error_response(500, FAILED)
