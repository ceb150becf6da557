"""A page that follows its runs: `http://127.0.0.1:PORT`, for whoever sits at this machine.

It answers two addresses, the page and its data, to those alone who ask for them by this machine's
own name: a page from elsewhere that has its own name point here gets nothing.
"""

import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from jopd.page.document import document

LOOPBACK = "127.0.0.1"
NAMES = (LOOPBACK, "localhost", "[::1]")


def serve(port: int, read: Callable[[], list[dict[str, Any]]]) -> ThreadingHTTPServer:
    """A server, not yet at work, of the runs that `read` gives each time; it is asked by one thread
    at a time.

    Args:
      port: 0 for any that is free.

    Raises:
      ValueError: the port is taken or not allowed.
    """
    reading = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            # Any port: what a tunnel is called by has one of its own.
            host = self.headers.get("Host", "")
            if (host if host.endswith("]") else host.rpartition(":")[0] or host) not in NAMES:
                return self.send_error(403)
            if self.path not in ("/", "/data.json"):
                return self.send_error(404)
            try:
                with reading:
                    runs = read()
            except (OSError, ValueError) as error:  # a run that is just being cleared or begun
                return self.send_error(503, explain=str(error))
            if self.path == "/":
                return self.answer("text/html", document(runs, live=True))
            return self.answer("application/json", json.dumps({"live": True, "runs": runs}))

        def answer(self, kind: str, text: str) -> None:
            body = text.encode()
            digest = f'"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
            known = self.headers.get("If-None-Match") == digest
            self.send_response(304 if known else 200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Cache-Control", "no-cache")
            self.send_header("ETag", digest)
            self.send_header("X-Content-Type-Options", "nosniff")
            if not known:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if not known:
                self.wfile.write(body)

        def log_message(self, format, *arguments):
            pass

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"live={port} can't be listened on ({error}): choose another") from None
