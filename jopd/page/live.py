"""A page that follows its runs: `http://127.0.0.1:PORT`, for whoever sits at this machine.

It answers two addresses, the page and its data, to those alone who ask for them by this machine's
own name: a page from elsewhere that has its own name point here gets nothing.
"""

import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jopd.page.document import document
from jopd.page.records import NotARun

LOOPBACK = "127.0.0.1"


def serve(port: int, read: Callable[[], list[dict[str, Any]]]) -> ThreadingHTTPServer:
    """A server, not yet at work, of the runs that `read` gives each time.

    Args:
      port: 0 for any that is free.

    Raises:
      ValueError: the port is taken or not allowed.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.headers.get("Host") not in names(server.server_port):
                return self.send_error(403)
            if self.path not in ("/", "/data.json"):
                return self.send_error(404)
            try:
                runs = read()
            except NotARun as error:  # a run that is just being cleared or begun
                return self.send_error(503, explain=str(error))
            if self.path == "/":
                return self.answer("text/html", document(runs, live=True))
            return self.answer("application/json", json.dumps({"live": True, "runs": runs}))

        def answer(self, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *arguments):
            pass

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"live={port} can't be listened on ({error}): choose another") from None
    return server


def names(port: int) -> tuple[str, ...]:
    """What this machine calls itself, and the port."""
    return tuple(f"{name}:{port}" for name in (LOOPBACK, "localhost"))
