"""Serve the app: on this machine only, or in a Space of the Hub."""

from __future__ import annotations

import os
import socket
from typing import Any

from ...data.sources import Data
from ..collection import Collection
from .explorer import SIZES, Explorer
from .uploads import MAX_BYTES
from .view import View

HOST = "127.0.0.1"  # this machine only
PORT = 7860
# Paths that the app needs; the other routes of Gradio, for example for files, are closed.
OPEN_PATHS = {
    "/",
    "/config",
    "/favicon.ico",
    "/manifest.json",
    "/map.html",
    "/selection.csv",
    "/theme.css",
    "/gradio_api/app_id",
    "/gradio_api/info",
    "/gradio_api/queue/data",
    "/gradio_api/queue/join",
    "/gradio_api/startup-events",
    "/gradio_api/theme.css",
    "/gradio_api/upload",
    "/gradio_api/upload_progress",
}
OPEN_FOLDERS = ("/assets/", "/gradio_api/heartbeat/", "/images/", "/static/", "/svelte/")
NAMES = [HOST, "localhost"]  # other names of this machine are refused (DNS rebinding)


def explore(
    vectors: str | os.PathLike[str] | Collection,
    *,
    host: str = HOST,
    port: int = PORT,
    data: Data | None = None,
    checkpoint: str | None = None,
    device: str | None = None,
) -> None:
    """Show a collection in the browser, until the process is interrupted.

    The app is served on 127.0.0.1, or on another address for everyone who reaches it, as in a Space
    of the Hub. It serves images of the collection by their rows, and no file by its path.

    Args:
        vectors: Folder of vectors, or the collection that was opened.
        host: Address to listen on. On 127.0.0.1 or localhost, requests with another host name are
            refused; on any other address, the app is public.
        port: Port.
        data: Place of the images; None for the one that the folder names.
        checkpoint: Checkpoint of the vectors; None for the one that the folder names.
        device: Device to compute on; None for the best available.

    Raises:
        FileNotFoundError: If there are no vectors or no images.
        ImportError: If Gradio is not installed.
        OSError: If the port is in use.
        ValueError: If there is no vector, or the folder does not name its images.
    """
    collection = vectors if isinstance(vectors, Collection) else Collection(vectors)
    explorer = Explorer(collection, data, checkpoint, device)
    check_port(port, host)
    app = create_app(explorer, host)
    import uvicorn

    print(f"explore: http://{host}:{port}  (Ctrl+C ends it)", flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning")


def check_port(port: int, host: str = HOST) -> None:
    """Check that nothing else listens on a port.

    Args:
        port: Port.
        host: Address to listen on.

    Raises:
        OSError: If the port is in use.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise OSError(
                f"port {port} of {host} is in use; choose another one with --port."
            ) from error


class OpenPaths:
    """ASGI middleware that answers requests for other paths than those of the app with 404.

    Args:
        app: App that gets the other requests.
    """

    def __init__(self, app: Any):
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not _is_open(scope["path"]):
            from starlette.responses import Response

            await Response("there is no such page", status_code=404)(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    if ".." in path or "//" in path or "\\" in path:
        return False
    return path in OPEN_PATHS or path.startswith(OPEN_FOLDERS)


def create_app(explorer: Explorer, host: str = HOST) -> Any:
    """Return the app for an ASGI server.

    Args:
        explorer: Collection.
        host: Address that the server listens on, as in `explore`.

    Raises:
        ImportError: If Gradio is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
    except ImportError as error:
        raise ImportError(
            'the app needs Gradio; install it with pip install "selfvit[explore]".'
        ) from error
    from fastapi import FastAPI
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from .interface import HEAD, build
    from .markup import STYLE

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(OpenPaths)
    if host in NAMES:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=NAMES)
    _add_routes(app, explorer)
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}
    return gr.mount_gradio_app(
        app,
        build(explorer),
        path="/",
        server_name=host,
        allowed_paths=[],
        max_file_size=MAX_BYTES,
        show_error=True,
        theme=gr.themes.Default(**fonts),  # type: ignore[arg-type]
        css=STYLE,
        head=HEAD,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
    )


def _add_routes(app: Any, explorer: Explorer) -> None:
    """Add the routes for images, the map and CSV; none of them takes a path."""
    from starlette.responses import Response

    safe = {"X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin"}

    def image(request: Any) -> Response:
        size = request.query_params.get("size", str(SIZES[0]))
        content = None
        if size.isdecimal():
            content = explorer.image_file(request.path_params["row"], int(size))
        if content is None:
            return Response("there is no such image", status_code=404, headers=safe)
        return Response(content, media_type="image/jpeg", headers=safe)

    def map_page(request: Any) -> Response:
        return Response(explorer.map_page, media_type="text/html; charset=utf-8", headers=safe)

    def selection(request: Any) -> Response:
        content = explorer.csv(View.from_query(dict(request.query_params)))
        return Response(content, media_type="text/csv; charset=utf-8", headers=safe)

    app.router.add_route("/images/{row:int}", image)
    app.router.add_route("/map.html", map_page)
    app.router.add_route("/selection.csv", selection)


__all__ = ["HOST", "PORT", "check_port", "create_app", "explore"]
