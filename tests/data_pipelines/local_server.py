"""A home for downloads on this machine."""

import http.server
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any


@contextmanager
def served(folder: Path) -> Generator[tuple[str, list[str]]]:
    """Serves a folder; yields its address and the paths that have been asked for."""
    requested: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            super().do_GET()

        # Silent; the base class chose the parameters' names.
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ARG002
            return

    handler = partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requested
        finally:
            server.shutdown()
            thread.join()
