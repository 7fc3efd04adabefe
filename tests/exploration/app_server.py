"""The app of `selfvit explore` in a thread, on a free port."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from selfvit.exploration.app.explorer import Explorer
from selfvit.exploration.app.server import HOST, create_app


@contextmanager
def serve(explorer: Explorer) -> Iterator[str]:
    """Serve the app; yield its address."""
    config = uvicorn.Config(create_app(explorer), host=HOST, port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the app has not started"
        time.sleep(0.05)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://{HOST}:{port}"
    server.should_exit = True
    thread.join(timeout=10)
