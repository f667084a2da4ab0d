"""A local endpoint of chat completions that fails as it is told."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-secret"


class Fault(NamedTuple):
    """What the endpoint does in place of a reply."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: str = "{}"
    seconds: float = 0.0  # before it answers
    closes: int | None = None  # bytes of the body after which it closes the connection


class Served:
    """A running endpoint, and the bodies and times of all requests."""

    def __init__(self, url: str):
        self.url = url
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: set[str | None] = set()

    @property
    def texts(self) -> list[str]:
        """The text of each request."""
        return [body["messages"][-1]["content"] for body in self.bodies]


Reply = Callable[[dict[str, Any], int], "str | list[str] | Fault"]
"""(body of a request, its number from 0) -> the texts of its choices, or a fault."""


def completion(texts: list[str]) -> str:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return json.dumps({"choices": choices, "usage": usage})


@contextlib.contextmanager
def endpoint(reply: Reply) -> Iterator[Served]:
    """An endpoint on a free port of this machine."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            with lock:
                number = len(served.bodies)
                served.bodies.append(json.loads(raw))
                served.times.append(time.monotonic())
                served.keys.add(self.headers["Authorization"])
                found = reply(served.bodies[-1], number)
            if not isinstance(found, Fault):
                found = Fault(body=completion([found] if isinstance(found, str) else found))
            time.sleep(found.seconds)
            body = found.body.encode()
            with contextlib.suppress(OSError):
                if found.closes is None or found.closes > 0:
                    self.send_response(found.status)
                    self.send_header("Content-Length", str(len(body)))
                    self.send_header("Content-Type", "application/json")
                    for name, value in found.headers:
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(body[: found.closes])
            self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = Served(f"http://127.0.0.1:{server.server_address[1]}/v1")
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
