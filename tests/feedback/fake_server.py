"""A chat server on a loopback port that answers, fails and misbehaves as a test tells it to, and counts."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True, slots=True)
class Call:
    """A request: its body, its headers, and when it came."""

    body: dict[str, Any]
    headers: Mapping[str, str]
    at: float

    @property
    def asked(self) -> str:
        """All that was said to the model."""
        return "\n".join(message["content"] for message in self.body["messages"])


Act = Callable[[BaseHTTPRequestHandler], None]
"""What the server does with a request."""


def respond(status: int, body: bytes | str, *, kind: str = "application/json", **headers: str) -> Act:
    """A whole response; in names of headers, ``_`` stands for ``-``."""
    content = body.encode() if isinstance(body, str) else body

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return act


def reply_json(text: str, usage: tuple[int, int] | None = (10, 5)) -> str:
    """A chat completion."""
    value: dict[str, Any] = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]
    }
    if usage is not None:
        value["usage"] = {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    return json.dumps(value)


def say(text: str, usage: tuple[int, int] | None = (10, 5)) -> Act:
    """A model's answer."""
    return respond(200, reply_json(text, usage))


def fail(status: int, message: str = "no", **headers: str) -> Act:
    """An error as such servers write it."""
    return respond(status, json.dumps({"error": {"message": message}}), **headers)


def hang(seconds: float) -> Act:
    """Says nothing for some time, and then goes away."""
    return lambda handler: time.sleep(seconds)


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Breaks the connection: the other side gets a reset, not an end."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def drip(text: str, *, pause: float) -> Act:
    """An answer byte by byte."""
    content = reply_json(text).encode()

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        try:
            for byte in content:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                time.sleep(pause)
        except OSError:
            pass

    return act


def cut(text: str) -> Act:
    """Half an answer, and then the connection ends."""
    content = reply_json(text).encode()

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.close_connection = True

    return act


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Says nothing of clients that went away."""


class FakeServer:
    """Acts by its script, one act a request, and then by ``answer``."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.script: list[Act] = []
        self.answer: Callable[[Call], Act] = lambda call: say("VERDICT: A")
        self._lock = threading.Lock()
        self._http = _Server(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        """Up to the version."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def close(self) -> None:
        """Frees the port."""
        self._http.shutdown()
        self._http.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                call = Call(body, dict(self.headers), time.monotonic())
                with server._lock:
                    server.calls.append(call)
                    act = server.script.pop(0) if server.script else None
                (act or server.answer(call))(self)

            def log_message(self, *arguments: object) -> None:
                pass

        return Handler


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """A server for as long as the block runs."""
    server = FakeServer()
    try:
        yield server
    finally:
        server.close()
